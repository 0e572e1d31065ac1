"""Of a folder the tables of one kind are read; reports, manifests and other tables are passed over and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.recipe import NamedSetting
from tunesmith.data.load import load_rows
from tunesmith.data.sources import open_sources, select_tables
from tunesmith.errors import MultipleErrors

PAIRS = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(5)]


def put(folder: Path, name: str, value: Any) -> None:
    """A file with JSON lines, with JSON, or with the text that is given."""
    text = value if isinstance(value, str) else json.dumps(value)
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(each) + "\n" for each in value)
    (folder / name).write_text(text)


def chosen(folder: Path, **files: Any) -> tuple[list[str], str]:
    for name, value in files.items():
        put(folder, name.replace("__", "."), value)
    found, note = select_tables(".", folder)
    return [file.name for file in found], note


def test_a_report_with_rows_that_were_filtered_out_is_not_read(tmp_path: Path) -> None:
    names, note = chosen(tmp_path, rows__jsonl=PAIRS, report__json={"kept": 5, "removed": PAIRS * 100})
    assert names == ["rows.jsonl"]
    assert note == "not read from the same folder: report.json (an object that contains a list)"
    (source,) = open_sources(".", tmp_path)
    assert source.notes == (note,)
    loaded = load_rows([source], NamedSetting("auto", {}), None, into=tmp_path / "rows.table")
    assert len(loaded.rows) == 5
    assert loaded.sources[0]["notes"] == [note]


@pytest.mark.parametrize(
    "sidecar",
    [
        {"default": {"features": {"prompt": "string"}}},
        {"reasons": [], "kept": 1},
        {"columns": ["prompt", "completion"]},
        [],
        ["prompt", "completion"],
        5,
    ],
)
def test_json_without_rows_is_passed_over_and_named(tmp_path: Path, sidecar: Any) -> None:
    names, note = chosen(tmp_path, rows__jsonl=PAIRS, dataset_info__json=sidecar)
    assert names == ["rows.jsonl"]
    assert note.startswith("not read from the same folder: dataset_info.json (")


def test_files_of_one_kind_are_all_read_whatever_columns_they_have_beside(tmp_path: Path) -> None:
    more = [{**row, "source": "web", "id": 1, "date": "x", "n": 2, "m": 3} for row in PAIRS]
    table = "prompt,completion\nq,a\n"
    names, note = chosen(tmp_path, train__jsonl=PAIRS, test__jsonl=more, valid__csv=table, list__json=PAIRS)
    assert (names, note) == (["list.json", "test.jsonl", "train.jsonl", "valid.csv"], "")


def test_of_two_kinds_of_tables_one_is_read_and_the_other_named(tmp_path: Path) -> None:
    log = "step,loss\n" + "1,0.5\n" * 1000
    names, note = chosen(tmp_path, rows__jsonl=PAIRS, losses__csv=log)
    assert (names, note) == (["rows.jsonl"], "not read from the same folder: losses.csv (other columns: loss, step)")


def test_tables_of_unknown_columns_go_by_what_they_share_then_by_size(tmp_path: Path) -> None:
    letters = "Job,Letter,Firm\n" + "Baker,Dear all,Crumb\n" * 20
    other = "Job,Letter,Firm,Town\nBaker,Dear all,Crumb,Ulm\n"
    names, note = chosen(tmp_path, a__csv=letters, b__csv=other, c__csv="x,y\n1,2\n")
    assert (names, note) == (["a.csv", "b.csv"], "not read from the same folder: c.csv (other columns: x, y)")


def test_an_object_around_the_rows_is_read_where_no_other_table_is(tmp_path: Path) -> None:
    wrapped = {"version": "1.0", "data": PAIRS}
    names, note = chosen(tmp_path, train__json=wrapped, info__json={"a": 1}, stats__csv="step,loss\n1,2\n")
    assert names == ["train.json"]
    assert "info.json (has no rows)" in note
    assert "stats.csv (other columns: loss, step)" in note


def test_a_damaged_file_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    names, note = chosen(tmp_path, rows__jsonl=PAIRS, broken__json="{not json")
    assert (names, note) == (["broken.json", "rows.jsonl"], "")
    with pytest.raises(MultipleErrors, match="is not JSON"):
        load_rows(open_sources(".", tmp_path), NamedSetting("auto", {}), None, into=tmp_path / "rows.table")


def test_a_single_file_a_glob_and_a_list_are_taken_as_they_are_named(tmp_path: Path) -> None:
    put(tmp_path, "rows.jsonl", PAIRS)
    put(tmp_path, "report.json", {"removed": PAIRS})
    assert len(select_tables("*.json*", tmp_path)[0]) == 2
    assert select_tables("report.json", tmp_path) == ([tmp_path / "report.json"], "")
    assert len(open_sources(["rows.jsonl", "report.json"], tmp_path)) == 2


def test_a_table_in_another_encoding_is_judged_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("prompt,completion,Größe\nWo?,Über München,1\n".encode("cp1252") * 3)
    put(tmp_path, "b.jsonl", PAIRS)
    put(tmp_path, "info.json", {"a": 1})
    found, note = select_tables(".", tmp_path)
    assert [file.name for file in found] == ["a.csv", "b.jsonl"]
    assert note == "not read from the same folder: info.json (has no rows)"
