"""Which rows are kept away from training. The split depends on seed, group and content, not on the rows' order.

Rows whose prompts are the same or nearly so are a cluster, and a cluster goes to one side as a whole.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import spoken
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
    """What the split needs of a row."""

    id: str
    group: str
    key: str


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together, in the group whose share they are taken from."""

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
    """Row id -> train, valid, test (rows unseen, groups seen) or unseen (whole groups held out).

    With by='group' each remaining group gives its own share, at least one row where the share is not zero, as long
    as one is left for training; with by='whole_groups' a group goes to one part as a whole, as unseen where it is not
    for training or validation. Rows whose prompts are at least `together` alike (None: equal prompts are not looked for
    either) go to one part, groups held out apart.
    With by='given' the column `column` says train, valid, test or unseen, and nothing is moved.
    Raises DataError when groups are missing or nothing is left to train on.
    """
    if by == "given":
        return _given(rows, column or "split")
    items = [_Item(row.id, row.group, _key(seed, row.question, row.answer, row.id)) for row in rows]
    if by != "rows" and (not items or any(not item.group for item in items)):
        raise DataError(f"data.split.by is {by}, but rows have no group", next="Set group in data.format to a column")
    names = {item.group for item in items} if by != "rows" else {""}
    if unseen_groups >= len(names) > 0 and unseen_groups:
        raise DataError(f"{unseen_groups} unseen groups of {len(names)} leave none to train on", next="Hold out fewer")
    held = set(sorted(names, key=lambda name: _key(seed, "group", name))[:unseen_groups])
    parts = {item.id: "unseen" for item in items if by != "rows" and item.group in held}
    left = [(place, item) for place, item in enumerate(items) if item.id not in parts]
    units = _units(left, _clusters(rows, together), by)
    by_group: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        by_group[unit.group].append(unit)
    named_test = "unseen" if by == "whole_groups" else "test"
    for members in by_group.values():
        for unit, part in _deal(members, test, valid, named_test):
            parts |= dict.fromkeys(unit.ids, part)
    if test > 0 and not {"test", "unseen"} & set(parts.values()):
        raise DataError(_none_held(by, by_group), next=_advice(by, by_group, len(left)))
    if not any(part == "train" for part in parts.values()):
        raise DataError("the split leaves no row to train on", next="Lower data.split.test and data.split.valid")
    return parts


def _given(rows: Sequence[Conversation], column: str) -> dict[str, str]:
    parts = {}
    for row in rows:
        word = str(row.fields.get(column, "")).strip().casefold()
        if word not in WORDS:
            what = f"column '{column}' says {word!r}" if column in row.fields else f"has no column '{column}'"
            raise DataError(what, where=str(row.origin), next=f"data.split.column must say one of: {', '.join(WORDS)}")
        parts[row.id] = WORDS[word]
    if "train" not in parts.values():
        raise DataError(f"no row has 'train' in column '{column}'", next="Check data.split.column")
    return parts


def _clusters(rows: Sequence[Conversation], together: float | None) -> list[list[int]]:
    """The places of rows whose prompts are alike, in groups of two and more."""
    if together is None:
        return []
    from tunesmith.data.duplicates import clusters, near_pairs

    return clusters(len(rows), near_pairs([spoken(row.prompt) for row in rows], threshold=together))


def _units(left: Sequence[tuple[int, _Item]], clusters: Iterable[Sequence[int]], by: str) -> list[_Unit]:
    """What is dealt out: clusters and single rows; with by='whole_groups' groups, those that a cluster joins as one."""
    items = dict(left)
    joined = _Joined()
    for cluster in clusters:
        members = [place for place in cluster if place in items]
        for place in members[1:]:
            joined.join(members[0], place)
    if by == "whole_groups":
        first: dict[str, int] = {}
        for place, item in left:
            joined.join(first.setdefault(item.group, place), place)
    gathered: dict[int, list[_Item]] = defaultdict(list)
    for place, item in left:
        gathered[joined.root(place)].append(item)
    units = []
    for same in gathered.values():
        least = min(same, key=lambda item: item.key)
        group = least.group if by == "group" else ""
        units.append(_Unit(group, least.key, tuple(item.id for item in same)))
    return units


class _Joined:
    """Disjoint sets (Tarjan and van Leeuwen 1984, path halving)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, place: int) -> int:
        while (parent := self._parent.get(place, place)) != place:
            self._parent[place] = self._parent.get(parent, parent)
            place = parent
        return place

    def join(self, one: int, other: int) -> None:
        self._parent[self.root(other)] = self.root(one)


def _deal(units: Sequence[_Unit], test: float, valid: float, named_test: str) -> Iterable[tuple[_Unit, str]]:
    """Each unit with its part: the first that fit make up the test's share of the rows, the next the validation's."""
    count = sum(len(unit.ids) for unit in units)
    tests = min(_share(test, count), count - 1)  # a group's last row is for training
    room = {named_test: tests, "valid": min(_share(valid, count), count - 1 - tests)}
    for unit in sorted(units, key=lambda unit: unit.key):
        part = next((part for part, free in room.items() if len(unit.ids) <= free), "train")
        if part in room:
            room[part] -= len(unit.ids)
        yield unit, part


def _none_held(by: str, by_group: dict[str, list[_Unit]]) -> str:
    if by == "group" and all(len(unit.ids) == 1 for units in by_group.values() for unit in units):
        return "every group has one row, so none can be held out"
    if by == "whole_groups":
        return "no group is as small as the test's share"
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
            f"The smallest has {min(sizes, default=0)} of {count} rows, groups that share a prompt taken as one. Raise "
            "data.split.test, or set data.split.unseen_groups"
        )
    return (
        f"{largest} of {count} rows have the same prompt or nearly so and stay on one side. Raise data.split.together, "
        "or set it to null where one prompt for all is meant"
    )


def _share(share: float, count: int) -> int:
    return max(1, math.floor(share * count + 0.5)) if share > 0 else 0


def _key(seed: int, *texts: str) -> str:
    text = "\x1f".join((str(seed), *texts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
