"""No row is lost: what is read is kept, quarantined or dropped, each for one reason."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import context, loaded, many, row
from tunesmith.config.recipe import Data, NamedSetting, Sample
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Finding
from tunesmith.data.prepare import Prepared, audit, prepare
from tunesmith.data.split import PARTS, split
from tunesmith.errors import DataError

CHECKS = ("empty", "duplicate", "leak", "too_long")


def wanted(checks: Sequence[Any] = CHECKS, **parts: Any) -> Data:
    options = {"by": "group", "test": 0.2, "valid": 0.1, "unseen_groups": 1, "together": None, **parts}
    return Data.model_validate({"source": "x", "format": "columns", "checks": list(checks), "split": options})


def prepared(
    rows: Sequence[Conversation], data: Data | None = None, seed: int = 1, broken: Sequence[Finding] = ()
) -> tuple[Prepared, dict[str, list[Conversation]], list[Finding]]:
    """What `prepare` makes of rows, its parts as lists, and the findings; the account is checked on the way."""
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        given_rows = loaded(rows, Path(folder), broken)
        made = prepare(given_rows, data or wanted(), seed, context(broken=broken), sink=findings.append)
        parts = {part: list(members) for part, members in made.parts.items()}
        aside = [each.id for each in made.quarantined]
    kept = [each.id for members in parts.values() for each in members]
    account = made.audit
    assert account["read"] == len(rows) + len(broken)
    assert account["read"] == len(kept) + account["not_drawn"] + len(aside) + sum(account["dropped"].values())
    assert sum(account["quarantined"].values()) == len(aside)
    assert account["parts"] == {part: len(parts[part]) for part in PARTS}
    assert len({*kept, *aside}) == len(kept) + len(aside)
    json.dumps(account)
    return made, parts, findings


def test_every_row_is_kept_or_dropped_for_one_reason() -> None:
    long = "word " * 9
    bad = [
        row(101, "", "", group="g0"),
        row(102, "How 0 0!", "so 0", group="g0"),
        row(103, "q", long, group="g1"),
        row(104, "", long, group="g1"),  # two reasons, counted once, under the first
    ]
    made, parts, findings = prepared([*many(), *bad])
    assert made.audit["dropped"] == {"empty": 2, "duplicate": 1, "too_long": 1}
    assert made.audit["parts"] == {"train": 35, "valid": 5, "test": 10, "unseen": 10}
    of_rows = [f for f in findings if f.row]
    assert [(f.check, f.row, f.file, f.line) for f in of_rows] == [
        ("empty", "r101", "rows.csv", 102),
        ("empty", "r104", "rows.csv", 105),
        ("duplicate", "r102", "rows.csv", 103),
        ("too_long", "r103", "rows.csv", 104),
        ("too_long", "r104", "rows.csv", 105),
    ]
    assert [f.message for f in of_rows][2:4] == ["repeats rows.csv line 1", "10 tokens, limit 8"]
    assert {name: facts["found"] for name, facts in made.audit["checks"].items()} == {
        "empty": 2,
        "duplicate": 1,
        "too_long": 2,
        "leak": sum(f.check == "leak" for f in findings),
    }
    assert made.audit["checks"]["too_long"]["examples"] == [asdict(f) for f in of_rows if f.check == "too_long"]
    assert made.audit["profile"]["rows"] == 60
    assert sorted(made.audit["groups"]["unseen"] + made.audit["groups"]["train"]) == [f"g{g}" for g in range(6)]
    ids = {each.id for members in parts.values() for each in members} | {f.row for f in of_rows}
    assert ids == {each.id for each in [*many(), *bad]}


def test_a_leak_costs_the_training_copy_alone() -> None:
    rows, data = many(), wanted()
    held = [each for part in ("test", "valid", "unseen") for each in prepared(rows)[1][part]]
    copies = [row(200 + i, each.question.upper(), f"other {i}", group="g9") for i, each in enumerate(held)]
    everything = [*rows, *copies]
    parts = split(everything, seed=1, **data.split.model_dump())
    assert all(parts[each.id] != "train" for each in held)  # a new group moves no row of another
    leaked = {each.id for each in copies if parts[each.id] == "train"}
    assert 10 <= len(leaked) < len(copies)
    made, by_part, findings = prepared(everything, data)
    told = [finding for finding in findings if finding.row]
    assert {(finding.check, finding.row) for finding in told} == {("leak", name) for name in leaked}
    assert made.audit["dropped"] == {"leak": len(leaked)}
    assert {each.id: part for part in PARTS for each in by_part[part]} == {
        name: part for name, part in parts.items() if name not in leaked
    }
    assert told[0].message == f"its prompt is also in {parts[held[0].id]}: {held[0].origin}"
    assert made.audit["leaks"]["prompts"] == 0


def test_like_prompts_kept_together_leave_nothing_to_leak() -> None:
    rows = many()
    copies = [row(200 + i, each.question.upper(), f"other {i}", group=each.group) for i, each in enumerate(rows)]
    made, by_part, _ = prepared([*rows, *copies], wanted(together=1.0, unseen_groups=0))
    assert made.audit["dropped"] == {}
    leaks = made.audit["leaks"]
    assert (leaks["prompts"], leaks["near_prompts"], leaks["threshold"]) == (0, 0, 1.0)
    assert by_part["test"]
    apart, _, _ = prepared([*rows, *copies], wanted([], unseen_groups=0))
    assert apart.audit["leaks"]["prompts"] > 0
    assert "near_prompts" not in apart.audit["leaks"]


def test_rows_set_aside_are_kept_apart_and_counted() -> None:
    rows = [*many(), row(101, "How 0 0!", "so 0", group="g0"), row(102, "", "", group="g0")]
    checks = [{"empty": {"do": "drop"}}, {"duplicate": {"do": "quarantine"}}]
    made, parts, _ = prepared(rows, wanted(checks))
    assert (made.audit["dropped"], made.audit["quarantined"]) == ({"empty": 1}, {"duplicate": 1})
    assert "r101" not in {each.id for members in parts.values() for each in members}


def test_a_leak_may_be_set_aside_too() -> None:
    rows = [row(n, f"the {'same' if n < 8 else n}", f"answer {n}") for n in range(40)]
    data = wanted([{"leak": {"do": "quarantine"}}], by="rows", unseen_groups=0)
    made, _, findings = prepared(rows, data)
    leaking = {f.row for f in findings if f.row}
    assert leaking and made.audit["quarantined"] == {"leak": len(leaking)}
    assert made.audit["dropped"] == {}


def test_options_reach_the_checks() -> None:
    rows = many()
    made, _, _ = prepared([*rows, row(101, "a b c", "d", group="g1")], wanted([{"too_long": {"max_tokens": 5}}]))
    assert made.audit["dropped"] == {}
    with pytest.raises(DataError) as caught:
        prepared(rows, wanted([{"too_long": {"max_tokens": 4}}]))
    assert caught.value.what == "the checks leave no row of 60: too_long 60"
    assert caught.value.next == "Read audit.html, or ask for fewer checks in data.checks"


def test_a_sample_is_drawn_by_content_and_the_rest_is_counted() -> None:
    rows, data = many(), wanted()
    _, whole, _ = prepared(rows, data)
    asked = data.model_copy(update={"sample": Sample(train=20, test=7)})
    (made, drawn, _), (_, turned, _) = (prepared(order, asked) for order in (rows, rows[::-1]))
    assert made.audit["parts"] == {"train": 20, "valid": 5, "test": 7, "unseen": 10}
    assert made.audit["not_drawn"] == 60 - 42
    for part in PARTS:
        ids = [each.id for each in drawn[part]]
        assert ids == [each.id for each in whole[part] if each.id in set(ids)]
        assert set(ids) == {each.id for each in turned[part]}
    with pytest.raises(DataError, match=r"data\.sample\.test asks for 11 rows, but the split has 10"):
        prepared(rows, data.model_copy(update={"sample": Sample(test=11)}))


def test_no_checks_keep_everything() -> None:
    rows = [*many(), row(101, "", "", group="g0"), row(102, "how 0 0", "so 0", group="g0")]
    made, _, findings = prepared(rows, wanted([]))
    assert (findings, made.audit["dropped"], sum(made.audit["parts"].values())) == ([], {}, 62)
    assert made.audit["checks"] == {}


def test_all_training_rows_leaking_is_an_error() -> None:
    rows = [row(n, "the same", f"answer {n}") for n in range(1, 9)]
    with pytest.raises(DataError) as caught:
        prepared(rows, wanted(by="rows", unseen_groups=0))
    assert caught.value.what == "every training row leaks into the test"
    assert caught.value.next == "Split by group, or remove repeated prompts"


def test_the_same_rows_in_another_order_give_the_same_parts() -> None:
    rows = many()
    made, first, _ = prepared(rows)
    for seed in range(3):
        _, again, _ = prepared(random.Random(seed).sample(rows, len(rows)))
        for part in PARTS:
            assert {each.id for each in again[part]} == {each.id for each in first[part]}
    assert prepared(rows)[0].audit == made.audit
    assert prepared(rows, seed=2)[1] != first


# --- any proposals -------------------------------------------------------------------------------------------

DO = st.sampled_from(["keep", "repair", "quarantine", "drop"])
TEXTS = st.sampled_from(
    ["", "how do I pay", "HOW do I pay?", "where is my parcel", "a b c d e f g h i", "Ask [Your Name]"]
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=3, max_size=14),
    st.dictionaries(st.sampled_from(["empty", "duplicate", "too_long", "placeholder", "leak", "near_leak"]), DO),
    st.integers(0, 4),
    st.integers(0, 9),
)
def test_read_is_kept_set_aside_or_dropped(
    texts: list[tuple[str, str]], wishes: Mapping[str, str], broken: int, seed: int
) -> None:
    rows = [row(number, question, answer) for number, (question, answer) in enumerate(texts)]
    unread = [
        Finding("broken", f"rows.csv line {900 + n}", "rows.csv", 900 + n, "line", "?", "drop") for n in range(broken)
    ]
    checks = [{name: {"do": wish}} for name, wish in wishes.items()] + ["broken"] * bool(broken)
    try:
        made, parts, findings = prepared(rows, wanted(checks, by="rows", unseen_groups=0), seed, unread)
    except DataError as error:
        assert any(words in error.what for words in ("leave no row", "leaks", "one row is left"))
        return
    order = ["keep", "repair", "quarantine", "drop"]
    strongest = {each.id: "keep" for each in rows}
    for finding in findings:
        if finding.row in strongest and order.index(finding.proposal) > order.index(strongest[finding.row]):
            strongest[finding.row] = finding.proposal
    kept = {each.id for members in parts.values() for each in members}
    assert kept == {name for name, fate in strongest.items() if fate in ("keep", "repair")}
    assert sum(made.audit["quarantined"].values()) == sum(fate == "quarantine" for fate in strongest.values())
    assert sum(made.audit["dropped"].values()) == sum(fate == "drop" for fate in strongest.values()) + broken
    assert made.audit["dropped"].get("broken", 0) == broken


# --- looked at, not split ------------------------------------------------------------------------------------


def test_an_audit_proposes_and_drops_nothing(tmp_path: Path) -> None:
    rows = [*many(), row(101, "", "", group="g0"), row(102, "How 0 0!", "so 0", group="g0")]
    unread = [Finding("broken", "rows.csv line 900", "rows.csv", 900, "line", "?", "drop")]
    told: list[Finding] = []
    checks = [NamedSetting(name, {}) for name in (*CHECKS, "broken")]
    given_rows = loaded(rows, tmp_path, unread)
    ledger, account = audit(given_rows, checks, context(broken=unread), sink=told.append)
    assert (account["read"], account["unread"], account["kept"]) == (63, 1, 60)
    assert account["read"] == account["kept"] + sum(account["dropped"].values()) + sum(account["quarantined"].values())
    assert account["dropped"] == {"empty": 1, "duplicate": 1, "broken": 1}
    assert set(account["checks"]) == {"empty", "duplicate", "too_long", "broken"}  # a leak needs a split
    assert account["checks"]["too_long"] == {"found": 0, "rows": 0, "proposals": {}, "examples": []}
    assert account["profile"]["rows"] == 62  # all that can be read
    assert "parts" not in account
    assert [(f.check, f.row) for f in told] == [
        ("empty", "r101"),
        ("duplicate", "r102"),
        ("broken", "rows.csv line 900"),
    ]
    assert (ledger.decision("r101"), ledger.reason("r101"), ledger.decision("r1")) == ("drop", "empty", "keep")
    json.dumps(account)
