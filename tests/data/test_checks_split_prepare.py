"""Each check finds exactly the planted rows, the split is a function of seed and content, no row is lost."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.checks import Context, Finding
from tunesmith.data.conversation import Conversation, Origin, Turn, normalise
from tunesmith.data.prepare import SHOWN_ERRORS, Prepared, load, prepare, source_files
from tunesmith.data.profile import frequent, profile
from tunesmith.data.split import PARTS, split
from tunesmith.errors import DataError, RecipeError, Several
from tunesmith.find import entries, find
from tunesmith.recipe import Data, Named, Sample


def row(number: int, question: str, answer: str = "an answer", *, group: str = "", system: str = "") -> Conversation:
    turns = (Turn("system", system),) * bool(system) + (Turn("user", question), Turn("assistant", answer))
    return Conversation(f"r{number}", turns, Origin("rows.csv", number + 1), group)


def words(each: Conversation) -> int:
    return sum(len(turn.text.split()) for turn in each.turns)


def context(parts: dict[str, str] | None = None, max_tokens: int = 8) -> Context:
    return Context(words, max_tokens, parts or {})


def look(name: str, rows: Sequence[Conversation], given: Context | None = None, **options: Any) -> list[Finding]:
    return list(find("tunesmith.data.checks", name)(rows, given or context(), **options))


def found(findings: list[Finding]) -> list[tuple[str, str]]:
    for finding in findings:
        number = int(finding.row[1:])
        assert (finding.file, finding.line, finding.proposal) == ("rows.csv", number + 1, "drop")
    return [(finding.row, finding.message) for finding in findings]


# --- checks --------------------------------------------------------------------------------------------------


def test_empty_finds_silent_rows() -> None:
    rows = [
        row(1, "q"),
        row(2, " \n\t", "a"),
        row(3, "q", "\u2003"),
        row(4, "", ""),
        replace(row(5, "q"), turns=(Turn("system", ""), *row(5, "q").turns)),  # an empty system message is none
        replace(row(6, "q"), turns=(*row(6, "q", "").turns, *row(6, "r").turns)),
    ]
    expected = [("r2", "user"), ("r3", "assistant"), ("r4", "user"), ("r6", "assistant")]
    assert found(look("empty", rows)) == [(name, f"the {who}'s text is empty") for name, who in expected]


def test_duplicate_finds_later_copies() -> None:
    rows = [
        row(1, "How do I pay?", "Tap Pay."),
        row(2, "how do i  PAY", "tap pay"),
        row(3, "How do I pay?", "Call us."),
        row(4, "How do I pay!", "Tap, pay."),
        row(5, "How do I pay? Tap", "Pay."),  # the same words, another question
        row(6, "How do I pay?", "Tap Pay.", system="be kind"),
        row(7, "+", "plus"),
        row(8, "-", "plus"),
        row(9, " + ", "plus"),
        row(10, "What is C?", "A language."),
        row(11, "What is C++?", "A language."),
    ]
    first, plus = "repeats rows.csv line 2", "repeats rows.csv line 8"
    assert found(look("duplicate", rows)) == [("r2", first), ("r4", first), ("r9", plus)]
    assert [name for name, _ in found(look("duplicate", rows[::-1]))] == ["r7", "r2", "r1"]  # the first one stays


def test_leak_finds_training_rows_with_a_held_prompt() -> None:
    rows = [
        row(1, "How do I pay?", "x"),
        row(2, "how do I pay", "y"),
        row(3, "How do I pay?", "z"),
        row(4, "other"),
        row(5, "new"),
        row(6, "NEW!", system="be kind"),
        row(7, "valid one"),
        row(8, "Valid one."),
    ]
    parts = dict(
        zip([r.id for r in rows], ["train", "test", "train", "train", "unseen", "train", "valid", "train"], strict=True)
    )
    assert found(look("leak", rows, context(parts))) == [
        ("r1", "its prompt is also in test: rows.csv line 3"),
        ("r3", "its prompt is also in test: rows.csv line 3"),
        ("r6", "its prompt is also in unseen: rows.csv line 6"),
        ("r8", "its prompt is also in valid: rows.csv line 8"),
    ]
    assert look("leak", rows, context(dict.fromkeys(parts, "train"))) == []
    assert look("leak", rows, context(dict.fromkeys(parts, "test"))) == []


def test_leak_compares_the_turns_of_the_whole_prompt() -> None:
    def talk(number: int, *texts: str) -> Conversation:
        turns = tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
        return replace(row(number, ""), turns=turns)

    rows = [
        talk(1, "1 2", "3", "4", "5"),
        talk(2, "1", "2 3", "4", "6"),
        talk(3, "1 2", "3", "4!", "7"),
        talk(4, "4", "5"),
    ]
    parts = {"r1": "test", "r2": "train", "r3": "train", "r4": "train"}
    assert [name for name, _ in found(look("leak", rows, context(parts)))] == ["r3"]


def test_too_long_finds_rows_over_the_limit() -> None:
    rows = [row(1, "a b c", "d e"), row(2, "a b c", "d e f"), row(3, "a b", "c d", system="e f g")]
    assert found(look("too_long", rows, context(max_tokens=5))) == [
        ("r2", "6 tokens, limit 5"),
        ("r3", "7 tokens, limit 5"),
    ]
    assert found(look("too_long", rows, context(max_tokens=5), max_tokens=6)) == [("r3", "7 tokens, limit 6")]
    assert look("too_long", rows, context(max_tokens=7)) == []


@pytest.mark.parametrize("name", entries("tunesmith.data.checks"))
def test_a_check_finds_nothing_in_good_rows(name: str) -> None:
    rows = [row(n, f"question {n}") for n in range(1, 5)]
    parts = dict(zip([r.id for r in rows], PARTS, strict=True))
    assert look(name, rows, context(parts)) == look(name, [], context(parts)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("STRASSE straße", "strasse strasse"),
        ("Café cafe\u0301 ÉTÉ", "café café été"),
        ("ﬁne Ｆｕｌｌ ²", "fine full 2"),
        ("snake_case-and.dots", "snake case and dots"),
        ("終わり。終", "終わり 終"),
        ("a\u2028b\u00a0c\td\n", "a b c d"),
        ("Tap → Save 🙂", "tap → save 🙂"),
        ("->", ">"),
        ("--", "--"),
        ("C++ & C# 100%?", "c++ & c# 100%"),
        (" \n", ""),
        ("", ""),
    ],
)
def test_normalise_folds_what_people_call_the_same(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(normalise(text)) == expected


# --- split ---------------------------------------------------------------------------------------------------


def many(groups: int = 6, each: int = 10) -> list[Conversation]:
    pairs = [(group, number) for group in range(groups) for number in range(each)]
    return [row(i, f"how {g} {n}", f"so {n}", group=f"g{g}") for i, (g, n) in enumerate(pairs)]


def parted(rows: list[Conversation], seed: int = 1, **changes: Any) -> dict[str, str]:
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


@pytest.mark.parametrize("by", ["group", "rows"])
def test_the_split_does_not_hang_on_order(by: str) -> None:
    rows = many()
    options: dict[str, Any] = {"by": by, "unseen_groups": 2 if by == "group" else 0}
    first = parted(rows, **options)
    for seed in range(3):
        mixed = random.Random(seed).sample(rows, len(rows))
        assert parted(mixed, **options) == first
    assert parted(rows, 1, **options) == first  # and the same seed gives the same again
    others = [parted(rows, seed, **options) for seed in range(2, 6)]
    assert all(other != first for other in others)
    unseen = {frozenset(r.group for r in rows if other[r.id] == "unseen") for other in [first, *others]}
    assert len(unseen) > 1 or by == "rows"


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


@pytest.mark.parametrize(
    ("rows", "changes", "what", "next"),
    [
        (
            [*many(), row(99, "q")],
            {},
            "data.split.by is group, but rows have no group",
            "Set group in data.format to a column",
        ),
        ([], {}, "data.split.by is group, but rows have no group", "Set group in data.format to a column"),
        (many(), {"unseen_groups": 6}, "6 unseen groups of 6 leave none to train on", "Hold out fewer"),
        (many(), {"unseen_groups": 7}, "7 unseen groups of 6 leave none to train on", "Hold out fewer"),
        (
            many(6, 1),
            {"unseen_groups": 0},
            "every group has one row, so none can be held out",
            "Set data.split.by to rows",
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
        parts = parted(rows, seed, test=test, valid=valid, unseen_groups=unseen)
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


# --- load ----------------------------------------------------------------------------------------------------

COLUMNS = Named("columns", {"group": "topic"})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return path


def test_rows_are_loaded_with_place_group_and_fields(here: Path) -> None:
    plain = {"prompt": "q", "answer": "a", "topic": " t ", "n": 1, "tags": ["x"], "none": None}
    files = [write(here / "a.jsonl", [plain]), write(here / "b.jsonl", ["", {**plain, "answer": "b"}, plain])]
    rows = load(files, COLUMNS, "be kind").rows
    assert [str(each.origin) for each in rows] == ["a.jsonl line 1", "b.jsonl line 2", "b.jsonl line 3"]
    assert [each.answer for each in rows] == ["a", "b", "a"]
    assert {each.group for each in rows} == {"t"}
    assert rows[0].fields == {"prompt": "q", "answer": "a", "topic": " t ", "n": 1}
    assert [turn.text for turn in rows[0].turns] == ["be kind", "q", "a"]
    assert rows[2].id == f"{rows[0].id}-2"
    assert rows[1].id not in {rows[0].id, rows[2].id}
    assert [each.id for each in load(files, COLUMNS, None).rows] == [
        each.id for each in rows
    ]  # a name is of the row's own


@pytest.mark.parametrize(("bad", "where"), [(1, ["2"]), (2, ["2", "3"]), (3, ["2 (and 2 more rows)"])])
def test_rows_wrong_in_the_same_way_are_one_error(here: Path, bad: int, where: list[str]) -> None:
    good = {"prompt": "q", "answer": "a", "topic": "t"}
    path = write(here / "rows.jsonl", [good, *[{"prompt": "q", "topic": "t"}] * bad, good])
    with pytest.raises(Several) as caught:
        load([path], COLUMNS, None)
    what = "no column 'answer'. It has: prompt, topic. Set answer in data.format to one of them."
    advice = "Mend them, or add broken to data.checks: such rows are then dropped and counted."
    count = f"{bad} of {bad + 2} rows do not fit. {advice}"
    assert str(caught.value).split("\n") == [*(f"rows.jsonl line {place}: {what}" for place in where), count]


def test_rows_that_are_no_conversations_are_dropped_when_asked_and_counted(here: Path) -> None:
    good = [{"prompt": f"q{n}", "answer": "a", "topic": f"t{n % 3}"} for n in range(12)]
    path = write(here / "rows.jsonl", [*good, {"prompt": "q"}, {"prompt": "q", "answer": ["a"], "topic": "t"}])
    loaded = load([path], COLUMNS, None, drop_broken=True)
    assert [(f.check, f.line, f.message[:11], f.proposal) for f in loaded.broken] == [
        ("broken", 13, "no column '", "drop"),
        ("broken", 14, "'answer' ho", "drop"),
    ]
    made = prepare(loaded.rows, wanted(["broken"]), 1, replace(context(), broken=loaded.broken))
    assert (made.audit["read"], made.audit["dropped"]) == (14, {"broken": 2})
    assert sum(made.audit["parts"].values()) == 12
    with pytest.raises(Several, match="no column 'answer'"):  # nothing fits: that is the recipe's fault, not the rows'
        load([write(here / "all.jsonl", [{"prompt": "q"}] * 3)], COLUMNS, None, drop_broken=True)


@pytest.mark.parametrize("ways", [SHOWN_ERRORS, SHOWN_ERRORS + 7])
def test_many_ways_to_be_wrong_are_cut_and_counted(here: Path, ways: int) -> None:
    path = write(here / "rows.jsonl", [{"prompt": "q", f"c{n}": "x", "topic": "t"} for n in range(ways)])
    with pytest.raises(Several) as caught:
        load([path], COLUMNS, None)
    lines = str(caught.value).split("\n")
    assert [line.split(":")[0] for line in lines[:SHOWN_ERRORS]] == [
        f"rows.jsonl line {n + 1}" for n in range(SHOWN_ERRORS)
    ]
    rest = [f"rows.jsonl line 1: rows are wrong in {ways - SHOWN_ERRORS} more ways."]
    assert lines[SHOWN_ERRORS:] == (rest if ways > SHOWN_ERRORS else [])


def test_errors_of_several_files_come_together(here: Path) -> None:
    files = [
        write(here / "a.jsonl", [{"prompt": "q"}, "{"]),
        write(here / "b.csv", ["prompt,answer,topic", "q,a"]),
        here / "gone.json",
    ]
    with pytest.raises(Several) as caught:
        load(files, COLUMNS, None)
    assert [error.where for error in caught.value.errors if isinstance(error, DataError)] == [
        "a.jsonl line 1",
        "a.jsonl line 2 column 2",
        "b.csv line 2",
        "gone.json",
    ]


def test_no_rows_is_an_error(here: Path) -> None:
    path = write(here / "rows.csv", ["prompt,answer,topic"])
    with pytest.raises(DataError) as caught:
        load([path], COLUMNS, None)
    assert (caught.value.what, caught.value.where, caught.value.next) == (
        "there are no rows",
        str(path),
        "Check data.source",
    )


def test_sources_are_taken_in_their_order(here: Path) -> None:
    for name in ("b.csv", "a.csv", "z.jsonl"):
        write(here / name, [])
    assert [path.name for path in source_files(["z.jsonl", "*.csv"], here)] == ["z.jsonl", "a.csv", "b.csv"]
    assert source_files("a.csv", here) == [here / "a.csv"]


# --- prepare -------------------------------------------------------------------------------------------------


def wanted(checks: Sequence[Any] = ("empty", "duplicate", "leak", "too_long"), **parts: Any) -> Data:
    options = {"by": "group", "test": 0.2, "valid": 0.1, "unseen_groups": 1, **parts}
    return Data.model_validate({"source": "x", "format": "columns", "checks": list(checks), "split": options})


def prepared(rows: Sequence[Conversation], data: Data | None = None, seed: int = 1) -> Prepared:
    made = prepare(rows, data or wanted(), seed, context())
    kept = [each for members in made.parts.values() for each in members]
    assert made.audit["read"] == len(rows)
    assert made.audit["read"] == len(kept) + sum(made.audit["dropped"].values())
    assert made.audit["parts"] == {part: len(made.parts[part]) for part in PARTS}
    assert {each.id for each in kept} | {finding.row for finding in made.findings} == {each.id for each in rows}
    assert len({each.id for each in kept}) == len(kept)
    json.dumps(made.audit)
    return made


def test_every_row_is_kept_or_dropped_for_one_reason() -> None:
    long = "word " * 9
    bad = [
        row(101, "", "", group="g0"),
        row(102, "How 0 0!", "so 0", group="g0"),
        row(103, "q", long, group="g1"),
        row(104, "", long, group="g1"),  # two reasons, counted once, under the first
    ]
    made = prepared([*many(), *bad])
    assert made.audit["dropped"] == {"empty": 2, "duplicate": 1, "too_long": 1}
    assert made.audit["parts"] == {"train": 35, "valid": 5, "test": 10, "unseen": 10}
    assert [(f["check"], f["row"], f["file"], f["line"]) for f in made.audit["findings"]] == [
        ("empty", "r101", "rows.csv", 102),
        ("empty", "r104", "rows.csv", 105),
        ("duplicate", "r102", "rows.csv", 103),
        ("too_long", "r103", "rows.csv", 104),
        ("too_long", "r104", "rows.csv", 105),
    ]
    assert [f["message"] for f in made.audit["findings"]][2:4] == ["repeats rows.csv line 1", "10 tokens, limit 8"]
    assert made.audit["profile"]["rows"] == 60
    assert sorted(made.audit["groups"]["unseen"] + made.audit["groups"]["train"]) == [f"g{g}" for g in range(6)]


def test_a_leak_costs_the_training_copy_alone() -> None:
    rows, data = many(), wanted()
    held = [each for part in ("test", "valid", "unseen") for each in prepared(rows).parts[part]]
    copies = [row(200 + i, each.question.upper(), f"other {i}", group="g9") for i, each in enumerate(held)]
    everything = [*rows, *copies]
    parts = split(everything, seed=1, **data.split.model_dump())
    assert all(parts[each.id] != "train" for each in held)  # a new group moves no row of another
    leaked = {each.id for each in copies if parts[each.id] == "train"}
    assert 10 <= len(leaked) < len(copies)
    made = prepared(everything, data)
    assert {(finding.check, finding.row) for finding in made.findings} == {("leak", name) for name in leaked}
    assert made.audit["dropped"] == {"leak": len(leaked)}
    assert {each.id: part for part in PARTS for each in made.parts[part]} == {
        name: part for name, part in parts.items() if name not in leaked
    }
    assert made.findings[0].message == f"its prompt is also in {parts[held[0].id]}: {held[0].origin}"


def test_options_reach_the_checks() -> None:
    rows = many()
    made = prepared([*rows, row(101, "a b c", "d", group="g1")], wanted([{"too_long": {"max_tokens": 5}}]))
    assert made.audit["dropped"] == {}
    with pytest.raises(DataError) as caught:
        prepared(rows, wanted([{"too_long": {"max_tokens": 4}}]))
    assert caught.value.what == "the checks leave no row"
    assert caught.value.next == "Read audit.html, or ask for fewer checks in data.checks"


def test_a_sample_is_drawn_by_content_and_the_rest_is_counted() -> None:
    rows, data = many(), wanted()
    whole = prepared(rows, data)
    asked = data.model_copy(update={"sample": Sample(train=20, test=7)})
    made, turned = (prepare(order, asked, 1, context()) for order in (rows, rows[::-1]))
    assert made.audit["parts"] == {"train": 20, "valid": 5, "test": 7, "unseen": 10}
    assert made.audit["not_drawn"] == 60 - 42
    for part in PARTS:
        drawn = [each.id for each in made.parts[part]]
        assert drawn == [each.id for each in whole.parts[part] if each.id in set(drawn)]
        assert set(drawn) == {each.id for each in turned.parts[part]}
    with pytest.raises(DataError, match=r"data\.sample\.test asks for 11 rows, and the split gives 10"):
        prepare(rows, data.model_copy(update={"sample": Sample(test=11)}), 1, context())


def test_no_checks_keep_everything() -> None:
    rows = [*many(), row(101, "", "", group="g0"), row(102, "how 0 0", "so 0", group="g0")]
    made = prepared(rows, wanted([]))
    assert (made.findings, made.audit["dropped"], sum(made.audit["parts"].values())) == ([], {}, 62)


def test_all_training_rows_leaking_is_an_error() -> None:
    rows = [row(n, "the same", f"answer {n}") for n in range(1, 9)]
    with pytest.raises(DataError) as caught:
        prepared(rows, wanted(by="rows", unseen_groups=0))
    assert caught.value.what == "every training row leaks into the test"
    assert caught.value.next == "Split by group, or remove repeated prompts"


def test_the_same_rows_in_another_order_give_the_same_parts() -> None:
    rows = many()
    first = prepared(rows)
    for seed in range(3):
        again = prepared(random.Random(seed).sample(rows, len(rows)))
        for part in PARTS:
            assert {each.id for each in again.parts[part]} == {each.id for each in first.parts[part]}
    assert prepared(rows).audit == first.audit
    assert prepared(rows, seed=2).parts != first.parts


# --- profile -------------------------------------------------------------------------------------------------


def test_profile_counts_words_tokens_and_groups() -> None:
    rows = [
        row(1, "How do I pay?", 'Tap it\'s "Pay".', group="b"),
        row(2, "終 x", "", group="a"),
        row(3, "a b", "c", group="b"),
    ]
    found = profile(rows, words)
    assert (found["rows"], found["prompt_words"], found["answer_words"]) == (3, [4, 2, 2], [3, 0, 1])
    assert found["tokens"] == [7, 2, 3]
    assert list(found["groups"].items()) == [("a", 1), ("b", 2)]


def test_frequent_counts_a_text_once() -> None:
    texts = ["Tap the Save button, tap the save button", "TAP the save", "tap THE", "other words here"]
    assert frequent(texts, 3, 10) == [("tap the save", 2)]
    assert frequent(texts, 2, 10) == [("tap the", 3), ("the save", 2)]
    assert frequent(texts, 2, 1) == [("tap the", 3)]
    assert frequent([], 3, 10) == []


def test_personal_data_is_named_by_kind_and_place_and_never_repeated() -> None:
    rows = [
        row(1, "Mail sam@example.org please.", "Call 212-555-0123."),
        replace(row(2, "Who is Mira?", "Mira Quill bakes."), fields={"Applicant": "Mira Quill"}),
        row(3, "What is 2 + 2?", "4"),
    ]
    told = [(finding.row, finding.message) for finding in look("personal", rows, names=["Applicant"])]
    assert told == [
        ("r1", "email in the user's text, characters 5 to 20"),
        ("r1", "phone in the assistant's text, characters 5 to 17"),
        ("r2", "name in the user's text, characters 7 to 11"),
        ("r2", "name in the assistant's text, characters 0 to 10"),
    ]
    assert {finding.proposal for finding in look("personal", rows)} == {"keep"}
    assert {finding.proposal for finding in look("personal", rows, drop=True)} == {"drop"}
    assert [finding.row for finding in look("personal", rows, kinds=["phone"])] == ["r1"]


def test_secrets_cost_their_row() -> None:
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    findings = look("secrets", [row(1, "fine"), row(2, f"my key is {key}", "never share it")])
    assert [(f.row, f.proposal, f.message) for f in findings] == [
        ("r2", "drop", "aws key in the user's text, characters 10 to 30")
    ]
    assert key not in str(findings)


LONG = (
    "Please tell me in plain words how the small blue lamp in the hall of our old house is switched {} at night by hand"
)


def test_near_duplicates_stay_once() -> None:
    rows = [row(1, LONG.format("on"), "a"), row(2, "What?", "b"), row(3, LONG.format("off"), "a"), row(4, "What!", "b")]
    assert found(look("near_duplicate", rows)) == [
        ("r3", "nearly repeats rows.csv line 2"),
        ("r4", "nearly repeats rows.csv line 3"),
    ]
    assert found(look("near_duplicate", rows, threshold=1.0)) == [("r4", "nearly repeats rows.csv line 3")]


def test_near_leaks_cost_the_training_row() -> None:
    rows = [row(1, LONG.format("on")), row(2, LONG.format("off")), row(3, "Something else altogether")]
    parts = {"r1": "test", "r2": "train", "r3": "train"}
    (finding,) = look("near_leak", rows, context(parts))
    assert (finding.row, finding.proposal) == ("r2", "drop")
    assert finding.message.endswith("% that of rows.csv line 2 in test")
    assert look("near_leak", rows, context(dict.fromkeys(parts, "train"))) == []


def test_defects_are_told_by_kind_and_place() -> None:
    rows = [
        row(1, "How?", "1. Open the tab. 2. Tap the cart. 3. Tap the button."),
        row(2, "Who?", "Dear [Your Name], thank you for writing to us about the lamp."),
        row(3, "Why?", "Because the lamp is old and the switch is loose."),
    ]
    told = look("defects", rows)
    assert [(f.row, f.message.split(" at ")[0], f.proposal) for f in told] == [
        ("r1", "collapsed list", "keep"),
        ("r2", "placeholders", "keep"),
    ]
    assert [f.row for f in look("defects", rows, kinds=["placeholders"], drop=True) if f.proposal == "drop"] == ["r2"]
    with pytest.raises(RecipeError, match=r"unknown name 'placeholder'.*Did you mean 'placeholders'"):
        look("defects", rows, kinds=["placeholder"])


def test_ungrounded_answers_are_told_with_the_claim_and_its_reason() -> None:
    fields = {
        "Job Title": "Baker",
        "Hiring Company": "Crumb Lane Bakery",
        "Preferred Qualifications": "Experience with Excel",
        "Past Working Experience": "Baker at Morning Oven for 3 years",
        "Skillsets": "sourdough, ovens",
    }
    honest = "I am writing about the position of Baker at Crumb Lane Bakery. I worked for Morning Oven for three years."
    invented = honest.replace("three years", "eight years") + " I have long experience with Excel."
    rows = [
        replace(row(1, "Write.", honest), fields={**fields, "Letter": honest}),
        replace(row(2, "Write.", invented), fields={**fields, "Letter": invented}),
        row(3, "no fields", "I worked for Morning Oven for nine years."),
    ]
    told = look("ungrounded", rows)
    assert {f.row for f in told} == {"r2"}
    assert {f.message.split("'")[1] for f in told} == {"eight years", "Excel"}
    assert {f.proposal for f in told} == {"keep"}
    assert {f.proposal for f in look("ungrounded", rows, drop=True)} == {"drop"}
    assert {f.message.split("'")[1] for f in look("ungrounded", rows, fields=["Past Working Experience"])} >= {"Excel"}
