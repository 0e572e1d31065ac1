"""The base model and the tuned one on the same rows: replies, scores, paired differences, a verdict."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Named
from tunesmith.config.registry import find
from tunesmith.data.conversation import Conversation
from tunesmith.errors import RunError
from tunesmith.evaluation.reply_log import Kept
from tunesmith.evaluation.score import Known, Score, View
from tunesmith.evaluation.statistics import Difference, paired, settle
from tunesmith.generation.text_model import Reply, TextModel

NOTHING = Known()
HIGHEST = 230.0  # nats: exp of it is 1e100, which no model that works comes near


@dataclass(frozen=True)
class Answered:
    """What one model made of one row."""

    id: str
    part: str
    reply: Reply
    loss: float | None

    def describe(self) -> dict[str, Any]:
        """Plain values for replies/*.jsonl."""
        return {"id": self.id, "part": self.part, **asdict(self.reply), "loss": self.loss}


def read_answered(path: Path) -> list[Answered]:
    """What `describe` wrote, a JSON line each."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            plain = json.loads(line)
            reply = Reply(plain["text"], plain["stopped"], plain["tokens"], plain.get("cut", ""))
            found.append(Answered(plain["id"], plain["part"], reply, plain["loss"]))
    return found


def choose(parts: Mapping[str, Sequence[Conversation]], limit: int, seed: int) -> dict[str, list[Conversation]]:
    """At most `limit` rows of the parts together, drawn evenly over groups, the same for every model."""
    total = sum(len(rows) for rows in parts.values())
    if total <= limit:
        return {part: list(rows) for part, rows in parts.items()}
    queues: dict[tuple[str, str], list[Conversation]] = defaultdict(list)
    for part, rows in parts.items():
        for row in rows:
            queues[part, row.group].append(row)
    order = list(queues.values())
    for queue in order:
        random.Random(seed).shuffle(queue)  # noqa: S311  (a draw, not secrecy)
    random.Random(seed).shuffle(order)  # noqa: S311  (else, of more groups than `limit`, the first are always asked)
    chosen: set[str] = set()
    while len(chosen) < limit:
        for queue in order:
            if queue and len(chosen) < limit:
                chosen.add(queue.pop().id)
    return {part: [row for row in rows if row.id in chosen] for part, rows in parts.items()}


def answer(
    model: TextModel,
    parts: Mapping[str, Sequence[Conversation]],
    *,
    max_new_tokens: int,
    batch: int,
    losses: Callable[[Sequence[Conversation]], list[float]] | None,
    tell: Callable[[int, int], None],
    kept: Kept | None = None,
) -> list[Answered]:
    """One model's replies to all rows, with its loss on their answers when `losses` can tell it.

    A reply that `kept` has is not written again; the others are added to it as they come.
    """
    rows = [(part, row) for part, members in parts.items() for row in members]
    known_replies = kept.replies if kept else {}
    replies = {
        place: known_replies[part, row.id] for place, (part, row) in enumerate(rows) if (part, row.id) in known_replies
    }
    left = [place for place in range(len(rows)) if place not in replies]
    prompts = [rows[place][1].prompt for place in left]
    for place, reply in model.replies(prompts, max_new_tokens=max_new_tokens, batch=batch):
        part, row = rows[left[place]]
        replies[left[place]] = reply
        if kept:
            kept.add(part, row.id, reply)
        tell(len(replies), len(rows))
    known = [place for place, (_, row) in enumerate(rows) if losses and row.answer]
    values = dict(zip(known, losses([rows[place][1] for place in known]), strict=True)) if losses and known else {}
    return [Answered(row.id, part, replies[place], values.get(place)) for place, (part, row) in enumerate(rows)]


def score(row: Conversation, answered: Answered, metrics: Sequence[Named], known: Known = NOTHING) -> dict[str, Score]:
    """All scores of one row; `known` is what the tuned model was trained on.

    Raises AssertionError, with the metric and the row, for a value that is not a finite number: a metric gives nothing
    where it cannot say, so this is a fault of the program and not of the rows.
    """
    view, found = View(row, answered.reply, answered.loss, known), {}
    for metric in metrics:
        for each in find("tunesmith.evaluation.metrics", metric.name)(view, **metric.options):
            if not math.isfinite(each.value) or (each.fold == "exp" and each.value > HIGHEST):
                given = f"{each.name} = {each.value} ({each.fold})"
                raise AssertionError(
                    f"the metric '{metric.name}' gave {given} for the row '{row.id}' of {answered.part}"
                )
            found[each.name] = each
    return found


def compare(
    parts: Mapping[str, Sequence[Conversation]],
    base: Sequence[Answered],
    tuned: Sequence[Answered],
    metrics: Sequence[Named],
    *,
    primary: str,
    kind: str,
    seed: int,
    known: Known = NOTHING,
) -> dict[str, Any]:
    """Plain values for scores.json: each row's scores, each part's differences, and the verdict.

    `kind` is what the rows' groups are called, such as topic. A section's scores are corrected for one another (see
    `settle`); the primary one is decided alone in the first section, which the verdict is about. `unpaired` counts, by
    section, the rows of scores that no row has for both models. Raises as `score` does, and RunError when the two did
    not answer the same rows.
    """
    scored = _scored(parts, {"base": base, "tuned": tuned}, metrics, known)
    found = _measured(parts, scored, "base", primary, seed)["tuned"]
    main = _first(found).get(primary)
    return {
        "primary": primary,
        "kind": kind,
        "verdict": sentence(primary, main, kind),
        "helped": main.verdict if main else "not measured",
        "sections": _plain(found),
        "unpaired": _unpaired(parts, scored["base"], scored["tuned"]),
        "rows": [{"id": key[1], "part": key[0], **told} for key, told in _told(parts, scored)],
    }


def across(
    parts: Mapping[str, Sequence[Conversation]],
    answered: Mapping[str, Sequence[Answered]],
    metrics: Sequence[Named],
    *,
    against: str,
    primary: str,
    kind: str,
    seed: int,
    known: Known = NOTHING,
) -> dict[str, Any]:
    """Several named models on the same rows, each compared with the one named `against`, as plain values.

    `models` holds for each other name, in the order given, what `compare` says of the tuned model, where `base` is the
    figure of `against` and `tuned` the model's own; `rows` holds every model's scores of each row. The correction spans
    a section's scores of all the models, and with more than one of them the primary score is not decided alone. Raises
    as `compare` does, and ValueError when `against` or another model is missing.
    """
    if against not in answered or len(answered) < 2:
        raise ValueError(f"'{against}' and at least one other model are needed; there are {list(answered)}")
    scored = _scored(parts, answered, metrics, known)
    models = {}
    for name, found in _measured(parts, scored, against, primary, seed).items():
        main = _first(found).get(primary)
        models[name] = {
            "verdict": sentence(primary, main, kind, name=name, against=against),
            "helped": main.verdict if main else "not measured",
            "sections": _plain(found),
            "unpaired": _unpaired(parts, scored[against], scored[name]),
        }
    rows = [{"id": key[1], "part": key[0], "scores": told} for key, told in _told(parts, scored)]
    return {"primary": primary, "kind": kind, "against": against, "models": models, "rows": rows}


def sentence(primary: str, found: Difference | None, kind: str = "group", *, name: str = "", against: str = "") -> str:
    """The verdict in words; `kind` is what the rows' groups are called.

    It is about base and tuned, or about the model called `name` beside the one called `against`.
    """
    if found is None:
        return f"'{primary}' was not measured, so nothing can be said."
    metric = primary.replace("_", " ")
    grouped = f" in {found.groups} {plural(kind, found.groups)}" if found.groups < found.rows else ""
    where = f"over {found.rows} held-out rows{grouped}"
    base, tuned = f"{found.base:.2f}", f"{found.tuned:.2f}"
    change = f"{metric} {tuned} against {base} {where}" if name else f"{metric} went from {base} to {tuned} {where}"
    span = f"(difference {found.difference:+.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f})"
    return f"{_opening(found.verdict, name, against)}: {change} {span}.{_noticed(found)}"


def _opening(verdict: str, name: str, against: str) -> str:
    if name:
        return {
            "better": f"'{name}' is better than '{against}'",
            "worse": f"'{name}' is worse than '{against}'",
            "no detectable change": f"No detectable difference between '{name}' and '{against}'",
        }.get(verdict, f"'{name}' differs from '{against}'")
    return {
        "better": "Tuning helped",
        "worse": "Tuning made it worse",
        "no detectable change": "No detectable change",
    }.get(verdict, "Tuning changed it")


def _noticed(found: Difference) -> str:
    """What these rows would have shown, where they showed nothing."""
    if found.verdict != "no detectable change" or found.detectable is None:
        return ""
    size = f"{found.detectable:.2f}" if found.detectable >= 0.01 else f"{found.detectable:.1g}"
    return f" A change of {size} would have been noticed 4 times in 5."


def plural(kind: str, count: int = 2) -> str:
    """'topic' as 'topics', 'category' as 'categories'; as it is for one."""
    if count == 1:
        return kind
    return kind[:-1] + "ies" if kind.endswith("y") and kind[-2:-1] not in "aeiou" else f"{kind}s"


Key = tuple[str, str]  # a row's part and id
Scored = dict[Key, dict[str, Score]]
Found = dict[str, dict[str, Difference]]  # by section and metric


def _scored(
    parts: Mapping[str, Sequence[Conversation]],
    answered: Mapping[str, Sequence[Answered]],
    metrics: Sequence[Named],
    known: Known,
) -> dict[str, Scored]:
    """Every model's scores of every row, all models on the same rows."""
    rows = {(part, row.id): row for part, members in parts.items() for row in members}
    for name, items in answered.items():
        if other := rows.keys() ^ {(item.part, item.id) for item in items}:
            part, row = min(other)
            where, what = f"row '{row}' of {part}", f"'{name}' answered other rows than were asked"
            raise RunError(what, where=where, next="Let every model answer the same rows, then compare them")
    return {
        name: {(item.part, item.id): score(rows[item.part, item.id], item, metrics, known) for item in items}
        for name, items in answered.items()
    }


def _sections(parts: Mapping[str, Sequence[Conversation]]) -> dict[str, list[tuple[Key, str]]]:
    """The rows and their groups by section: the held-out parts together when there are two, then each part."""
    each = {part: [((part, row.id), row.group) for row in rows] for part, rows in parts.items() if rows}
    held = [each[part] for part in each if part in ("test", "unseen")]
    return {"all": [row for rows in held for row in rows], **each} if len(held) > 1 else each


def _measured(
    parts: Mapping[str, Sequence[Conversation]], scored: Mapping[str, Scored], against: str, primary: str, seed: int
) -> dict[str, Found]:
    """Every other model's differences from `against`, each section's corrected for one another."""
    others = [name for name in scored if name != against]
    made: dict[str, Found] = {name: {} for name in others}
    for place, (title, rows) in enumerate(_sections(parts).items()):
        found = {
            (name, metric): difference
            for name in others
            for metric, difference in differences(
                [(group, scored[against][key], scored[name][key]) for key, group in rows], seed
            ).items()
        }
        settled = settle(found, alone=(others[0], primary) if place == 0 and len(others) == 1 else None)
        for name in others:
            made[name][title] = {metric: each for (whose, metric), each in settled.items() if whose == name}
    return made


def differences(
    rows: Sequence[tuple[str, Mapping[str, Score], Mapping[str, Score]]], seed: int
) -> dict[str, Difference]:
    """Each score's difference over the rows that have it on both sides: of each row the group and both sides' scores.

    Rows that have it on one side are counted as missing.
    """
    made: dict[str, Difference] = {}
    for name in dict.fromkeys(name for _, before, after in rows for name in (*before, *after)):
        both = [(group, before[name], after[name]) for group, before, after in rows if name in before and name in after]
        if not both:
            continue
        made[name] = paired(
            [b.value for _, b, _ in both],
            [a.value for _, _, a in both],
            [group for group, _, _ in both],
            better=both[0][1].better,
            fold=both[0][1].fold,
            seed=seed,
            missing=sum((name in before) != (name in after) for _, before, after in rows),
        )
    return made


def _unpaired(parts: Mapping[str, Sequence[Conversation]], before: Scored, after: Scored) -> dict[str, dict[str, int]]:
    """By section, the rows of each metric that one model has on some row and no row has for both."""
    found = {}
    for title, rows in _sections(parts).items():
        both = {name for key, _ in rows for name in before[key].keys() & after[key]}
        either = Counter(name for key, _ in rows for name in {**before[key], **after[key]} if name not in both)
        if either:
            found[title] = dict(either)
    return found


def _first(found: Found) -> dict[str, Difference]:
    """The section that the verdict is about."""
    return next(iter(found.values()))


def _plain(found: Found) -> dict[str, dict[str, Any]]:
    """Plain values of the sections that have any score: probes may have none."""
    return {title: {name: each.describe() for name, each in made.items()} for title, made in found.items() if made}


def _told(
    parts: Mapping[str, Sequence[Conversation]], scored: Mapping[str, Scored]
) -> list[tuple[Key, dict[str, dict[str, float]]]]:
    """Each row's values, by model and metric."""
    keys = [(part, row.id) for part, rows in parts.items() for row in rows]
    return [
        (key, {name: {k: each.value for k, each in of[key].items()} for name, of in scored.items()}) for key in keys
    ]
