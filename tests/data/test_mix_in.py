"""Rows of another table for the training: drawn by seed, each one accounted for, none with a prompt that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from handmade import context, loaded, row, talk
from tunesmith.config.recipe import MixIn, NamedSetting
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Finding
from tunesmith.data.mix_in import (
    GROUP,
    HeldOut,
    MixedRows,
    add_to_account,
    describe,
    draw,
    drawn_from,
    is_mixed_in,
    mark,
    too_few,
)
from tunesmith.errors import DataError

NOTHING = HeldOut([], [])
COLORS = ("red", "blue", "green", "black", "white", "brown", "pink", "gray")


def general(count: int = 20) -> list[Conversation]:
    """Marked rows of general conversation with different prompts."""
    return [
        mark(row(number, f"name thing {number} {COLORS[number % 8]}", f"thing {number}", group="g"))
        for number in range(count)
    ]


def drawn(
    folder: Path, rows: Sequence[Conversation], held_out: HeldOut = NOTHING, *, seed: int = 1, **changes: Any
) -> MixedRows:
    given = {"count": 5, "broken": (), "checks": (), "sink": None, **changes}
    mix_in = MixIn.model_validate({"source": "x", "rows": given["count"]})
    found = loaded(rows, folder, given["broken"])
    made = draw(found, mix_in, held_out, context(max_tokens=20), seed, checks=given["checks"], sink=given["sink"])
    account = made.audit
    assert account["drawn"] == len(made.rows)
    assert account["read"] == account["drawn"] + account["not_drawn"] + sum(account["left_out"].values())
    return made


def test_rows_are_drawn_by_seed_and_stay_in_their_order(tmp_path: Path) -> None:
    rows = general()
    one, again, other = (drawn(tmp_path, rows, seed=seed) for seed in (1, 1, 2))
    ids = [each.id for each in one.rows]
    assert ids == [each.id for each in again.rows] != [each.id for each in other.rows]
    assert ids == [each.id for each in rows if each.id in ids]  # the order of the table
    assert {each.id for each in drawn(tmp_path, rows[::-1]).rows} == set(ids)  # whatever that order is
    assert all(is_mixed_in(each) and each.group == GROUP for each in one.rows) and not is_mixed_in(row(1, "a"))
    assert one.audit == {
        "asked": 5, "read": 20, "drawn": 5, "not_drawn": 15, "left_out": {}, "pseudonyms": 0, "sources": [],
    }  # fmt: skip


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    held_out = HeldOut(
        [row(50, "Name thing 3 BLACK!"), row(51, "please tell me the ways to name the thing 4")],
        [row(52, "What is the capital of Peru?")],
    )
    rows = [
        *general(5),  # of them 3 has the prompt of a held-out row
        mark(row(60, "please tell me the ways to name the thing 5")),  # nearly that of another
        mark(row(61, "what is the capital of Peru")),
        mark(row(62, "long", "word " * 20)),
        mark(row(63, "", "an answer")),
        mark(row(64, "a token", "ends</s>")),
        mark(row(65, "name thing 1 blue", "thing 1")),
        mark(row(66, "mail", "to jo@example.org")),
    ]
    broken = [Finding("broken", "rows.csv line 9", "rows.csv", 9, "line", "no answer", "drop")]
    findings: list[Finding] = []
    mail = NamedSetting("personal", {"do": "quarantine"})
    made = drawn(
        tmp_path, rows, held_out, count=50, broken=broken, sink=findings.append,
        checks=[mail, NamedSetting("imbalance", {})],
    )  # fmt: skip
    assert made.audit["left_out"] == {
        "held_out_prompt": 2, "unreadable": 1, "ability_prompt": 1, "too_long": 1, "empty": 1, "special_token": 1,
        "duplicate": 1, "personal": 1,
    }  # fmt: skip
    assert {each.question for each in made.rows} == {f"name thing {n} {COLORS[n]}" for n in (0, 1, 2, 4)}
    assert {finding.check for finding in findings} == {"broken", "too_long", "empty", "special_token", "personal"}
    assert too_few(made.audit) == "data.mix_in.rows asks for 50 rows, but only 4 can be used."
    sentence = describe(made.audit, 44)
    assert sentence.startswith(
        "4 of the 44 training rows are mixed in (data.mix_in); 13 rows were read, 9 were left out"
    )
    assert "the prompt of a held-out row, or nearly: 2" in sentence and sentence.endswith(too_few(made.audit))
    assert describe(made.audit).startswith("4 rows can be mixed in (data.mix_in); 13 rows were read")


def test_a_looser_limit_of_the_split_applies_to_mixed_in_rows_too(tmp_path: Path) -> None:
    rows = [mark(row(1, "how to open the green door")), mark(row(2, "sing"))]
    close = [row(9, "how to open the green gate")]
    assert len(drawn(tmp_path, rows, HeldOut(close, [])).rows) == 2
    made = drawn(tmp_path, rows, HeldOut(close, [], together=0.5))
    assert [each.question for each in made.rows] == ["sing"] and made.audit["left_out"] == {"held_out_prompt": 1}


def test_conversations_of_several_turns_are_compared_whole(tmp_path: Path) -> None:
    rows = [mark(talk(1, "hi", "hello", "and you", "fine")), mark(talk(2, "hi", "hello"))]
    made = drawn(tmp_path, rows, HeldOut([talk(9, "hi", "hello", "and you", "good")], []))
    assert [each.id for each in made.rows] == ["mixed-r2"] and made.audit["left_out"] == {"held_out_prompt": 1}


def test_more_rows_are_examined_until_enough_can_be_used(tmp_path: Path) -> None:
    rows = [
        mark(row(number, f"{number} {COLORS[number % 8]}", "a " * (20 if number % 4 else 1))) for number in range(400)
    ]
    made = drawn(tmp_path, rows, count=80)
    assert len(made.rows) == 80 and made.audit["not_drawn"] > 0 and made.audit["left_out"]["too_long"] > 100


def test_no_usable_row_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no row can be mixed in: too long: 1\. Give other rows in data\.mix_in\.source"
    ):
        drawn(tmp_path, [mark(row(1, "long", "word " * 20))])


def test_the_account_counts_mixed_in_rows_among_the_training_rows(tmp_path: Path) -> None:
    account = {
        "read": 9, "parts": {"train": 7, "test": 2}, "groups": {"train": ["a"], "test": ["a"]},
        "leaks": {"prompts": 0, "answers": 1},
    }  # fmt: skip
    assert add_to_account(account, None, []) == account
    mixed = drawn(tmp_path, general())
    whole = add_to_account(account, mixed, [row(1, "else", mixed.rows[0].answer)])
    assert whole["parts"] == {"train": 12, "test": 2} and whole["groups"]["train"] == ["a", GROUP]
    assert (whole["read"], whole["leaks"]["answers"], whole["mixed_in"]["drawn"]) == (9, 2, 5)
    half = drawn_from(whole["mixed_in"], [*mixed.rows[:2], row(1, "own")])
    assert (half["drawn"], half["not_drawn"], half["read"]) == (2, 18, 20)
