"""Splits rows into parts, depending on seed, group and content, but not on their order, and counts leaks between parts.

Rows with equal or similar prompts form a cluster, which goes to one part as a whole.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import dialog_text, prompt_key
from tunesmith.errors import DataError

PARTS = ("train", "valid", "test", "unseen")
WORDS = {word: word for word in PARTS} | {
    "training": "train",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "testing": "test",
}


@dataclass(frozen=True)
class _Item:
    """The data of a row that the split needs."""

    id: str
    group: str
    key: str


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together, and the group whose share they count toward."""

    group: str
    key: str
    ids: tuple[str, ...]


def split(
    rows: Sequence[Conversation],
    *,
    by: str,
    test: float,
    valid: float,
    unseen_groups: int,
    seed: int,
    together: float | None = 0.8,
    column: str | None = None,
) -> dict[str, str]:
    """Maps row ids to train, valid, test (new rows of known groups) or unseen (whole groups held out).

    With by='group', each remaining group contributes its own share, at least one row if the share is not zero and one
    row is left for training. With by='whole_groups', a group goes to one part as a whole, unseen instead of test. Rows
    whose prompts have similarity `together` or more go to one part, except in held-out groups; with None, not even
    equal prompts are kept together. With by='given', `column` names the part and nothing is moved.
    Raises DataError if groups are missing or no row is left for training.
    """
    if by == "given":
        return _by_column(rows, column or "split")
    items = [_Item(row.id, row.group, _key(seed, row.question, row.answer, row.id)) for row in rows]
    if by != "rows" and (not items or any(not item.group for item in items)):
        raise DataError(f"data.split.by is {by}, but rows have no group", next="Set group in data.format to a column")
    names = {item.group for item in items} if by != "rows" else {""}
    if unseen_groups >= len(names) > 0 and unseen_groups:
        raise DataError(f"{unseen_groups} unseen groups of {len(names)} leave none to train on", next="Hold out fewer")
    held_out = set(sorted(names, key=lambda name: _key(seed, "group", name))[:unseen_groups])
    parts = {item.id: "unseen" for item in items if by != "rows" and item.group in held_out}
    remaining = [(index, item) for index, item in enumerate(items) if item.id not in parts]
    units = _units(remaining, _clusters(rows, together), by)
    by_group: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        by_group[unit.group].append(unit)
    test_part = "unseen" if by == "whole_groups" else "test"
    for members in by_group.values():
        for unit, part in _assign(members, test, valid, test_part):
            parts |= dict.fromkeys(unit.ids, part)
    if test > 0 and not {"test", "unseen"} & set(parts.values()):
        raise DataError(_nothing_held_out(by, by_group), next=_advice(by, by_group, len(remaining)))
    if not any(part == "train" for part in parts.values()):
        raise DataError("the split leaves no row to train on", next="Lower data.split.test and data.split.valid")
    return parts


def _by_column(rows: Sequence[Conversation], column: str) -> dict[str, str]:
    parts = {}
    for row in rows:
        word = str(row.fields.get(column, "")).strip().casefold()
        if word not in WORDS:
            message = f"column '{column}' says {word!r}" if column in row.fields else f"has no column '{column}'"
            raise DataError(
                message, where=str(row.origin), next=f"data.split.column must say one of: {', '.join(WORDS)}"
            )
        parts[row.id] = WORDS[word]
    if "train" not in parts.values():
        raise DataError(f"no row has 'train' in column '{column}'", next="Check data.split.column")
    return parts


def _clusters(rows: Sequence[Conversation], together: float | None) -> list[list[int]]:
    """The indices of rows with similar prompts, in groups of two or more."""
    if together is None:
        return []
    from tunesmith.data.duplicates import clusters, near_pairs

    return clusters(len(rows), near_pairs([dialog_text(row.prompt) for row in rows], threshold=together))


def _units(remaining: Sequence[tuple[int, _Item]], clusters: Iterable[Sequence[int]], by: str) -> list[_Unit]:
    """The units to assign: clusters and single rows; with by='whole_groups' groups, joined if a cluster spans them."""
    items = dict(remaining)
    sets = _DisjointSets()
    for cluster in clusters:
        members = [index for index in cluster if index in items]
        for index in members[1:]:
            sets.join(members[0], index)
    if by == "whole_groups":
        first_in_group: dict[str, int] = {}
        for index, item in remaining:
            sets.join(first_in_group.setdefault(item.group, index), index)
    items_by_root: dict[int, list[_Item]] = defaultdict(list)
    for index, item in remaining:
        items_by_root[sets.root(index)].append(item)
    units = []
    for unit_items in items_by_root.values():
        first_item = min(unit_items, key=lambda item: item.key)
        group = first_item.group if by == "group" else ""
        units.append(_Unit(group, first_item.key, tuple(item.id for item in unit_items)))
    return units


class _DisjointSets:
    """Disjoint sets (Tarjan and van Leeuwen 1984, path halving)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, index: int) -> int:
        while (parent := self._parent.get(index, index)) != index:
            self._parent[index] = self._parent.get(parent, parent)
            index = parent
        return index

    def join(self, first: int, second: int) -> None:
        self._parent[self.root(second)] = self.root(first)


def _assign(units: Sequence[_Unit], test: float, valid: float, test_part: str) -> Iterable[tuple[_Unit, str]]:
    """Assigns each unit to a part: in key order to test, then to valid, while they fit the share, else to train."""
    count = sum(len(unit.ids) for unit in units)
    tests = min(_share(test, count), count - 1)  # the last row of a group is for training
    capacity = {test_part: tests, "valid": min(_share(valid, count), count - 1 - tests)}
    for unit in sorted(units, key=lambda unit: unit.key):
        part = next((part for part, free in capacity.items() if len(unit.ids) <= free), "train")
        if part in capacity:
            capacity[part] -= len(unit.ids)
        yield unit, part


def _nothing_held_out(by: str, by_group: dict[str, list[_Unit]]) -> str:
    if by == "group" and all(len(unit.ids) == 1 for units in by_group.values() for unit in units):
        return "every group has one row, so none can be held out"
    if by == "whole_groups":
        return "no group is as small as the share of the test"
    if by == "rows" and sum(len(unit.ids) for units in by_group.values() for unit in units) == 1:
        return "one row is left, so none can be held out"
    return "the rows cannot be divided: too many share a prompt" if by != "group" else "no group can be divided"


def _advice(by: str, by_group: dict[str, list[_Unit]], count: int) -> str:
    sizes = [len(unit.ids) for units in by_group.values() for unit in units]
    largest = max(sizes, default=0)
    if by == "group" and largest == 1:
        return "Set data.split.by to rows"
    if by == "rows" and count == 1:
        return "Add rows, or set data.split.test to 0"
    if by == "whole_groups":
        return (
            f"The smallest has {min(sizes, default=0)} of {count} rows (groups that share a prompt count as one). "
            "Raise data.split.test, or set data.split.unseen_groups"
        )
    return (
        f"{largest} of {count} rows have equal or similar prompts and stay in one part. Raise data.split.together, "
        "or set it to null if one prompt for all rows is intended"
    )


def _share(share: float, count: int) -> int:
    return max(1, math.floor(share * count + 0.5)) if share > 0 else 0


def _key(seed: int, *texts: str) -> str:
    text = "\x1f".join((str(seed), *texts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def overlap(parts: Mapping[str, Sequence[Conversation]], *, together: float | None) -> dict[str, Any]:
    """The number of training rows that share a prompt, an answer or both with a held-out row.

    `prompts`, `answers` and `pairs` are equal without case, spacing and punctuation; `near_prompts` have similarity
    `together` or more (absent without it). `example` is one near-duplicate pair.
    """
    from tunesmith.data.duplicates import leaks

    train = parts["train"]
    held_out = [row for part, rows in parts.items() if part != "train" for row in rows]
    prompts = {prompt_key(row) for row in held_out}
    pairs = {(prompt_key(row), normalize(row.answer)) for row in held_out}
    answers = {normalize(row.answer) for row in held_out}
    counts: dict[str, Any] = {
        "held": len(held_out),
        "prompts": sum(prompt_key(row) in prompts for row in train),
        "answers": sum(normalize(row.answer) in answers for row in train),
        "pairs": sum((prompt_key(row), normalize(row.answer)) in pairs for row in train),
    }
    if together is not None:
        texts = [dialog_text(row.prompt) for row in train], [dialog_text(row.prompt) for row in held_out]
        near_pairs = leaks(*texts, threshold=together) if held_out else []
        counts |= {"near_prompts": len({pair.first for pair in near_pairs}), "threshold": together}
        if near_pairs:
            train_row, held_out_row = train[near_pairs[0].first], held_out[near_pairs[0].second]
            counts["example"] = f"{train_row.origin} and {held_out_row.origin}"
    return counts
