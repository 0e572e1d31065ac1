"""The report's section on replies, row by row: both models' replies, the change of the primary score, and filters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import NamedSetting
from tunesmith.data.conversation import Conversation
from tunesmith.evaluation.statistics import TOLERANCE
from tunesmith.reporting.unsupported import split_at_statements, unsupported_statements
from tunesmith.wording import plural

WORST = 10
HEADING = 140  # characters of a question shown as its heading
MODELS = ("base", "tuned")
Item = dict[str, Any]


def part_title(part: str, kind: str) -> str:
    """Returns a part of the held-out rows in words; `kind` is what a group of rows is called."""
    titles = {
        "all": "all held-out rows",
        "test": f"new questions, {plural(kind)} known from training",
        "unseen": f"{plural(kind)} never seen in training",
    }
    return titles.get(part, part)


def read_reply_items(
    folder: Path, rows: Mapping[str, Sequence[Conversation]], scores: Mapping[str, Any], metrics: Sequence[NamedSetting]
) -> dict[str, list[Item]]:
    """Returns what the page shows of each row, by part, in the order of the rows."""
    replies = {which: _by_row(_read_jsonl(folder / f"replies/{which}.jsonl")) for which in MODELS}
    values, better = _by_row(scores["rows"]), good_direction(scores)
    by_part: dict[str, list[Item]] = {}
    opening, number = _shared_opening_length([row.question for members in rows.values() for row in members]), 0
    for part, members in rows.items():
        for row in members:
            number += 1
            key = (part, row.id)
            sides = {which: _model_side(replies[which][key], row, values[key][which], metrics) for which in MODELS}
            item = _item(row, number, row.question[opening:], sides, scores["primary"], better)
            by_part.setdefault(part, []).append(item)
    return by_part


def good_direction(scores: Mapping[str, Any]) -> str:
    """Returns the good direction of the primary score: higher, lower or neither; neither if it was not measured."""
    main = scores["primary"]
    return next(
        (differences[main]["better"] for differences in scores["sections"].values() if main in differences), "neither"
    )


def _shared_opening_length(questions: Sequence[str]) -> int:
    """Returns the length of the opening lines that all questions share, such as an instruction.

    Without them, the headings show what differs.
    """
    lines = [question.split("\n")[:-1] for question in questions]  # the last line always stays
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*lines, strict=False))
    return sum(len(column[0]) + 1 for column in shared) if len(questions) > 1 else 0


def _item(
    row: Conversation, number: int, shown_question: str, sides: Mapping[str, Item], primary: str, better: str
) -> Item:
    """Returns a row's entry; `shown_question` is its question without the opening that all questions share."""
    marks = [sides[which]["scores"].get(primary) for which in MODELS]
    gain = _gain(marks, better)
    line = " ".join(shown_question.split())
    signs = {
        _direction(gain): gain is not None,
        "flip": gain is not None and set(marks) == {0.0, 1.0},
        "run-on": any(side["run_on"] for side in sides.values()),
        "doubted": any(side["doubted"] for side in sides.values()),
    }
    return {
        **sides,
        "number": number,
        "heading": line if len(line) <= HEADING else f"{line[: HEADING - 1]}…",
        "question": row.question if len(line) > HEADING or shown_question != row.question else "",
        "group": row.group,
        "marks": marks if None not in marks else None,
        "gain": gain,
        "signs": [sign for sign, holds in signs.items() if holds],
        "wanted": row.answer or str(row.fields.get("good_reply", "")),
        "wanted_title": "The row's own answer" if row.answer else "What a good reply does",
    }


def _model_side(
    reply: Mapping[str, Any], row: Conversation, scores: Mapping[str, float], metrics: Sequence[NamedSetting]
) -> Item:
    doubts = unsupported_statements(reply["text"], row, metrics)
    cut = str(reply.get("cut", ""))
    return {
        "text": reply["text"],
        "pieces": split_at_statements(reply["text"], doubts),
        "doubted": doubts,
        "stopped": reply["stopped"],
        "cut": cut.strip(),
        "run_on": not reply["stopped"] or bool(cut.strip()),
        "scores": scores,
    }


def _gain(marks: Sequence[float | None], better: str) -> float | None:
    before, after = marks
    if before is None or after is None or better == "neither":
        return None
    return before - after if better == "lower" else after - before


def _direction(gain: float | None) -> str:
    if gain is None or abs(gain) <= TOLERANCE:
        return "unchanged"
    return "better" if gain > 0 else "worse"


def reply_filters(items_by_part: Mapping[str, Sequence[Item]], metrics: Sequence[NamedSetting]) -> list[dict[str, Any]]:
    """Returns the page's filters as key, label and count of rows, without those that do not apply to this run."""
    items = [item for members in items_by_part.values() for item in members]
    signs = [sign for item in items for sign in item["signs"]]
    with_gain = [item for item in items if item["gain"] is not None]
    binary = bool(with_gain) and all(mark in (0.0, 1.0) for item in with_gain for mark in item["marks"])
    checks_claims = any(metric.name in ("grounded", "contradicted") for metric in metrics)
    statements = any(metric.name == "grounded" for metric in metrics)
    labels = {
        "better": ("better", bool(with_gain)),
        "worse": ("worse", bool(with_gain)),
        "unchanged": ("unchanged", bool(with_gain)),
        "flip": ("flips, 0 to 1 or 1 to 0", binary),
        "run-on": ("cut or run on", True),
        "doubted": ("unsupported statements" if statements else "contradicted statements", checks_claims),
    }
    filters = [{"key": "all", "label": "all", "count": len(items), "tuned": None}]
    for key, (label, applies) in labels.items():
        if applies:
            tuned = _count_tuned(items, key.replace("-", "_")) if key in ("run-on", "doubted") else None
            filters.append({"key": key, "label": label, "count": signs.count(key), "tuned": tuned})
    return filters


def _count_tuned(items: Sequence[Item], key: str) -> int:
    return sum(bool(item["tuned"][key]) for item in items)


def worst_items(items_by_part: Mapping[str, Sequence[Item]]) -> list[Item]:
    """Returns the rows whose primary score dropped most, the largest loss first."""
    worse = [item for items in items_by_part.values() for item in items if "worse" in item["signs"]]
    return sorted(worse, key=lambda item: float(item["gain"]))[:WORST]


def _by_row(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(item["part"], item["id"]): item for item in lines}


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")  # not splitlines(): JSON does not escape U+2028, which a reply may contain
    return [json.loads(line) for line in text.split("\n") if line]
