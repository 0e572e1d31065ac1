"""Each row is decided once; the overlap check counts what training and held-out rows share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tunesmith
from handmade import row, talk
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import (
    EXAMPLES,
    EXAMPLES_PER_ROW,
    ORDER,
    Finding,
    Proposal,
    RowDecisions,
    prompt_key,
    row_finding,
    table_finding,
)
from tunesmith.data.split import overlap
from tunesmith.errors import DataError, RunError

FINDINGS = st.lists(
    st.builds(
        lambda check, number, wish: row_finding(check, row(number, "q"), "m", wish),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 6),
        st.sampled_from(get_args(Proposal)),
    ),
    max_size=40,
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(FINDINGS, st.integers(0, 40))
def test_the_strongest_decision_wins_and_the_first_that_asked_for_it_is_the_reason(
    findings: list[Finding], cut: int
) -> None:
    told: list[Finding] = []
    ledger = RowDecisions(["a", "b", "c", "silent"], told.append)
    ledger.add(findings[:cut])
    ledger.add(iter(findings[cut:]))
    assert told == findings
    for number in range(7):
        own = [finding for finding in findings if finding.row == f"r{number}"]
        strongest = max((finding.proposal for finding in own), key=ORDER.index, default="keep")
        assert ledger.decision(f"r{number}") == strongest
        assert ledger.reason(f"r{number}") == next((f.check for f in own if f.proposal == strongest), "")
    rows = {finding.row for finding in findings}
    counts: Counter[str] = Counter()
    for wish in ORDER:
        counts[wish] = sum(ledger.counts(wish).values())
        assert counts[wish] == sum(ledger.decision(name) == wish for name in rows)
    assert counts.total() == len(rows)
    plain = ledger.describe()
    assert list(plain) == ["a", "b", "c", "silent"]
    for check, facts in plain.items():
        own = [finding for finding in findings if finding.check == check]
        assert facts["found"] == sum(facts["proposals"].values()) == len(own)
        assert facts["rows"] == len({finding.row for finding in own})
        assert facts["proposals"] == dict(Counter(finding.proposal for finding in own))
        shown = facts["examples"]
        assert {each["row"] for each in shown} == {finding.row for finding in own}
        assert [each for each in map(asdict, own) if each in shown][:1] == shown[:1]
        assert all(each in [asdict(finding) for finding in own] for each in shown)


def test_a_finding_about_the_table_has_no_row() -> None:
    ledger = RowDecisions([])
    ledger.add([table_finding("imbalance", "one answer for all"), table_finding("imbalance", "two")])
    assert (ledger.counts("keep"), ledger.decision("")) == ({}, "keep")
    facts = ledger.describe()["imbalance"]
    assert (facts["found"], facts["rows"], len(facts["examples"])) == (2, 0, 2)


def test_rows_that_could_not_be_read_have_their_decision_by_place() -> None:
    ledger = RowDecisions(["broken"])
    ledger.add(Finding("broken", f"f line {n}", "f", n, "line", "m", "drop") for n in (3, 4))
    assert ledger.counts("drop") == {"broken": 2}


def test_examples_are_few_and_counts_are_whole() -> None:
    ledger = RowDecisions(["a"])
    ledger.add(row_finding("a", row(n, "q"), "m", "keep") for n in range(EXAMPLES + 5))
    facts = ledger.describe()["a"]
    assert (facts["found"], facts["rows"], len(facts["examples"])) == (EXAMPLES + 5, EXAMPLES + 5, EXAMPLES)
    assert facts["examples"][0]["row"] == "r0"


def test_one_row_does_not_fill_the_examples() -> None:
    ledger = RowDecisions(["a"])
    ledger.add(row_finding("a", row(n, "q"), f"{again}", "keep") for n in (1, 2) for again in range(9))
    facts = ledger.describe()["a"]
    assert (facts["found"], facts["rows"]) == (18, 2)
    assert [each["row"] for each in facts["examples"]] == ["r1"] * EXAMPLES_PER_ROW + ["r2"] * EXAMPLES_PER_ROW


# --- proof ---------------------------------------------------------------------------------------------------

LONG = (
    "Please tell me in plain words how the small blue lamp in the hall of our old house is switched {} at night by hand"
)


def test_the_overlap_counts_training_rows_by_what_they_share() -> None:
    parts = {
        "train": [
            row(1, "How do I pay?", "Tap Pay."),  # prompt and answer
            row(2, "how do i pay", "Call us."),  # prompt
            row(3, LONG.format("on"), "x"),  # nearly a prompt
            row(4, "quite another question", "TAP pay"),  # answer
            row(5, "nothing shared", "nothing at all"),
            talk(6, "first", "a", "second", "b"),  # whole conversations are compared
        ],
        "valid": [row(11, "How do I pay?", "tap, pay"), talk(12, "first", "z", "second", "c")],
        "test": [row(13, LONG.format("off"), "y")],
        "unseen": [],
    }
    found = overlap(parts, together=0.8)
    assert found == {
        "held": 3,
        "prompts": 2,
        "answers": 2,
        "pairs": 1,
        "near_prompts": 3,
        "threshold": 0.8,
        "example": "rows.csv line 2 and rows.csv line 12",
    }
    assert overlap(parts, together=None) == {"held": 3, "prompts": 2, "answers": 2, "pairs": 1}
    assert overlap({**parts, "valid": [], "test": []}, together=0.8) == {
        "held": 0,
        "prompts": 0,
        "answers": 0,
        "pairs": 0,
        "near_prompts": 0,
        "threshold": 0.8,
    }


WORDS = st.sampled_from(["pay", "Pay!", "send", "where", "WHERE?"])
ROWS = st.lists(st.tuples(WORDS, WORDS), max_size=8)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(ROWS, ROWS)
def test_the_overlap_equals_counting_one_by_one(train: list[tuple[str, str]], held: list[tuple[str, str]]) -> None:
    learnt, kept = ([row(n, *texts) for n, texts in enumerate(part)] for part in (train, held))

    def both(one: Conversation, other: Conversation) -> tuple[bool, bool]:
        return prompt_key(one) == prompt_key(other), normalize(one.answer) == normalize(other.answer)

    found = overlap({"train": learnt, "test": kept}, together=1.0)
    assert found["prompts"] == sum(any(both(one, other)[0] for other in kept) for one in learnt)
    assert found["answers"] == sum(any(both(one, other)[1] for other in kept) for one in learnt)
    assert found["pairs"] == sum(any(all(both(one, other)) for other in kept) for one in learnt)
    assert found["near_prompts"] == found["prompts"]  # at 1.0 the texts are so short that like is equal


# --- the command that refuses -----------------------------------------------------------------------------------


def leaking(rows_file: Path) -> None:
    import json

    same = {"topic": "t0", "completion": "1. Open it.\n2. Tap Save."}
    lines = [json.dumps({**same, "prompt": "how to do it all at once?", "completion": f"{n}. Go."}) for n in range(20)]
    rows_file.write_text(rows_file.read_text() + "".join(line + "\n" for line in lines))


def test_training_on_test_prompts_is_refused_unless_allowed(
    recipe_file: Callable[..., Path], rows_file: Path, tmp_path: Path
) -> None:
    leaking(rows_file)
    split = {"by": "group", "test": 0.15, "valid": 0.15, "together": None}
    apart: dict[str, Any] = {"data__split": split, "data__checks": ["empty"], "train__epochs": 1}
    recipe = read_recipe(str(recipe_file(**apart)))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    said: list[str] = []
    tunesmith.prepare(recipe, run, said.append)
    leaks = run.read_json("audit.json")["leaks"]
    assert leaks["prompts"] > 0
    assert any("training rows have the same or nearly the same prompt as a held-out row" in text for text in said)
    with pytest.raises(DataError) as caught:
        tunesmith.train(recipe, run)
    assert caught.value.what.startswith(f"{leaks['prompts']} training rows have the same or nearly the same prompt")
    assert caught.value.where == str(run / "audit.html")
    assert "data.allow_leaks" in caught.value.next
    assert not (run / "adapter").exists()
    allowed = read_recipe(str(recipe_file(**apart, data__allow_leaks=True)))
    tunesmith.prepare(allowed, run)
    tunesmith.train(allowed, run)
    assert (run / "adapter/adapter_model.safetensors").is_file()
    mended = read_recipe(str(recipe_file(data__checks=["empty", "leak"], data__split=split, name="repaired")))
    other = tunesmith.open_run(mended, tmp_path / "runs")
    tunesmith.prepare(mended, other)
    assert other.read_json("audit.json")["leaks"]["prompts"] == 0


def test_training_before_preparing_is_said(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = read_recipe(str(recipe_file()))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    with pytest.raises(RunError, match=r"prepare is not finished\. Run: tunesmith prepare"):
        tunesmith.train(recipe, run)


def test_rows_prepared_before_leaks_were_counted_are_not_trained_on(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = read_recipe(str(recipe_file()))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    run.write_json(
        "audit.json", {name: value for name, value in run.read_json("audit.json").items() if name != "leaks"}
    )
    with pytest.raises(RunError, match="prepared by an older version"):
        tunesmith.train(recipe, run)
