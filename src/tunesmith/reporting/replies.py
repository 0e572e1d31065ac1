"""The replies of a run, row by row: what each model said, which way the primary score went, and how to sift them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Named
from tunesmith.data.conversation import Conversation
from tunesmith.evaluation.comparison import plural
from tunesmith.evaluation.power import SAME
from tunesmith.reporting.unsupported import doubted, pieces

WORST = 10
HEADING = 140  # characters of a question that its line shows
MODELS = ("base", "tuned")
Item = dict[str, Any]


def title(part: str, kind: str) -> str:
    """A part of the held-out rows in words; `kind` is what the rows' groups are called."""
    known = {
        "all": "all held-out rows",
        "test": f"new questions, {plural(kind)} known from training",
        "unseen": f"{plural(kind)} never seen in training",
    }
    return known.get(part, part)


def read_items(
    folder: Path, rows: Mapping[str, Sequence[Conversation]], scores: Mapping[str, Any], metrics: Sequence[Named]
) -> dict[str, list[Item]]:
    """What the page shows of each row, by part, in the rows' order."""
    replies = {which: _by_row(_lines(folder / f"replies/{which}.jsonl")) for which in MODELS}
    values, better = _by_row(scores["rows"]), good_side(scores)
    shown: dict[str, list[Item]] = {}
    opening, number = _opening([row.question for members in rows.values() for row in members]), 0
    for part, members in rows.items():
        for row in members:
            number += 1
            key = (part, row.id)
            sides = {which: _side(replies[which][key], row, values[key][which], metrics) for which in MODELS}
            item = _item(row, number, row.question[opening:], sides, scores["primary"], better)
            shown.setdefault(part, []).append(item)
    return shown


def good_side(scores: Mapping[str, Any]) -> str:
    """Which way the primary score is good: higher, lower or neither; neither where no section has it."""
    main = scores["primary"]
    return next((found[main]["better"] for found in scores["sections"].values() if main in found), "neither")


def _opening(questions: Sequence[str]) -> int:
    """The characters of the lines with which all questions open: an instruction that would hide what differs."""
    lines = [question.split("\n")[:-1] for question in questions]  # each keeps its last line
    same = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*lines, strict=False))
    return sum(len(each[0]) + 1 for each in same) if len(questions) > 1 else 0


def _item(row: Conversation, number: int, told: str, sides: Mapping[str, Item], primary: str, better: str) -> Item:
    """`told` is the row's question without what all of them open with."""
    marks = [sides[which]["scores"].get(primary) for which in MODELS]
    gain = _gain(marks, better)
    line = " ".join(told.split())
    signs = {
        _tone(gain): gain is not None,
        "flip": gain is not None and set(marks) == {0.0, 1.0},
        "run-on": any(side["run_on"] for side in sides.values()),
        "doubted": any(side["doubted"] for side in sides.values()),
    }
    return {
        **sides,
        "number": number,
        "heading": line if len(line) <= HEADING else f"{line[: HEADING - 1]}…",
        "question": row.question if len(line) > HEADING or told != row.question else "",
        "group": row.group,
        "marks": marks if None not in marks else None,
        "gain": gain,
        "signs": [sign for sign, holds in signs.items() if holds],
        "wanted": row.answer or str(row.fields.get("good_reply", "")),
        "wanted_title": "The row's own answer" if row.answer else "What a good reply does",
    }


def _side(reply: Mapping[str, Any], row: Conversation, scores: Mapping[str, float], metrics: Sequence[Named]) -> Item:
    found = doubted(reply["text"], row, metrics)
    cut = str(reply.get("cut", ""))
    return {
        "text": reply["text"],
        "pieces": pieces(reply["text"], found),
        "doubted": found,
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


def _tone(gain: float | None) -> str:
    if gain is None or abs(gain) <= SAME:
        return "unchanged"
    return "better" if gain > 0 else "worse"


def sieves(shown: Mapping[str, Sequence[Item]], metrics: Sequence[Named]) -> list[dict[str, Any]]:
    """The ways to sift the replies: key, label and count of rows; those that say nothing of this run are left out."""
    items = [item for members in shown.values() for item in members]
    signs = [sign for item in items for sign in item["signs"]]
    told = [item for item in items if item["gain"] is not None]
    shares = bool(told) and all(mark in (0.0, 1.0) for item in told for mark in item["marks"])
    doubts = any(metric.name in ("grounded", "contradicted") for metric in metrics)
    statements = any(metric.name == "grounded" for metric in metrics)
    wanted = {
        "better": ("better", bool(told)),
        "worse": ("worse", bool(told)),
        "unchanged": ("unchanged", bool(told)),
        "flip": ("flips, 0 to 1 or 1 to 0", shares),
        "run-on": ("cut or run on", True),
        "doubted": ("unsupported statements" if statements else "contradicted statements", doubts),
    }
    found = [{"key": "all", "label": "all", "count": len(items), "tuned": None}]
    for key, (label, fits) in wanted.items():
        if fits:
            tuned = _by_tuned(items, key.replace("-", "_")) if key in ("run-on", "doubted") else None
            found.append({"key": key, "label": label, "count": signs.count(key), "tuned": tuned})
    return found


def _by_tuned(items: Sequence[Item], key: str) -> int:
    return sum(bool(item["tuned"][key]) for item in items)


def worst(shown: Mapping[str, Sequence[Item]]) -> list[Item]:
    """The rows that lost most of the primary score, the greatest loss first."""
    lost = [item for items in shown.values() for item in items if "worse" in item["signs"]]
    return sorted(lost, key=lambda item: float(item["gain"]))[:WORST]


def _by_row(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(item["part"], item["id"]): item for item in lines}


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")  # not splitlines(): a reply may hold U+2028, which JSON leaves as it is
    return [json.loads(line) for line in text.split("\n") if line]
