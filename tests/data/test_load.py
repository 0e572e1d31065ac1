"""Rows are loaded with their place, or everything wrong with them is said at once; what is repaired is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handmade import context, opened, write
from tunesmith.config.recipe import Data, NamedSetting
from tunesmith.data.conversation import Conversation
from tunesmith.data.load import SHOWN_CHANGES, SHOWN_ERRORS, LoadedRows, load_rows
from tunesmith.data.prepare import prepare
from tunesmith.data.privacy import PseudonymMap
from tunesmith.data.repair_rows import RowRepair, changes_from_plain, changes_to_dicts, undo_row
from tunesmith.data.sources import open_sources
from tunesmith.errors import DataError, MultipleErrors

COLUMNS = NamedSetting("columns", {"group": "topic"})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(files: list[Path], wanted: NamedSetting = COLUMNS, system: str | None = None, **options: Any) -> LoadedRows:
    return load_rows(opened(*files), wanted, system, into=Path("rows.arrow"), **options)


def test_rows_are_loaded_with_place_group_and_fields(here: Path) -> None:
    plain = {"prompt": "q", "answer": "a", "topic": " t ", "n": 1, "tags": ["x"], "none": None}
    files = [write(here / "a.jsonl", [plain]), write(here / "b.jsonl", ["", {**plain, "answer": "b"}, plain])]
    loaded = read(files, COLUMNS, "be kind")
    rows: list[Conversation] = list(loaded.rows)
    assert [str(each.origin) for each in rows] == ["a.jsonl line 1", "b.jsonl line 2", "b.jsonl line 3"]
    assert [each.answer for each in rows] == ["a", "b", "a"]
    assert {each.group for each in rows} == {"t"}
    assert rows[0].fields == {"prompt": "q", "answer": "a", "topic": " t ", "n": 1}
    assert [turn.text for turn in rows[0].turns] == ["be kind", "q", "a"]
    assert rows[2].id == f"{rows[0].id}-2"
    assert rows[1].id not in {rows[0].id, rows[2].id}
    assert [each.id for each in read(files).rows] == [each.id for each in rows]  # a name is of the row's own
    assert [(facts["file"], facts["rows"]) for facts in loaded.sources] == [("a.jsonl", 1), ("b.jsonl", 2)]
    assert loaded.sources[0]["bytes"] == files[0].stat().st_size
    assert (loaded.broken, loaded.repairs.rows) == ([], 0)


@pytest.mark.parametrize(("bad", "where"), [(1, ["2"]), (2, ["2", "3"]), (3, ["2 (and 2 more rows)"])])
def test_rows_wrong_in_the_same_way_are_one_error(here: Path, bad: int, where: list[str]) -> None:
    good = {"prompt": "q", "answer": "a", "topic": "t"}
    path = write(here / "rows.jsonl", [good, *[{"prompt": "q", "topic": "t"}] * bad, good])
    with pytest.raises(MultipleErrors) as caught:
        read([path])
    what = "no column 'answer'. It has: prompt, topic. Set answer in data.format to one of them."
    advice = "Correct them, or add broken to data.checks: such rows are then dropped and counted."
    count = f"{bad} of {bad + 2} rows do not fit. {advice}"
    assert str(caught.value).split("\n") == [*(f"rows.jsonl line {place}: {what}" for place in where), count]


def test_rows_that_are_no_conversations_are_dropped_when_asked_and_counted(here: Path) -> None:
    good = [{"prompt": f"q{n}", "answer": "a", "topic": f"t{n % 3}"} for n in range(12)]
    path = write(here / "rows.jsonl", [*good, {"prompt": "q"}, {"prompt": "q", "answer": ["a"], "topic": "t"}, "{"])
    loaded = read([path], drop_broken=True)
    assert [(f.check, f.row, f.line, f.message[:11], f.proposal) for f in loaded.broken] == [
        ("broken", "rows.jsonl line 13", 13, "no column '", "drop"),
        ("broken", "rows.jsonl line 14", 14, "'answer' is", "drop"),
        ("broken", "rows.jsonl line 15", 15, "is not JSON", "drop"),
    ]
    assert loaded.sources[0]["rows"] == 15
    options = {"by": "group", "test": 0.2, "valid": 0.1, "unseen_groups": 1, "together": None}
    data = Data.model_validate({"source": "x", "format": "columns", "checks": ["broken"], "split": options})
    made = prepare(loaded, data, 1, context(broken=loaded.broken))
    assert (made.audit["read"], made.audit["dropped"]) == (15, {"broken": 3})
    assert sum(made.audit["parts"].values()) == 12
    with pytest.raises(
        MultipleErrors, match="no column 'answer'"
    ):  # nothing fits: that is the recipe's fault, not the rows'
        read([write(here / "all.jsonl", [{"prompt": "q"}] * 3)], drop_broken=True)


@pytest.mark.parametrize("ways", [SHOWN_ERRORS, SHOWN_ERRORS + 7])
def test_many_ways_to_be_wrong_are_cut_and_counted(here: Path, ways: int) -> None:
    path = write(here / "rows.jsonl", [{"prompt": "q", f"c{n}": "x", "topic": "t"} for n in range(ways)])
    with pytest.raises(MultipleErrors) as caught:
        read([path])
    lines = str(caught.value).split("\n")
    assert [line.split(":")[0] for line in lines[:SHOWN_ERRORS]] == [
        f"rows.jsonl line {n + 1}" for n in range(SHOWN_ERRORS)
    ]
    rest = [f"rows.jsonl line 1: rows have {ways - SHOWN_ERRORS} more kinds of errors."]
    assert lines[SHOWN_ERRORS:] == (rest if ways > SHOWN_ERRORS else [])


def test_errors_of_several_files_come_together(here: Path) -> None:
    files = [
        write(here / "a.jsonl", [{"prompt": "q"}, "{"]),
        write(here / "b.csv", ["prompt,answer,topic", "q,a"]),
        write(here / "c.json", ["5"]),
    ]
    with pytest.raises(MultipleErrors) as caught:
        read(files)
    assert sorted(error.where for error in caught.value.errors if isinstance(error, DataError)) == [
        "a.jsonl line 1",
        "a.jsonl line 2 column 2",
        "b.csv line 2",
        "c.json",
    ]
    with pytest.raises(MultipleErrors) as caught:  # what ends a file is never dropped with the rows
        read([write(here / "good.jsonl", [{"prompt": "q", "answer": "a", "topic": "t"}]), files[2]], drop_broken=True)
    assert [error.where for error in caught.value.errors if isinstance(error, DataError)] == ["c.json"]


def test_a_file_that_is_not_there_is_said(here: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_sources("gone.json", here)


def test_no_rows_is_an_error(here: Path) -> None:
    path = write(here / "rows.csv", ["prompt,answer,topic"])
    with pytest.raises(DataError) as caught:
        read([path])
    assert (caught.value.what, caught.value.where, caught.value.next) == (
        "there are no rows",
        "rows.csv",
        "Check data.source",
    )


def test_sources_are_taken_in_their_order(here: Path) -> None:
    for name in ("b.csv", "a.csv"):
        write(here / name, ["prompt,answer", "q,a"])
    write(here / "z.jsonl", [{"prompt": "q", "answer": "a"}])
    assert [source.name for source in open_sources(["z.jsonl", "*.csv"], here)] == ["z.jsonl", "a.csv", "b.csv"]
    (one,) = open_sources("a.csv", here)
    assert (one.file, one.stem, one.kind) == (here / "a.csv", "a", ".csv")


def test_a_source_in_another_encoding_is_read_and_said(here: Path) -> None:
    text = "prompt,answer,topic\n" + "".join(f"Où est le café {n} ?,Près de la forêt.,t\n" for n in range(20))
    (here / "rows.csv").write_bytes(text.encode("cp1252"))
    loaded = read([here / "rows.csv"])
    assert loaded.rows[0].question == "Où est le café 0 ?"
    assert loaded.sources[0]["encoding"] in ("cp1252", "windows-1252")
    assert loaded.sources[0]["notes"]


DAMAGED = {"prompt": "Why\r\n?", "answer": "1. Open 2. Tap 3. Close", "topic": "caf\u00c3\u00a9"}


def test_rows_are_repaired_on_the_way_in_and_told(here: Path) -> None:
    path = write(here / "rows.jsonl", [DAMAGED, {"prompt": "q", "answer": "a", "topic": "t"}])
    told: list[Any] = []
    loaded = read([path], repair=RowRepair(damage=True), on_change=lambda row, changes: told.append((row, changes)))
    first, second = loaded.rows
    assert (first.question, first.answer, first.group) == ("Why\n?", "1. Open\n2. Tap\n3. Close", "café")
    assert first.fields == {"prompt": "Why\n?", "answer": "1. Open\n2. Tap\n3. Close", "topic": "café"}
    assert second.answer == "a"
    assert loaded.repairs.rows == 1
    assert loaded.repairs.kinds == {"whitespace": 1, "collapsed_list": 1, "mojibake": 1}
    assert {(each["where"], each["column"]) for each in loaded.repairs.examples} == {
        ("rows.jsonl line 1", "prompt"),
        ("rows.jsonl line 1", "answer"),
        ("rows.jsonl line 1", "topic"),
    }
    ((row, changes),) = told
    assert (
        undo_row(first.fields, changes_from_plain(json.loads(json.dumps(changes_to_dicts(changes)))))
        == row.values
        == DAMAGED
    )


def test_examples_of_a_kind_are_few_and_the_count_is_whole(here: Path) -> None:
    rows = [{"prompt": f"q{n}", "answer": f"a{n}\r", "topic": "t"} for n in range(SHOWN_CHANGES + 9)]
    repairs = read([write(here / "rows.jsonl", rows)], repair=RowRepair(damage=True)).repairs
    assert (repairs.kinds["whitespace"], len(repairs.examples)) == (SHOWN_CHANGES + 9, SHOWN_CHANGES)


def test_no_example_of_a_repair_holds_what_got_a_pseudonym(here: Path) -> None:
    answer = "1. Write to sam.tern@mill.example.net 2. Ask [Your Name] 3. Wait"
    rows = [{"prompt": "q\r", "answer": answer, "topic": "t", "Applicant": "Mira Quill"}, DAMAGED]
    mend = RowRepair(True, PseudonymMap(), names=("Applicant",))
    repairs = read([write(here / "rows.jsonl", rows)], repair=mend).repairs
    assert (repairs.rows, repairs.pseudonym_count) == (2, 2)
    written = json.dumps(repairs.examples)
    assert not [value for value in ("sam.tern", "Mira", "Quill") if value in written]
    assert "1. Open 2. Tap" in written  # rows without personal data are shown


def test_no_example_of_a_repair_holds_a_key_or_an_address(here: Path) -> None:
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    answer = f"1. Take {key} 2. Write to sam.tern@mill.example.net 3. Wait"
    rows = [{"prompt": "q", "answer": answer, "topic": "t"}]
    (example,) = read([write(here / "rows.jsonl", rows)], repair=RowRepair(damage=True)).repairs.examples
    assert example["before"] == f"1. Take {'•' * len(key)} 2. Write to {'•' * 25} 3. Wait"
    assert not [value for value in (key, "sam.tern") if value in str(example)]
