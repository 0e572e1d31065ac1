"""The split is a function of seed and content, and rows with like prompts stay on one side."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import many, row
from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.duplicates import clusters, near_pairs
from tunesmith.data.split import PARTS, split
from tunesmith.errors import DataError


def parted(rows: Sequence[Conversation], seed: int = 1, **changes: Any) -> dict[str, str]:
    return split(rows, seed=seed, **{"by": "group", "test": 0.2, "valid": 0.1, "unseen_groups": 2, **changes})


def test_every_group_gives_its_share_and_unseen_groups_everything() -> None:
    rows = many()
    parts = parted(rows)
    assert parts.keys() == {each.id for each in rows}
    by_group = {f"g{g}": Counter(parts[each.id] for each in rows if each.group == f"g{g}") for g in range(6)}
    unseen = [name for name, counts in by_group.items() if counts == {"unseen": 10}]
    assert len(unseen) == 2
    for name in by_group.keys() - set(unseen):
        assert by_group[name] == {"train": 7, "test": 2, "valid": 1}, name


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.1, 10, 1), (0.15, 10, 2), (0.25, 10, 3), (0.1, 4, 1), (0.01, 50, 1), (0.0, 50, 0), (0.5, 5, 3)],
)
def test_shares_are_rounded_and_at_least_one_row(share: float, count: int, expected: int) -> None:
    parts = parted(many(1, count), by="rows", test=share, valid=0.0, unseen_groups=0)
    assert Counter(parts.values())["test"] == expected
    assert set(parts.values()) <= {"train", "test"}


@pytest.mark.parametrize("by", ["group", "rows", "whole_groups"])
def test_the_split_does_not_hang_on_order(by: str) -> None:
    rows = many()
    options: dict[str, Any] = {"by": by, "unseen_groups": 2 if by == "group" else 0}
    first = parted(rows, **options)
    for seed in range(3):
        mixed = random.Random(seed).sample(rows, len(rows))
        assert parted(mixed, **options) == first
    assert parted(rows, 1, **options) == first  # and the same seed gives the same again
    others = [parted(rows, seed, **options) for seed in range(2, 6)]
    assert any(other != first for other in others)
    assert by == "whole_groups" or all(other != first for other in others)
    unseen = {frozenset(r.group for r in rows if other[r.id] == "unseen") for other in [first, *others]}
    assert len(unseen) > 1 or by == "rows"


def test_content_and_not_the_place_decides() -> None:
    rows = many(1, 40)
    first = parted(rows, by="rows", unseen_groups=0)
    other = parted(
        [replace(each, turns=row(0, "new " + each.question).turns) for each in rows], by="rows", unseen_groups=0
    )
    assert first != other


def test_rows_that_come_or_go_in_one_group_leave_the_others() -> None:
    rows = many()
    first, fewer = (
        parted(rows),
        parted([each for each in rows if each.group != "g3" or each.id in ("r30", "r31", "r32")]),
    )
    assert {name: part for name, part in fewer.items() if name not in ("r30", "r31", "r32")} == {
        each.id: first[each.id] for each in rows if each.group != "g3"
    }


def test_by_rows_ignores_groups() -> None:
    rows = many()
    without = [replace(each, group="") for each in rows]
    parts = parted(rows, by="rows", unseen_groups=0)
    assert parts == parted(without, by="rows", unseen_groups=0)
    assert Counter(parts.values()) == {"train": 42, "test": 12, "valid": 6}


NO_GROUP = ("data.split.by is group, but rows have no group", "Set group in data.format to a column")


@pytest.mark.parametrize(
    ("rows", "changes", "what", "next"),
    [
        ([*many(), row(99, "q")], {}, *NO_GROUP),
        ([], {}, *NO_GROUP),
        (many(), {"unseen_groups": 6}, "6 unseen groups of 6 leave none to train on", "Hold out fewer"),
        (many(), {"unseen_groups": 7}, "7 unseen groups of 6 leave none to train on", "Hold out fewer"),
        (
            many(6, 1),
            {"unseen_groups": 0},
            "every group has one row, so none can be held out",
            "Set data.split.by to rows",
        ),
        (
            [row(1, "q")],
            {"by": "rows", "unseen_groups": 0},
            "one row is left, so none can be held out",
            "Add rows, or set data.split.test to 0",
        ),
        (
            [row(n, "Tell me a joke", f"joke {n}") for n in range(20)],
            {"by": "rows", "unseen_groups": 0},
            "the rows cannot be divided: too many share a prompt",
            "20 of 20 rows have equal or similar prompts and stay in one part. Raise data.split.together, "
            "or set it to null if one prompt for all rows is intended",
        ),
        (
            [row(n, f"Tell me a joke {n // 5}", f"joke {n}", group=f"g{n // 5}") for n in range(20)],
            {"unseen_groups": 0, "together": 1.0},
            "no group can be divided",
            "5 of 20 rows have equal or similar prompts and stay in one part. Raise data.split.together, "
            "or set it to null if one prompt for all rows is intended",
        ),
    ],
)
def test_splits_that_cannot_be(rows: list[Conversation], changes: dict[str, Any], what: str, next: str) -> None:
    with pytest.raises(DataError) as caught:
        parted(rows, **changes)
    assert (caught.value.what, caught.value.next) == (what, next)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.integers(2, 9), min_size=2, max_size=5),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.integers(0, 4),
    st.integers(0, 99),
)
def test_any_split_counts_every_row_once(sizes: list[int], test: float, valid: float, unseen: int, seed: int) -> None:
    rows = [replace(each, group=f"g{g}") for g, n in enumerate(sizes) for each in many(1, n)]
    rows = [replace(each, id=f"r{i}") for i, each in enumerate(rows)]
    try:
        parts = parted(rows, seed, test=test, valid=valid, unseen_groups=unseen, together=None)
    except DataError as error:
        few = unseen >= len(sizes)
        assert few == ("unseen groups" in error.what)
        assert few or min(sizes) <= 2  # otherwise each group keeps a row to train on
        return
    assert parts.keys() == {each.id for each in rows}
    assert set(parts.values()) <= set(PARTS)
    for group in range(len(sizes)):
        counts = Counter(parts[each.id] for each in rows if each.group == f"g{group}")
        assert counts["unseen"] in (0, sizes[group])
        if not counts["unseen"]:
            assert (counts["test"] > 0) == (test > 0)
    assert len({each.group for each in rows if parts[each.id] == "unseen"}) == unseen


# --- clusters ------------------------------------------------------------------------------------------------

FORMS = [  # pairs of these are under 0.5 alike; a number behind each makes near copies of it
    "Please tell me in plain words how the small blue lamp in the hall of our old house is switched on by hand",
    "Which of the four trains that leave the harbour before noon stops at the market where fresh fish is sold",
    "My neighbour keeps eleven hens and asks whether a fox could climb the low wall behind the orchard in winter",
    "What would a careful person pack for nine rainy days on a bicycle along the northern coast in late autumn",
    "Explain to a child of seven why bread dough grows larger when it rests under a cloth beside the warm stove",
    "Write two lines for a card that thanks the librarian who found the lost atlas with the hand-drawn maps",
]


@st.composite
def crowds(draw: st.DrawFn) -> list[Conversation]:
    """Rows of a few groups, many of which share a form of words, or a prompt but for case and marks."""
    rows: list[Conversation] = []
    count = draw(st.integers(8, 40))
    for number in range(count):
        form = draw(st.integers(0, len(FORMS)))
        ends = draw(st.sampled_from(["", "?", " today", " now"]))
        question = f"question {number} of its own" if form == len(FORMS) else FORMS[form] + ends
        question = question.upper() if draw(st.booleans()) else question
        rows.append(row(number, question, f"answer {number}", group=f"g{draw(st.integers(0, 3))}"))
    return rows


@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    crowds(), st.sampled_from(["rows", "group", "whole_groups"]), st.integers(0, 9), st.sampled_from([0.6, 0.8, 1.0])
)
def test_like_prompts_never_straddle_the_parts(rows: list[Conversation], by: str, seed: int, together: float) -> None:
    try:
        parts = parted(rows, seed, by=by, unseen_groups=0, together=together)
    except DataError as error:
        assert re.search("divided|one row|no row to train on|no group is as small", error.what)
        return
    assert parts.keys() == {each.id for each in rows}
    groups = clusters(len(rows), near_pairs([each.question for each in rows], threshold=together))
    for group in groups:
        assert len({parts[rows[place].id] for place in group}) == 1
    same: dict[str, set[str]] = defaultdict(set)
    for each in rows:
        same[normalize(each.question)].add(parts[each.id])
    assert all(len(found) == 1 for found in same.values())
    assert "train" in parts.values()
    if by == "whole_groups":
        by_group = {each.group: {parts[other.id] for other in rows if other.group == each.group} for each in rows}
        assert all(len(found) == 1 for found in by_group.values())
        assert set(parts.values()) <= {"train", "valid", "unseen"}


@settings(max_examples=25, derandomize=True, deadline=None)
@given(crowds(), st.integers(0, 9), st.randoms(use_true_random=False))
def test_clusters_are_dealt_alike_in_any_order(rows: list[Conversation], seed: int, chance: random.Random) -> None:
    def dealt(order: Sequence[Conversation]) -> dict[str, str] | str:
        try:
            return parted(order, seed, by="rows", unseen_groups=0)
        except DataError as error:
            return error.what

    assert dealt(chance.sample(rows, len(rows))) == dealt(rows)


def test_a_held_out_group_stays_whole_when_a_cluster_reaches_into_it() -> None:
    rows = [*many(), *(row(100 + g, FORMS[0], f"answer {g}", group=f"g{g}") for g in range(6))]
    parts = parted(rows)
    for group in range(6):
        found = {parts[each.id] for each in rows if each.group == f"g{group}"}
        assert found == {"unseen"} or "unseen" not in found
    assert len({parts[f"r{100 + g}"] for g in range(6) if parts[f"r{100 + g}"] != "unseen"}) == 1


def test_whole_groups_go_to_one_part_and_the_rest_is_unseen() -> None:
    rows = many(20, 5)
    parts = parted(rows, by="whole_groups", unseen_groups=0)
    by_group = {g: {parts[each.id] for each in rows if each.group == f"g{g}"} for g in range(20)}
    assert all(len(found) == 1 for found in by_group.values())
    assert Counter(parts.values()) == {"train": 70, "unseen": 20, "valid": 10}
    held = parted(rows, by="whole_groups", unseen_groups=3, test=0.0)
    assert Counter(held.values()) == {"train": 80, "unseen": 15, "valid": 5}  # 0.1 of 85 is 9, one group


def test_groups_too_large_for_the_share_are_said() -> None:
    with pytest.raises(DataError) as caught:
        parted(many(4, 10), by="whole_groups", unseen_groups=0)
    assert caught.value.what == "no group is as small as the share of the test"
    assert caught.value.next == (
        "The smallest has 10 of 40 rows (groups that share a prompt count as one). Raise data.split.test, "
        "or set data.split.unseen_groups"
    )


def test_a_group_of_whole_groups_needs_a_name() -> None:
    with pytest.raises(DataError, match=r"data\.split\.by is whole_groups, but rows have no group"):
        parted([row(1, "q"), row(2, "r")], by="whole_groups", unseen_groups=0)


def test_without_together_each_row_is_for_itself() -> None:
    rows = [row(n, "Tell me a joke", f"joke {n}") for n in range(20)]
    parts = parted(rows, by="rows", unseen_groups=0, together=None)
    assert Counter(parts.values()) == {"train": 14, "test": 4, "valid": 2}


def before(
    rows: Sequence[Conversation], *, by: str, test: float, valid: float, unseen: int, seed: int
) -> dict[str, str]:
    """The split of single rows, written plainly: the order of hashes, the first to the test, the next to validation."""

    def key(*texts: str) -> str:
        return hashlib.sha256("\x1f".join((str(seed), *texts)).encode()).hexdigest()

    def share(part: float, count: int) -> int:
        return max(1, math.floor(part * count + 0.5)) if part > 0 else 0

    groups: dict[str, list[Conversation]] = defaultdict(list)
    for each in rows:
        groups[each.group if by == "group" else ""].append(each)
    held = sorted(groups, key=lambda name: key("group", name))[:unseen]
    parts = {}
    for name, members in groups.items():
        members.sort(key=lambda each: key(each.question, each.answer, each.id))
        tests = min(share(test, len(members)), len(members) - 1)
        valids = min(share(valid, len(members)), len(members) - 1 - tests)
        for place, each in enumerate(members):
            part = "test" if place < tests else "valid" if place < tests + valids else "train"
            parts[each.id] = "unseen" if name in held else part
    return parts


@pytest.mark.parametrize(("by", "unseen"), [("rows", 0), ("group", 0), ("group", 3)])
@pytest.mark.parametrize("together", [None, 0.8])
def test_single_prompts_are_dealt_by_the_order_of_their_hashes(by: str, unseen: int, together: float | None) -> None:
    rows = [replace(each, group=f"g{n % 7}") for n, each in enumerate(many(1, 90))]
    for seed in range(3):
        expected = before(rows, by=by, test=0.15, valid=0.1, unseen=unseen, seed=seed)
        assert parted(rows, seed, by=by, test=0.15, unseen_groups=unseen, together=together) == expected


def test_half_a_surrogate_pair_is_split_like_any_text() -> None:
    rows = [row(n, f"half \ud83d of {n}", f"so {n}") for n in range(10)]
    assert len(parted(rows, by="rows", unseen_groups=0)) == 10


# --- given ---------------------------------------------------------------------------------------------------


def test_a_column_says_the_part_and_nothing_is_moved() -> None:
    words = ["train", " Validation ", "TEST", "unseen", "dev", "train"]
    rows = [row(n, "one prompt for all", f"a{n}", side=word) for n, word in enumerate(words)]
    parts = parted(rows, by="given", column="side", unseen_groups=0)
    assert list(parts.values()) == ["train", "valid", "test", "unseen", "valid", "train"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ([{"side": "train"}, {"side": "holdout"}], "column 'side' says 'holdout'"),
        ([{"side": "train"}, {"other": "train"}], "has no column 'side'"),
        ([{"side": "test"}, {"side": "test"}], "no row has 'train' in column 'side'"),
    ],
)
def test_a_column_that_does_not_say_it_is_an_error(fields: list[dict[str, str]], what: str) -> None:
    rows = [row(n, f"q{n}", **values) for n, values in enumerate(fields)]
    with pytest.raises(DataError) as caught:
        parted(rows, by="given", column="side", unseen_groups=0)
    assert caught.value.what == what
    assert "data.split.column" in caught.value.next
