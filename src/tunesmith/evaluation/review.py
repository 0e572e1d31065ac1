"""Blind review of reply pairs by people: pairs, presentation order, judgments on disk, and their summary."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast, get_args

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.errors import RunError
from tunesmith.evaluation.agreement import cohen_kappa, fleiss_kappa, wilson_interval
from tunesmith.evaluation.comparison import HELD_OUT
from tunesmith.evaluation.sentences import narrow_sentences, p_text, signed, too_few_sentence
from tunesmith.evaluation.verdict import Verdict, decide
from tunesmith.runs.run import command_for_product, hash_json, sync_folder, translate_disk_errors

Model = Literal["base", "tuned"]
Side = Literal["left", "right"]
Answer = Literal["yes", "no", "cannot say"]
Preference = Literal["left", "right", "tie"]
QUESTIONS = {
    "correct": "What it says is right: it answers what was asked, and nothing in it is untrue or against the fields.",
    "format": "It has the form that was asked for: steps, a letter, the length, the language.",
    "clear": "One reading is enough to understand it.",
    "robust": "It holds up: nothing is guessed, nothing is repeated over and over, it does not break off.",
}


@dataclass(frozen=True)
class ReviewPair:
    """Both models' replies to one row of a group. `id` does not depend on which text is whose."""

    id: str
    part: str
    turns: tuple[Turn, ...]
    fields: Mapping[str, str]
    base: str
    tuned: str
    group: str = ""


@dataclass(frozen=True)
class PresentedPair:
    """A pair as it is shown to one reviewer."""

    pair: ReviewPair
    left_is: Model
    reviewer: str

    @property
    def left(self) -> str:
        """The reply on the left."""
        return self.pair.base if self.left_is == "base" else self.pair.tuned

    @property
    def right(self) -> str:
        """The reply on the right."""
        return self.pair.tuned if self.left_is == "base" else self.pair.base

    @property
    def key(self) -> str:
        """The page's id of this pair: a hash of what is shown, so it does not reveal the models."""
        return hash_json([self.reviewer, self.pair.id, self.left, self.right])[:24]


@dataclass(frozen=True)
class Judgment:
    """One reviewer's judgment of one pair; `left` and `right` hold an answer to each question, `time` is UTC."""

    pair: str
    part: str
    reviewer: str
    left_is: Model
    left: Mapping[str, Answer]
    right: Mapping[str, Answer]
    preference: Preference
    seconds: float
    note: str
    time: str

    def about(self, model: Model) -> Mapping[str, Answer]:
        """Returns the answers about one model's reply."""
        return self.left if model == self.left_is else self.right

    @property
    def preferred(self) -> Model | Literal["tie"]:
        """The model whose reply was preferred, or 'tie'."""
        if self.preference == "tie":
            return "tie"
        return self.left_is if self.preference == "left" else _other_model(self.left_is)

    def with_left(self, model: Model) -> Judgment:
        """Returns the same judgment with the sides swapped, if needed, so that `model` is on the left."""
        if model == self.left_is:
            return self
        swapped: dict[Preference, Preference] = {"left": "right", "right": "left", "tie": "tie"}
        swap = swapped[self.preference]
        return replace(self, left_is=model, left=self.right, right=self.left, preference=swap)


def pair_replies(
    parts: Mapping[str, Sequence[Conversation]],
    base: Mapping[tuple[str, str], str],
    tuned: Mapping[tuple[str, str], str],
) -> tuple[list[ReviewPair], int]:
    """Returns the pairs to judge, and how many rows are left out because their two replies look equal.

    `base` and `tuned` are replies by part and row. Raises RunError if they do not belong to these rows.
    """
    rows = {(part, row.id): row for part, members in parts.items() for row in members}
    if not rows.keys() == base.keys() == tuned.keys():
        raise RunError("the replies belong to other rows", where="replies", next="Evaluate the run again")
    pairs = []
    for (part, row_id), row in rows.items():
        base_reply, tuned_reply = base[part, row_id], tuned[part, row_id]
        if base_reply.strip() != tuned_reply.strip():
            identity = hash_json([part, row_id, *sorted((base_reply, tuned_reply))])[:24]
            pairs.append(ReviewPair(identity, part, row.prompt, _fields(row), base_reply, tuned_reply, row.group))
    return pairs, len(rows) - len(pairs)


def read_replies(path: Path) -> dict[tuple[str, str], str]:
    """Reads the texts of replies/*.jsonl by part and row. Raises RunError if the file is missing or damaged."""
    advice = command_for_product("evaluate", path.parent.parent)
    try:
        text = path.read_text(encoding="utf-8")  # not splitlines(): a reply may contain U+2028
        records = [json.loads(line) for line in text.split("\n") if line]
        return {(item["part"], item["id"]): str(item["text"]) for item in records}
    except FileNotFoundError as error:
        raise RunError("there are no replies yet", where=str(path), next=advice) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError("the replies are damaged", where=str(path), next=advice) from error


def shuffle_for_reviewer(pairs: Sequence[ReviewPair], seed: int, reviewer: str) -> list[PresentedPair]:
    """Shuffles pairs and sides for one reviewer, reproducibly; each model is on the left in half of the pairs."""
    rng = random.Random(f"{seed}/{reviewer}")  # noqa: S311  (sampling, not secrecy)
    order = sorted(pairs, key=lambda pair: pair.id)
    rng.shuffle(order)
    sides: list[Model] = ["base", "tuned"] * (len(order) // 2)
    sides += [rng.choice(get_args(Model))] * (len(order) % 2)
    rng.shuffle(sides)
    return [PresentedPair(pair, side, reviewer) for pair, side in zip(order, sides, strict=True)]


def check_reviewer(name: str) -> str:
    """Returns `name` if it can be a file name. Raises RunError unless it is 1 to 32 of a-z, 0-9 and hyphens."""
    if not re.fullmatch(r"[a-z0-9-]{1,32}", name):
        raise RunError(
            f"'{name}' is not a valid reviewer name",
            where="reviewer",
            next="Use 1 to 32 lowercase letters, digits and hyphens, such as reviewer-1",
        )
    return name


@dataclass
class Reviews:
    """One reviewer's judgments: an append-only file, one line each; the last line about a pair counts."""

    path: Path
    judgments: dict[str, Judgment] = field(default_factory=dict)
    torn: int = 0  # bytes of an incomplete last line that were removed

    @classmethod
    def open(cls, folder: Path, reviewer: str) -> Reviews:
        """Opens the reviewer's file in `folder`, or creates it; an incomplete last line is removed.

        Raises RunError if the name is not valid or the file is damaged.
        """
        path = folder / f"{check_reviewer(reviewer)}.jsonl"
        with translate_disk_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                judgments, whole = _read_journal(path)
                torn = file.seek(0, os.SEEK_END) - whole
                file.truncate(whole)
            sync_folder(folder)
        return cls(path, judgments, torn)

    def add(self, judgment: Judgment) -> None:
        """Appends a judgment and syncs it to disk.

        Raises ResourceError if the disk is full; the file is then unchanged.
        """
        line = json.dumps(asdict(judgment)) + "\n"
        with translate_disk_errors(self.path), self.path.open("ab") as file:
            before = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, before)
                raise
        self.judgments[judgment.pair] = judgment


def read_reviews(folder: Path) -> dict[str, dict[str, Judgment]]:
    """Reads every reviewer's judgments by pair, without changing the files. Raises RunError if one is damaged."""
    return {path.stem: _read_journal(path)[0] for path in sorted(folder.glob("*.jsonl"))}


@dataclass(frozen=True)
class Proportion:
    """A proportion, `count` of `of`; `left_out` are the undecided cases, which are in neither."""

    count: int
    of: int
    left_out: int

    def describe(self) -> dict[str, Any]:
        """Returns a dict with the share and its 95 % interval; these are None if `of` is 0."""
        low, high = wilson_interval(self.count, self.of) if self.of else (None, None)
        share = self.count / self.of if self.of else None
        return {**asdict(self), "share": share, "low": low, "high": high}


@dataclass(frozen=True)
class ReviewSection:
    """The summary of some pairs' judgments; each pair counts once, however many reviewers judged it."""

    pairs: int
    questions: Mapping[str, Mapping[Model, Proportion]]
    tuned: Proportion  # preferences for tuned among the decided pairs; ties are left out
    preference: Verdict  # of the share of pairs that tuned won, against the share that base won

    def describe(self) -> dict[str, Any]:
        """Returns the section of reviews.json as a dict."""
        by_question = {
            name: {model: share.describe() for model, share in shares.items()}
            for name, shares in self.questions.items()
        }
        return {
            "pairs": self.pairs,
            "questions": by_question,
            "tuned": self.tuned.describe(),
            "preference": self.preference.describe(),
        }


@dataclass(frozen=True)
class Agreement:
    """Agreement of reviewers who judged the same items: the share of equal answers, and kappa.

    `items` counts pairs (for the preference) or single replies (for a question).
    """

    reviewers: tuple[str, ...]
    items: int
    equal: float
    kappa: float | None


@dataclass(frozen=True)
class ReviewSummary:
    """The summary of all judgments of a run."""

    reviewers: Mapping[str, int]
    pairs: int
    equal: int
    stale: int
    seconds: float | None
    sections: Mapping[str, ReviewSection]
    left: Proportion  # preferences for the left reply among decided judgments: far from a half, the side decided
    agreement: Mapping[str, Sequence[Agreement]]

    @property
    def verdict(self) -> str:
        """The preference as a sentence."""
        if not self.sections:
            return "Nothing was judged yet."
        part, section = next(iter(self.sections.items()))
        share = section.tuned
        of_part = "" if part == "all" or part in HELD_OUT else f" of {part}"
        if not share.of:
            return f"No preference was shown: all {share.left_out} judged pairs{of_part} are ties."
        return _preference_sentence(share, section.preference, of_part)

    def describe(self) -> dict[str, Any]:
        """Returns the content of reviews.json as a dict."""
        by_question = {name: [asdict(entry) for entry in agreements] for name, agreements in self.agreement.items()}
        return {
            "verdict": self.verdict,
            "questions": QUESTIONS,
            "reviewers": dict(self.reviewers),
            "pairs": self.pairs,
            "equal": self.equal,
            "stale": self.stale,
            "seconds": self.seconds,
            "sections": {title: section.describe() for title, section in self.sections.items()},
            "left": self.left.describe(),
            "agreement": by_question,
        }


_Judged = tuple[str, list[Judgment]]  # a pair's group, and its judgments, one per reviewer


def _preference_sentence(share: Proportion, preference: Verdict, of_part: str) -> str:
    verdict = preference.describe()
    openings = {
        "better": "People preferred the tuned model",
        "worse": "People preferred the base model",
        "too few to tell": "Too few pairs were judged to tell a preference",
    }
    opening = openings.get(preference.outcome, "No preference was shown")
    ties = "1 tie" if share.left_out == 1 else f"{share.left_out} ties"
    groups = f" in {preference.groups} groups" if preference.groups < preference.rows else ""
    counts = f"tuned won {share.count} of {share.of} decided pairs{of_part}{groups}; {ties}"
    if preference.outcome == "too few to tell":
        certainty = too_few_sentence(verdict, "group")
    else:
        ends = f"{signed(preference.low)} and {signed(preference.high)}"
        certainty = (
            f"With other questions of this kind, the share won less the share lost would probably lie between {ends}."
        )
    sentences = [f"{opening}: {counts} ({p_text(preference.p)}).", certainty, *narrow_sentences(verdict)]
    return " ".join(sentences)


def summarize(pairs: Sequence[ReviewPair], equal: int, reviews: Mapping[str, Mapping[str, Judgment]]) -> ReviewSummary:
    """Summarizes all reviewers' judgments of `pairs`.

    A judgment of a pair that is not among `pairs`, because the models have generated new replies since, is counted as
    stale and left out. If several reviewers judged a pair, the majority counts; an even split is a tie or 'cannot say'.
    """
    by_pair: dict[str, list[Judgment]] = {pair.id: [] for pair in pairs}
    for reviewed in reviews.values():
        for pair_id, judgment in reviewed.items():
            by_pair.get(pair_id, []).append(judgment)
    judged = {pair: judgments for pair, judgments in by_pair.items() if judgments}
    parts: dict[str, list[_Judged]] = defaultdict(list)
    for pair in pairs:
        if pair.id in judged:
            parts[pair.part].append((pair.group, judged[pair.id]))
    held_out = [entry for part in HELD_OUT for entry in parts.get(part, [])]
    both = {"all": held_out} if all(parts.get(part) for part in HELD_OUT) else {}
    order = sorted(parts, key=lambda part: (HELD_OUT.index(part) if part in HELD_OUT else len(HELD_OUT), part))
    every = [judgment for judgments in judged.values() for judgment in judgments]
    sides = Counter(judgment.preference for judgment in every)
    return ReviewSummary(
        reviewers={name: sum(pair in by_pair for pair in reviewed) for name, reviewed in reviews.items()},
        pairs=len(pairs),
        equal=equal,
        stale=sum(pair not in by_pair for reviewed in reviews.values() for pair in reviewed),
        seconds=median(judgment.seconds for judgment in every) if every else None,
        sections={title: _section(entries) for title, entries in {**both, **{p: parts[p] for p in order}}.items()},
        left=Proportion(sides["left"], sides["left"] + sides["right"], sides["tie"]),
        agreement=_agreement(reviews, by_pair.keys()),
    )


def _section(entries: Sequence[_Judged]) -> ReviewSection:
    """Summarizes a section."""
    judged = [judgments for _, judgments in entries]
    questions: dict[str, dict[Model, Proportion]] = {name: {} for name in QUESTIONS}
    for name in QUESTIONS:
        for model in get_args(Model):
            signs = {"yes": 1, "no": -1, "cannot say": 0}
            votes = [_majority([signs[judgment.about(model)[name]] for judgment in judgments]) for judgments in judged]
            questions[name][model] = _share(votes)
    signs = {"tuned": 1, "base": -1, "tie": 0}
    wins = [_majority([signs[judgment.preferred] for judgment in judgments]) for judgments in judged]
    lost, won = ([float(win == sign) for win in wins] for sign in (-1, 1))
    preference = decide(lost, won, [group for group, _ in entries], better="higher", seed=0)
    return ReviewSection(len(judged), questions, _share(wins), preference)


def _majority(signs: Sequence[int]) -> int:
    total = sum(signs)
    return (total > 0) - (total < 0)


def _share(votes: Sequence[int]) -> Proportion:
    return Proportion(votes.count(1), votes.count(1) + votes.count(-1), votes.count(0))


def _agreement(reviews: Mapping[str, Mapping[str, Judgment]], pair_ids: Collection[str]) -> dict[str, list[Agreement]]:
    """Computes the agreement on the preference and each question: of every two reviewers, and of all if more."""
    by_reviewer = {
        name: {pair: judgment for pair, judgment in judgments.items() if pair in pair_ids}
        for name, judgments in reviews.items()
    }
    names = [name for name, judgments in by_reviewer.items() if judgments]
    groups = [*combinations(names, 2), *([tuple(names)] if len(names) > 2 else [])]
    by_question: dict[str, list[Agreement]] = {name: [] for name in ("preference", *QUESTIONS)}
    for group in groups:
        shared = sorted(set.intersection(*(set(by_reviewer[name]) for name in group)))
        for question, agreements in by_question.items() if shared else ():
            agreements.append(
                _agreement_of(group, [_answers_of(by_reviewer[name], shared, question) for name in group])
            )
    return {question: agreements for question, agreements in by_question.items() if agreements}


def _answers_of(judgments: Mapping[str, Judgment], pairs: Sequence[str], question: str) -> list[str]:
    if question == "preference":
        return [judgments[pair].preferred for pair in pairs]
    return [judgments[pair].about(model)[question] for pair in pairs for model in get_args(Model)]


def _agreement_of(group: tuple[str, ...], answers: Sequence[Sequence[str]]) -> Agreement:
    items = list(zip(*answers, strict=True))
    equal, kappa = fleiss_kappa(items)
    return Agreement(group, len(items), equal, cohen_kappa(answers[0], answers[1]) if len(group) == 2 else kappa)


def _fields(row: Conversation) -> dict[str, str]:
    """Returns the row's text and number fields, without those that its prompt or answer shows anyway."""
    prompt = "\n".join(turn.text for turn in row.prompt)
    scalars = {name for name, value in row.fields.items() if isinstance(value, str | int | float)}
    columns = {name: value for name, value in row.own_fields().items() if name in scalars and value not in prompt}
    return {name: value for name, value in columns.items() if not row.answer or row.answer not in value}


def _other_model(model: Model) -> Model:
    return "tuned" if model == "base" else "base"


def _read_journal(path: Path) -> tuple[dict[str, Judgment], int]:
    """Returns the last judgment of each pair, and the length in bytes of all complete lines.

    An incomplete last line, which a power cut leaves, is ignored.
    """
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1
    judgments: dict[str, Judgment] = {}
    for number, line in enumerate(data[:complete].split(b"\n")[:-1], start=1):
        try:
            judgment = _parse_judgment(json.loads(line))
            if judgment.reviewer != path.stem:
                raise ValueError("belongs to another reviewer")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "Remove the line if you edited it; the other judgments stay"
            raise RunError("the judgment cannot be read", where=f"{path} line {number}", next=advice) from error
        judgments[judgment.pair] = judgment
    return judgments, complete


def _parse_judgment(record: Mapping[str, Any]) -> Judgment:
    """Reverses `asdict`. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
    for side in get_args(Side):
        answers = record[side]
        if answers.keys() != QUESTIONS.keys() or not set(answers.values()) <= set(get_args(Answer)):
            raise ValueError(f"the answers on the {side} are incomplete or unknown")
    if record["left_is"] not in get_args(Model) or record["preference"] not in get_args(Preference):
        raise ValueError("unknown side or preference")
    texts = {name: str(record[name]) for name in ("pair", "part", "reviewer", "note", "time")}
    left, right = cast(Mapping[str, Answer], record["left"]), cast(Mapping[str, Answer], record["right"])
    return Judgment(
        **texts,
        left_is=record["left_is"],
        left=left,
        right=right,
        preference=record["preference"],
        seconds=float(record["seconds"]),
    )
