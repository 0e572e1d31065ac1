"""People judge pairs of replies, blind: the pairs, who sees what on which side, what was judged, what it adds up to."""

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
from tunesmith.evaluation.agreement import cohen, fleiss, wilson
from tunesmith.runs.run import disk, hash_plain, how_to_make, sync_folder

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
HELD = ("test", "unseen")  # the parts that stand for rows to come; probes are told apart, as in scores.json


@dataclass(frozen=True)
class Pair:
    """What both models replied to one row. `id` is the same whichever of the two texts is whose."""

    id: str
    part: str
    turns: tuple[Turn, ...]
    fields: Mapping[str, str]
    base: str
    tuned: str


@dataclass(frozen=True)
class Shown:
    """A pair as one reviewer sees it."""

    pair: Pair
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
        """What the page calls it: made of nothing but what is shown, so it tells nothing more."""
        return hash_plain([self.reviewer, self.pair.id, self.left, self.right])[:24]


@dataclass(frozen=True)
class Judgement:
    """What one reviewer said of one pair, `time` in UTC; `left` and `right` hold an answer to each question."""

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
        """The answers on one model's reply."""
        return self.left if model == self.left_is else self.right

    @property
    def preferred(self) -> Model | Literal["tie"]:
        """Whose reply was preferred."""
        if self.preference == "tie":
            return "tie"
        return self.left_is if self.preference == "left" else _other(self.left_is)

    def with_left(self, model: Model) -> Judgement:
        """The same judgement as said with `model` on the left."""
        if model == self.left_is:
            return self
        swapped: dict[Preference, Preference] = {"left": "right", "right": "left", "tie": "tie"}
        swap = swapped[self.preference]
        return replace(self, left_is=model, left=self.right, right=self.left, preference=swap)


def pair_up(
    parts: Mapping[str, Sequence[Conversation]],
    base: Mapping[tuple[str, str], str],
    tuned: Mapping[tuple[str, str], str],
) -> tuple[list[Pair], int]:
    """The pairs to judge, and how many rows have two replies that look equal and are left out.

    `base` and `tuned` are replies by part and row. Raises RunError when they are not of these rows.
    """
    rows = {(part, row.id): row for part, members in parts.items() for row in members}
    if not rows.keys() == base.keys() == tuned.keys():
        raise RunError("the replies are of other rows", where="replies", next="Evaluate the run again")
    pairs = []
    for (part, name), row in rows.items():
        old, new = base[part, name], tuned[part, name]
        if old.strip() != new.strip():
            identity = hash_plain([part, name, *sorted((old, new))])[:24]
            pairs.append(Pair(identity, part, row.prompt, _fields(row), old, new))
    return pairs, len(rows) - len(pairs)


def read_replies(path: Path) -> dict[tuple[str, str], str]:
    """The texts of replies/*.jsonl by part and row. Raises RunError when there are none, or for damage."""
    advice = how_to_make("evaluate", path.parent.parent)
    try:
        text = path.read_text(encoding="utf-8")  # not splitlines(): a reply may hold U+2028
        plain = [json.loads(line) for line in text.split("\n") if line]
        return {(item["part"], item["id"]): str(item["text"]) for item in plain}
    except FileNotFoundError as error:
        raise RunError("there are no replies yet", where=str(path), next=advice) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError("the replies are damaged", where=str(path), next=advice) from error


def draw(pairs: Sequence[Pair], seed: int, reviewer: str) -> list[Shown]:
    """The pairs in the reviewer's own order, each model on the left in half of them, the same for the same seed."""
    chance = random.Random(f"{seed}/{reviewer}")  # noqa: S311  (a draw, not secrecy)
    order = sorted(pairs, key=lambda pair: pair.id)
    chance.shuffle(order)
    sides: list[Model] = ["base", "tuned"] * (len(order) // 2)
    sides += [chance.choice(get_args(Model))] * (len(order) % 2)
    chance.shuffle(sides)
    return [Shown(pair, side, reviewer) for pair, side in zip(order, sides, strict=True)]


def check_reviewer(name: str) -> str:
    """`name`, which becomes a file's name. Raises RunError unless it is 1 to 32 of a-z, 0-9 and the hyphen."""
    if not re.fullmatch(r"[a-z0-9-]{1,32}", name):
        raise RunError(
            f"'{name}' cannot be a reviewer's name",
            where="reviewer",
            next="Use 1 to 32 small letters, digits and hyphens, such as reviewer-1",
        )
    return name


@dataclass
class Reviews:
    """One reviewer's judgements: a file that only grows, a line each; of one pair the last line counts."""

    path: Path
    judgements: dict[str, Judgement] = field(default_factory=dict)
    torn: int = 0  # bytes without a line's end that were removed

    @classmethod
    def open(cls, folder: Path, reviewer: str) -> Reviews:
        """The file in `folder`, begun if there is none; the end of a line that a power cut tore off is removed.

        Raises RunError for a name that is no slug, and for damage.
        """
        path = folder / f"{check_reviewer(reviewer)}.jsonl"
        with disk(path):
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                judgements, whole = _read(path)
                torn = file.seek(0, os.SEEK_END) - whole
                file.truncate(whole)
            sync_folder(folder)
        return cls(path, judgements, torn)

    def add(self, judgement: Judgement) -> None:
        """One more judgement, on the disk when this returns.

        Raises ResourceError when the disk is full; the file then is as before.
        """
        line = json.dumps(asdict(judgement)) + "\n"
        with disk(self.path), self.path.open("ab") as file:
            before = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, before)
                raise
        self.judgements[judgement.pair] = judgement


def read_reviews(folder: Path) -> dict[str, dict[str, Judgement]]:
    """Every reviewer's judgements by pair; the files stay as they are. Raises RunError for damage."""
    return {path.stem: _read(path)[0] for path in sorted(folder.glob("*.jsonl"))}


@dataclass(frozen=True)
class Share:
    """How many of how many, with the ends of a 95 % interval; `left_out` were neither."""

    count: int
    of: int
    left_out: int

    def describe(self) -> dict[str, Any]:
        """Plain values; no share and no ends when there is nothing to share."""
        low, high = wilson(self.count, self.of) if self.of else (None, None)
        share = self.count / self.of if self.of else None
        return {**asdict(self), "share": share, "low": low, "high": high}


@dataclass(frozen=True)
class Section:
    """What the judgements of some pairs add up to; each pair counts once, whatever the number of its reviewers."""

    pairs: int
    questions: Mapping[str, Mapping[Model, Share]]
    tuned: Share  # preferred, of the decided pairs; left out are ties

    def describe(self) -> dict[str, Any]:
        """Plain values for reviews.json."""
        told = {name: {model: share.describe() for model, share in of.items()} for name, of in self.questions.items()}
        return {"pairs": self.pairs, "questions": told, "tuned": self.tuned.describe()}


@dataclass(frozen=True)
class Agreement:
    """How far reviewers agree who judged the same items: the share of equal answers, and kappa.

    `items` are pairs (for the preference) or single replies (for a question).
    """

    reviewers: tuple[str, ...]
    items: int
    equal: float
    kappa: float | None


@dataclass(frozen=True)
class Summary:
    """Everything that was judged in a run."""

    reviewers: Mapping[str, int]
    pairs: int
    equal: int
    stale: int
    seconds: float | None
    sections: Mapping[str, Section]
    left: Share  # preferred, of all decided judgements: far from a half, the side decided and not the reply
    agreement: Mapping[str, Sequence[Agreement]]

    @property
    def verdict(self) -> str:
        """The preference in words."""
        if not self.sections:
            return "Nothing was judged yet."
        title, found = next(iter(self.sections.items()))
        share = found.tuned
        where = "" if title == "all" or title in HELD else f" of {title}"
        if not share.of:
            return f"No preference was shown: all {share.left_out} judged pairs{where} are ties."
        low, high = wilson(share.count, share.of)
        opening = "No preference was shown"
        if low > 0.5 or high < 0.5:
            opening = f"People preferred the {'tuned' if low > 0.5 else 'base'} model"
        span = f"{100 * share.count / share.of:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"
        ties = "1 tie" if share.left_out == 1 else f"{share.left_out} ties"
        return f"{opening}: tuned won {share.count} of {share.of} decided pairs{where} ({span}); {ties}."

    def describe(self) -> dict[str, Any]:
        """Plain values for reviews.json."""
        told = {name: [asdict(each) for each in found] for name, found in self.agreement.items()}
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
            "agreement": told,
        }


def summarise(pairs: Sequence[Pair], equal: int, reviews: Mapping[str, Mapping[str, Judgement]]) -> Summary:
    """What all reviewers' judgements of `pairs` add up to.

    A judgement of a pair that is not among `pairs`, because the models have replied anew since, is counted as stale
    and left out. Where several judged a pair, the majority is what counts; an even split is a tie, or 'cannot say'.
    """
    by_pair: dict[str, list[Judgement]] = {pair.id: [] for pair in pairs}
    for judgement in (each for own in reviews.values() for each in own.values()):
        by_pair.get(judgement.pair, []).append(judgement)
    judged = {pair: found for pair, found in by_pair.items() if found}
    parts: dict[str, list[list[Judgement]]] = defaultdict(list)
    for pair in pairs:
        if pair.id in judged:
            parts[pair.part].append(judged[pair.id])
    held = [found for part in HELD for found in parts.get(part, [])]
    both = {"all": held} if all(parts.get(part) for part in HELD) else {}
    order = sorted(parts, key=lambda part: (HELD.index(part) if part in HELD else len(HELD), part))
    every = [each for found in judged.values() for each in found]
    sides = Counter(each.preference for each in every)
    return Summary(
        reviewers={name: sum(pair in by_pair for pair in own) for name, own in reviews.items()},
        pairs=len(pairs),
        equal=equal,
        stale=sum(pair not in by_pair for own in reviews.values() for pair in own),
        seconds=median(each.seconds for each in every) if every else None,
        sections={title: _section(found) for title, found in {**both, **{p: parts[p] for p in order}}.items()},
        left=Share(sides["left"], sides["left"] + sides["right"], sides["tie"]),
        agreement=_agreement(reviews, by_pair.keys()),
    )


def _section(judged: Sequence[Sequence[Judgement]]) -> Section:
    """`judged` holds each pair's judgements, one a reviewer."""
    questions: dict[str, dict[Model, Share]] = {name: {} for name in QUESTIONS}
    for name in QUESTIONS:
        for model in get_args(Model):
            signs = {"yes": 1, "no": -1, "cannot say": 0}
            votes = [_majority([signs[each.about(model)[name]] for each in found]) for found in judged]
            questions[name][model] = _share(votes)
    signs = {"tuned": 1, "base": -1, "tie": 0}
    wins = [_majority([signs[each.preferred] for each in found]) for found in judged]
    return Section(len(judged), questions, _share(wins))


def _majority(signs: Sequence[int]) -> int:
    total = sum(signs)
    return (total > 0) - (total < 0)


def _share(votes: Sequence[int]) -> Share:
    return Share(votes.count(1), votes.count(1) + votes.count(-1), votes.count(0))


def _agreement(reviews: Mapping[str, Mapping[str, Judgement]], known: Collection[str]) -> dict[str, list[Agreement]]:
    """For the preference and each question: every two reviewers, and all of them where there are more."""
    own = {name: {pair: each for pair, each in of.items() if pair in known} for name, of in reviews.items()}
    names = [name for name, of in own.items() if of]
    groups = [*combinations(names, 2), *([tuple(names)] if len(names) > 2 else [])]
    made: dict[str, list[Agreement]] = {name: [] for name in ("preference", *QUESTIONS)}
    for group in groups:
        shared = sorted(set.intersection(*(set(own[name]) for name in group)))
        for what, found in made.items() if shared else ():
            found.append(_agreed(group, [_said(own[name], shared, what) for name in group]))
    return {what: found for what, found in made.items() if found}


def _said(own: Mapping[str, Judgement], pairs: Sequence[str], what: str) -> list[str]:
    if what == "preference":
        return [own[pair].preferred for pair in pairs]
    return [own[pair].about(model)[what] for pair in pairs for model in get_args(Model)]


def _agreed(group: tuple[str, ...], said: Sequence[Sequence[str]]) -> Agreement:
    items = list(zip(*said, strict=True))
    equal, kappa = fleiss(items)
    return Agreement(group, len(items), equal, cohen(said[0], said[1]) if len(group) == 2 else kappa)


def _fields(row: Conversation) -> dict[str, str]:
    """The row's own values that are text or numbers, those apart that its prompt or its answer shows anyway."""
    prompt = "\n".join(turn.text for turn in row.prompt)
    plain = {name for name, value in row.fields.items() if isinstance(value, str | int | float)}
    own = {name: value for name, value in row.own_fields().items() if name in plain and value not in prompt}
    return {name: value for name, value in own.items() if not row.answer or row.answer not in value}


def _other(model: Model) -> Model:
    return "tuned" if model == "base" else "base"


def _read(path: Path) -> tuple[dict[str, Judgement], int]:
    """Judgements by pair, the last of each, and the length in bytes of the lines that have their end.

    What a power cut leaves behind them is no line and is passed over.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    found: dict[str, Judgement] = {}
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            judgement = _judgement(json.loads(line))
            if judgement.reviewer != path.stem:
                raise ValueError("of another reviewer")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "Remove the line if you changed it; the other judgements stay"
            raise RunError("the judgement cannot be read", where=f"{path} line {number}", next=advice) from error
        found[judgement.pair] = judgement
    return found, whole


def _judgement(plain: Mapping[str, Any]) -> Judgement:
    """The inverse of `asdict`. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
    for side in get_args(Side):
        answers = plain[side]
        if answers.keys() != QUESTIONS.keys() or not set(answers.values()) <= set(get_args(Answer)):
            raise ValueError(f"no answer to each question on the {side}")
    if plain["left_is"] not in get_args(Model) or plain["preference"] not in get_args(Preference):
        raise ValueError("no such side or preference")
    texts = {name: str(plain[name]) for name in ("pair", "part", "reviewer", "note", "time")}
    left, right = cast(Mapping[str, Answer], plain["left"]), cast(Mapping[str, Answer], plain["right"])
    return Judgement(
        **texts,
        left_is=plain["left_is"],
        left=left,
        right=right,
        preference=plain["preference"],
        seconds=float(plain["seconds"]),
    )
