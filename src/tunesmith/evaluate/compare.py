"""The base model and the tuned one on the same rows: replies, scores, paired differences, a verdict."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.conversation import Conversation
from tunesmith.evaluate.score import Better, Score, View
from tunesmith.evaluate.statistics import Difference, paired
from tunesmith.find import find
from tunesmith.generate.text import Reply, TextModel
from tunesmith.recipe import Named


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
) -> list[Answered]:
    """One model's replies to all rows, with its loss on their answers when `losses` can tell it."""
    rows = [(part, row) for part, members in parts.items() for row in members]
    replies: dict[int, Reply] = {}
    for place, reply in model.replies([row.prompt for _, row in rows], max_new_tokens=max_new_tokens, batch=batch):
        replies[place] = reply
        tell(len(replies), len(rows))
    known = [place for place, (_, row) in enumerate(rows) if losses and row.answer]
    values = dict(zip(known, losses([rows[place][1] for place in known]), strict=True)) if losses and known else {}
    return [Answered(row.id, part, replies[place], values.get(place)) for place, (part, row) in enumerate(rows)]


def score(row: Conversation, answered: Answered, metrics: Sequence[Named]) -> dict[str, Score]:
    """All scores of one row."""
    view = View(row, answered.reply, answered.loss)
    found = [s for metric in metrics for s in find("tunesmith.evaluate.metrics", metric.name)(view, **metric.options)]
    return {each.name: each for each in found}


def compare(
    parts: Mapping[str, Sequence[Conversation]],
    base: Sequence[Answered],
    tuned: Sequence[Answered],
    metrics: Sequence[Named],
    *,
    primary: str,
    kind: str,
    seed: int,
) -> dict[str, Any]:
    """Plain values for scores.json: each row's scores, each part's differences, and the verdict.

    `kind` is what the rows' groups are called, such as topic.
    """
    rows = {(part, row.id): row for part, members in parts.items() for row in members}
    before = {(item.part, item.id): score(rows[item.part, item.id], item, metrics) for item in base}
    after = {(item.part, item.id): score(rows[item.part, item.id], item, metrics) for item in tuned}
    held = [key for key in rows if key[0] in ("test", "unseen")]
    sections = {"all": held} if len({part for part, _ in held}) > 1 else {}
    for part in parts:
        sections[part] = [key for key in rows if key[0] == part]
    differences = {
        title: _differences([(rows[key].group, before[key], after[key]) for key in keys], seed)
        for title, keys in sections.items()
        if keys
    }
    main = next(iter(differences.values())).get(primary)
    differences = {title: found for title, found in differences.items() if found}  # probes may have no scores
    return {
        "primary": primary,
        "kind": kind,
        "verdict": sentence(primary, main, kind),
        "helped": main.verdict if main else "not measured",
        "sections": {title: {k: d.describe() for k, d in found.items()} for title, found in differences.items()},
        "rows": [
            {
                "id": key[1],
                "part": key[0],
                "base": {name: each.value for name, each in before[key].items()},
                "tuned": {name: each.value for name, each in after[key].items()},
            }
            for key in rows
        ],
    }


def sentence(primary: str, found: Difference | None, kind: str = "group") -> str:
    """The verdict in words; `kind` is what the rows' groups are called."""
    if found is None:
        return f"'{primary}' was not measured, so nothing can be said."
    name = primary.replace("_", " ")
    grouped = f" in {found.groups} {plural(kind, found.groups)}" if found.groups < found.rows else ""
    where = f"over {found.rows} held-out rows{grouped}"
    change = f"{name} went from {found.base:.2f} to {found.tuned:.2f} {where}"
    span = f"(difference {found.difference:+.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f})"
    opening = {
        "better": "Tuning helped",
        "worse": "Tuning made it worse",
        "no detectable change": "No detectable change",
    }.get(found.verdict, "Tuning changed it")
    return f"{opening}: {change} {span}."


def plural(kind: str, count: int = 2) -> str:
    """'topic' as 'topics', 'category' as 'categories'; as it is for one."""
    if count == 1:
        return kind
    return kind[:-1] + "ies" if kind.endswith("y") and kind[-2:-1] not in "aeiou" else f"{kind}s"


def _differences(rows: Sequence[tuple[str, dict[str, Score], dict[str, Score]]], seed: int) -> dict[str, Difference]:
    made: dict[str, Difference] = {}
    names = dict.fromkeys(name for _, before, _ in rows for name in before)
    for name in names:
        both = [(group, b[name], a[name]) for group, b, a in rows if name in b and name in a]
        if not both:
            continue
        better: Better = both[0][1].better
        made[name] = paired(
            [b.value for _, b, _ in both],
            [a.value for _, _, a in both],
            [g for g, _, _ in both],
            better=better,
            seed=seed,
        )
    return made
