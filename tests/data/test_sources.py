"""Files in, rows out: the same rows from every kind of file, and an error that names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data import rows as limits
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.sources import READERS, SourceFacts, describe, locate, read, read_all
from tunesmith.errors import DataError, TunesmithError

ROWS = [
    {"prompt": "how to pay?", "answer": "1. Open it.\n2. Pay."},
    {"prompt": 'say "hi", please', "answer": ""},
    {"prompt": "grüße\t終\u2028🙂", "answer": " spaces kept "},
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def separated(rows: list[dict[str, str]], delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def arrow_stream(rows: list[dict[str, str]], *, whole: bool = False) -> bytes:
    import pyarrow

    table, file = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with (pyarrow.ipc.new_file if whole else pyarrow.ipc.new_stream)(file, table.schema) as sink:
        sink.write_table(table)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    ".csv": lambda rows: separated(rows, ","),
    ".tsv": lambda rows: separated(rows, "\t"),
    ".json": lambda rows: json.dumps(rows).encode(),
    ".jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
    ".parquet": parquet,
    ".arrow": arrow_stream,
}


def put(name: str, data: str | bytes) -> Path:
    path = Path.cwd() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows_of(name: str, data: str | bytes) -> list[tuple[dict[str, Any], str]]:
    return [(dict(row.values), str(row.origin)) for row in read(put(name, data))]


def refused(name: str, data: str | bytes) -> tuple[str, str, str]:
    with pytest.raises(DataError) as caught:
        list(read(put(name, data)))
    assert caught.value.exit_code == 3
    return caught.value.where, caught.value.what, caught.value.next


def test_every_kind_has_a_writer_here() -> None:
    assert WRITERS.keys() == READERS.keys()


@pytest.mark.parametrize("kind", READERS)
def test_every_kind_gives_the_same_rows(kind: str) -> None:
    found = list(read(put("rows" + kind.upper(), WRITERS[kind](ROWS))))
    assert [dict(row.values) for row in found] == ROWS
    assert [row.origin.file for row in found] == ["rows" + kind.upper()] * 3
    lines = {".csv": [2, 4, 5], ".tsv": [2, 4, 5]}.get(kind, [1, 2, 3])  # the first answer has two lines
    assert [row.origin.line for row in found] == lines
    assert {row.origin.unit for row in found} == {"row" if kind in (".json", ".parquet", ".arrow") else "line"}


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".json", ".jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_line_ends_do_not_matter(kind: str, end: str) -> None:
    plain = WRITERS[kind](ROWS[1:]).decode().replace("\r\n", "\n")
    changed = "\ufeff" + plain.replace("\n", end)
    assert [row for row, _ in rows_of("rows" + kind, changed)] == ROWS[1:]
    assert rows_of("rows" + kind, changed) == rows_of("rows" + kind, plain)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        (
            "a.csv",
            'a,b\n1,"x\ny\n\nz"\n\n2,"""q"", r"\n"3\n",4\n',
            [
                ({"a": "1", "b": "x\ny\n\nz"}, "a.csv line 2"),
                ({"a": "2", "b": '"q", r'}, "a.csv line 7"),
                ({"a": "3\n", "b": "4"}, "a.csv line 8"),
            ],
        ),
        ("a.csv", "a , b\r1,2\r", [({"a": "1", "b": "2"}, "a.csv line 2")]),
        ("a.csv", '"a\nb",c\n1,2\n', [({"a\nb": "1", "c": "2"}, "a.csv line 3")]),
        ("a.csv", 'a\n""\n\nx\n', [({"a": ""}, "a.csv line 2"), ({"a": "x"}, "a.csv line 4")]),
        ("a.csv", "a,b", []),
        ("a.csv", "", []),
        ("a.tsv", 'a\tb\n1,5\t"2\t3"\n', [({"a": "1,5", "b": "2\t3"}, "a.tsv line 2")]),
        (
            "a.jsonl",
            '\n{"a": 1}\n  \n{"a": null, "b": [2]}',
            [({"a": 1}, "a.jsonl line 2"), ({"a": None, "b": [2]}, "a.jsonl line 4")],
        ),
        (
            "a.jsonl",
            '{"a": "x\u2028y\x85z"}\n{"a": "\\ud83d\\ude00"}\n',
            [({"a": "x\u2028y\x85z"}, "a.jsonl line 1"), ({"a": "😀"}, "a.jsonl line 2")],
        ),
        ("a.jsonl", "", []),
        ("a.json", '[{"a": 1},\n\n {"a": 2}]', [({"a": 1}, "a.json row 1"), ({"a": 2}, "a.json row 2")]),
        ("a.json", '{"version": 3, "data": [{"a": 1}]}', [({"a": 1}, "a.json row 1")]),
        ("a.json", "[]", []),
    ],
)
def test_rows_and_their_places(name: str, data: str, expected: list[Any]) -> None:
    assert rows_of(name, data) == expected


ONCE = "Name each column once in the first line"
WIDE = "Put text that contains the separator into double quotes"
NO_LIST = ("has no list of rows", "Write it as a list of objects, or as .jsonl")
QUOTES = "Correct the quotes"
MEND = "Correct it, or remove the row"


@pytest.mark.parametrize(
    ("name", "data", "where", "what", "next"),
    [
        ("a.csv", 'a,b\n1,"x\ny"\n\n3\n', "a.csv line 5", "has 1 cells where the header has 2", WIDE),
        ("a.csv", "a,b\n1,2,3\n", "a.csv line 2", "has 3 cells where the header has 2", WIDE),
        ("a.csv", "a,b, a\n", "a.csv line 1", "names the column 'a' twice", ONCE),
        ("a.csv", "\n1\n", "a.csv line 1", "has no header", ONCE),
        ("a.csv", ",\n1,2\n", "a.csv line 1", "names the column '' twice", ONCE),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', "a.csv line 3", "is not well formed: unexpected end of data", QUOTES),
        ("a.csv", 'a,b\n1,"2"x\n', "a.csv line 2", "is not well formed: ',' expected after '\"'", QUOTES),
        ("a.csv", "a,b\n1,2\nñ,1\n".encode("latin-1"), "a.csv line 3", "is not UTF-8 text", "Save the file as UTF-8"),
        ("a.json", b'[\n"\xe9"]', "a.json line 2", "is not UTF-8 text", "Save the file as UTF-8"),
        ("a.jsonl", b"\xff\xfe{", "a.jsonl line 1", "is not UTF-8 text", "Save the file as UTF-8"),
        ("a.jsonl", '{"a": 1}\n\n{"a": }\n', "a.jsonl line 3 column 7", "is not JSON: Expecting value", MEND),
        ("a.jsonl", '{"a": 1}\n{"a":\n1}\n', "a.jsonl line 2 column 6", "is not JSON: Expecting value", MEND),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', "a.jsonl line 1 column 10", "is not JSON: Extra data", MEND),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl line 2", "is a list, not an object", 'Write it as {"column": value}'),
        ("a.jsonl", '"x"\n', "a.jsonl line 1", "is a str, not an object", 'Write it as {"column": value}'),
        ("a.json", '[{"a": 1},\n{"a":]', "a.json line 2", "is not JSON: Expecting value", MEND),
        ("a.json", "", "a.json column 1", "is not JSON: Expecting value", MEND),
        ("a.json", '[{"a": 1}, 2]', "a.json row 2", "is a int, not an object", 'Write it as {"column": value}'),
        ("a.json", '{"a": [1], "b": [2]}', "a.json", *NO_LIST),
        ("a.json", '{"a": 1}', "a.json", *NO_LIST),
        ("a.json", "3", "a.json", *NO_LIST),
    ],
)
def test_what_cannot_be_read_is_named(name: str, data: str | bytes, where: str, what: str, next: str) -> None:
    assert refused(name, data) == (where, what, next)


@pytest.mark.parametrize("data", ['{"a": "\\ud800"}', '{"\\uDFFF": 1}', '{"a": ' + "1" * 5000 + "}", "[" * 100_000])
def test_json_that_python_takes_but_cannot_keep(data: str) -> None:
    for name in ("a.jsonl", "a.json"):
        where, what, _ = refused(name, data)
        assert where == ("a.jsonl line 1" if name == "a.jsonl" else "a.json")
        assert what.startswith("is not JSON: ")


def test_rows_before_a_bad_one_are_given() -> None:
    rows = read(put("a.csv", "a,b\n1,2\n3\n"))
    assert next(rows).values == {"a": "1", "b": "2"}
    with pytest.raises(DataError, match="line 3"):
        next(rows)


def test_damaged_parquet_is_said() -> None:
    good = parquet(ROWS)
    cut, blank = good[: len(good) // 2], bytearray(good)
    blank[-100:-50] = b"\x00" * 50
    for data in (b"", b"PAR1", cut, bytes(blank)):
        where, what, _ = refused("a.parquet", data)
        assert where == "a.parquet"
        assert re.match(r"(is not a Parquet file|cannot be read): \w", what), what
        assert "None" not in what


def test_parquet_text_that_is_not_utf8_is_said() -> None:
    import pyarrow

    text = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff"))
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"a": text}), file)
    where, what, _ = refused("a.parquet", file.getvalue())
    assert (where, what[:43]) == ("a.parquet", "is not a Parquet file: 'utf-8' codec can't ")


def test_a_file_that_went_away_is_said(here: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read(here / "gone.csv"))
    assert (
        str(caught.value) == "gone.csv: cannot be read: No such file or directory. Check the path and its permissions."
    )


def test_names_are_short_inside_the_working_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put("sub/a.jsonl", '{"a": 1}')
    assert next(read(path)).origin.file == str(Path("sub") / "a.jsonl")
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    assert next(read(path)).origin.file == str(path)


# --- where files lie -----------------------------------------------------------------------------------------


@pytest.fixture
def tree(here: Path) -> Path:
    for name in ("a.csv", "b.JSONL", "sub/c.tsv", "sub/deep/d.json", "notes.txt", "x[1]/e.csv"):
        put(name, "")
    (here / "empty").mkdir()
    return here


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("./sub/../a.csv", ["a.csv"]),
        (".", ["a.csv", "b.JSONL", "sub/c.tsv", "sub/deep/d.json", "x[1]/e.csv"]),
        ("sub", ["sub/c.tsv", "sub/deep/d.json"]),
        ("*.csv", ["a.csv"]),
        ("sub/../*.csv", ["a.csv"]),
        ("sub/*", ["sub/c.tsv"]),
        ("**/*.[jt]s*", ["sub/c.tsv", "sub/deep/d.json"]),
        ("s?b/**/*.json", ["sub/deep/d.json"]),
        ("x[1]", ["x[1]/e.csv"]),
        ("x[1]/*.csv", ["x[1]/e.csv"]),
    ],
)
def test_files_folders_and_globs(tree: Path, source: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [tree / name for name in expected]
    assert locate(source, tree) == wanted
    assert locate(str(tree / source), Path("/")) == wanted
    monkeypatch.chdir("/")
    assert locate(source, tree) == wanted
    monkeypatch.setenv("HOME", str(tree))
    assert locate(f"~/{source}", Path("/")) == wanted


KINDS = ".arrow, .csv, .json, .jsonl, .parquet, .tsv, each also as .gz"
NO_FILE = ("no such file", f"Set data.source to a file, folder or glob of {KINDS}")


@pytest.mark.parametrize(
    ("source", "where", "what", "next"),
    [
        ("gone.csv", "{tree}/gone.csv", *NO_FILE),
        ("empty", "{tree}/empty", *NO_FILE),
        ("*.parquet", "{tree}/*.parquet", *NO_FILE),
        ("notes.txt", "{tree}/notes.txt", "'.txt' files cannot be read", f"Use {KINDS}"),
        ("no*", "{tree}/notes.txt", "'.txt' files cannot be read", f"Use {KINDS}"),
        ("a\0b", r"'a\x00b'", "is not a path: embedded null byte", "Check data.source"),
        ("***", "{tree}/***", *NO_FILE),
    ],
)
def test_sources_that_name_nothing(tree: Path, source: str, where: str, what: str, next: str) -> None:
    with pytest.raises(DataError) as caught:
        locate(source, tree)
    if source == "***":  # an error in some Pythons, a plain glob in others
        assert "***" in caught.value.where
    else:
        assert (caught.value.where, caught.value.what, caught.value.next) == (where.format(tree=tree), what, next)


# --- any rows, any bytes -------------------------------------------------------------------------------------

quick = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(max_size=12) | st.text(alphabet='",\n\r\t\\ \ufeff\x00\u2028x', max_size=8)


@settings(quick, max_examples=60)
@given(st.lists(st.fixed_dictionaries({"a": texts, "b": texts}), min_size=1, max_size=6))
def test_any_rows_of_text_come_back(rows: list[dict[str, str]]) -> None:
    for kind in (".csv", ".tsv", ".jsonl", ".json"):
        found = list(read(put("any" + kind, WRITERS[kind](rows))))
        assert [dict(row.values) for row in found] == rows, kind
        places = [row.origin.line for row in found]
        assert places == sorted(set(places)), kind


VALID = [
    (".csv", WRITERS[".csv"](ROWS)),
    (".json", WRITERS[".json"](ROWS)),
    (".jsonl", b"\xef\xbb\xbf" + WRITERS[".jsonl"](ROWS)),
]
pieces = st.binary(max_size=4) | st.sampled_from(
    [b'"', b"\n", b"\r", b"\\ud800", b"{", b"[" * 2000, b"\xff", b"1" * 5000]
)


@settings(quick, max_examples=300)
@given(
    st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 6), pieces), min_size=1, max_size=4)
)
def test_damaged_files_raise_our_errors_alone(valid: tuple[str, bytes], edits: list[tuple[int, int, bytes]]) -> None:
    kind, data = valid
    for start, length, piece in edits:
        data = data[:start] + piece + data[start + length :]
    try:
        found = list(read(put("bad" + kind, data)))
    except TunesmithError as error:
        assert error.where.startswith("bad" + kind)
        assert str(error).endswith(".")
    else:
        json.dumps([dict(row.values) for row in found], ensure_ascii=False).encode()  # rows that can be kept


# --- packed, wide and saved ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READERS)
def test_a_packed_file_gives_the_same_rows(kind: str) -> None:
    found = list(read(put(f"rows{kind}.gz", gzip.compress(WRITERS[kind](ROWS)))))
    assert [dict(row.values) for row in found] == ROWS
    assert found[0].origin.file == f"rows{kind}.gz"


def test_a_packed_file_that_is_cut_or_no_gzip_is_said() -> None:
    whole = gzip.compress(WRITERS[".csv"](ROWS))
    for data in (whole[:-12], b"prompt,answer\n"):
        where, what, _ = refused("a.csv.gz", data)
        assert where == "a.csv.gz"
        assert what.startswith("is not a complete .gz file")


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_wide_text_is_known_by_its_mark(order: str) -> None:
    text = "\ufeff" + WRITERS[".csv"](ROWS).decode()
    assert [dict(row.values) for row in read(put("wide.csv", text.encode(order)))] == ROWS


def test_an_arrow_file_with_an_index_is_read_too() -> None:
    assert [dict(row.values) for row in read(put("a.arrow", arrow_stream(ROWS, whole=True)))] == ROWS
    where, what, _ = refused("b.arrow", b"ARROW1" + b"\0" * 40)
    assert (where, what[:20]) == ("b.arrow", "is not an Arrow file")


def test_a_folder_that_datasets_saved_is_its_arrow_files(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    files = locate("saved", tmp_path)
    assert [file.suffix for file in files] == [".arrow"]
    assert [dict(row.values) for file in files for row in read(file)] == ROWS


# --- what is broken costs itself alone -----------------------------------------------------------------------


def all_of(name: str, data: str | bytes, encoding: str | None = None) -> list[Any]:
    """Each row's values; of a bad one its origin, and where and what is wrong."""
    found = read_all(put(name, data), encoding)
    return [
        (str(row.origin), row.error.where, row.error.what) if isinstance(row, BadRow) else dict(row.values)
        for row in found
    ]


A1, A2, A3 = {"a": 1}, {"a": 2}, {"a": 3}
COMMA = "is not JSON: Expecting ',' delimiter"
VALUE = "is not JSON: Expecting value"
ENDS = "is not well formed: unexpected end of data"
DEEP = "maximum recursion depth exceeded while decoding a JSON array from a unicode string"
CELLS = "has 1 cells where the header has 2"


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": \n{"a": "\xff"}\n{"a": 1, "a": 2}\n7\n\n{"a": "\\ud800"}\n{"a": 2}',
            [
                A1,
                ("a.jsonl line 2", "a.jsonl line 2 column 7", VALUE),
                ("a.jsonl line 3", "a.jsonl line 3", "is not UTF-8 text"),
                ("a.jsonl line 4", "a.jsonl line 4", "is not JSON: the key 'a' stands twice"),
                ("a.jsonl line 5", "a.jsonl line 5", "is a int, not an object"),
                (
                    "a.jsonl line 7",
                    "a.jsonl line 7",
                    r"is not JSON: 'utf-8' codec can't encode character '\ud800' in position 7: surrogates not allowed",
                ),
                A2,
            ],
        ),
        (
            "a.csv",
            b'a,b\n1\n"x\ny\xff",2\n   \n"q"z,3\n4,5\n',
            [
                ("a.csv line 2", "a.csv line 2", CELLS),
                ("a.csv line 3", "a.csv line 4", "is not UTF-8 text"),
                ("a.csv line 6", "a.csv line 6", "is not well formed: ',' expected after '\"'"),
                {"a": "4", "b": "5"},
            ],
        ),
        (
            "a.csv",
            'a,b\n1,2\n"3\n4","x ""y""\nz\n5,6\n',
            [
                {"a": "1", "b": "2"},
                ("a.csv line 3", "a.csv line 4", ENDS),
            ],
        ),
        (
            "a.csv",
            'a,b\n1,""\n"""2"",\n"" ","x\n""\ny\n',
            [
                {"a": "1", "b": ""},
                ("a.csv line 3", "a.csv line 4", ENDS),
            ],
        ),
        ("a.csv", 'a,b\n1,2" x\n"', [{"a": "1", "b": '2" x'}, ("a.csv line 3", "a.csv line 3", ENDS)]),
        (
            "a.json",
            '[{"a": 1},\n {"a": },\n {"a": "x\n"},\n 7,\n {"a": 2, "a": 2},\n {"a": 3}]',
            [
                A1,
                ("a.json row 2", "a.json line 2", VALUE),
                ("a.json row 3", "a.json line 3", "is not JSON: Invalid control character at"),
                ("a.json row 4", "a.json row 4", "is a int, not an object"),
                ("a.json row 5", "a.json row 5", "is not JSON: the key 'a' stands twice"),
                A3,
            ],
        ),
        (
            "a.json",
            '[\n  {"a": "x},\n  {"a": 2},\n  {"a": [{"b": 1}},\n  {"a": 3}\n]',
            [
                ("a.json row 1", "a.json line 2", "is not JSON: Invalid control character at"),
                A2,
                ("a.json row 3", "a.json line 4", COMMA),
                A3,
            ],
        ),
        (
            "a.json",
            '[{"a": 1} {"a": 7}, {"a": ' + "[" * 5000 + "]" * 5000 + '}, {"a": 3},]x',
            [
                A1,
                ("a.json row 2", "a.json line 1", COMMA),
                ("a.json row 3", "a.json row 3", f"is not JSON: {DEEP}"),
                A3,
                ("a.json row 5", "a.json row 5", VALUE),
                ("a.json row 6", "a.json line 1", "is not JSON: Extra data"),
            ],
        ),
        ("a.json", '[{"a": 1}', [A1, ("a.json row 2", "a.json line 1", "is not JSON: the list is not closed")]),
        ("a.json", b'[{"a": "\xc3"}, {"a": 2}]', [("a.json row 1", "a.json line 1", "is not UTF-8 text"), A2]),
    ],
)  # fmt: skip
def test_what_is_broken_costs_itself_alone(name: str, data: str | bytes, expected: list[Any]) -> None:
    assert all_of(name, data) == expected
    packed = gzip.compress(data if isinstance(data, bytes) else data.encode())
    said = str(all_of(f"{name}.gz", packed)).replace(f"{name}.gz", name)
    assert said == str(expected)


def test_lines_of_json_under_the_wrong_name_are_said() -> None:
    assert refused("a.json", '{"a": 1}\n{"a": 2}\n')[1:] == (
        "is not JSON: Extra data",
        "Name it .jsonl if each line is an object",
    )


LAYOUTS: dict[str, Callable[[list[str]], str]] = {
    "one line": lambda rows: "[" + ", ".join(rows) + "]",
    "a row a line": lambda rows: "[\n" + ",\n".join(rows) + "\n]\n",
    "indented": lambda rows: "[\n" + ",\n".join("  " + json.dumps(json.loads(row), indent=2) for row in rows) + "\n]",
    "nothing indented": lambda rows: json.dumps([json.loads(row) for row in rows], indent=0),
}


parts = texts | st.lists(st.fixed_dictionaries({"a": texts}), max_size=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(quick, max_examples=25)
@given(st.lists(st.fixed_dictionaries({"a": texts, "b": parts}), min_size=3, max_size=5), st.data())
def test_a_list_with_one_broken_row_gives_the_others(layout: str, rows: list[Any], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    rows[place] = {**rows[place], "broken": "HERE"}
    text = LAYOUTS[layout]([json.dumps(row) for row in rows])
    assert all_of("a.json", text) == rows
    found = all_of("a.json", text.replace('"HERE"', data.draw(st.sampled_from(["nul", "1 2", "{", '"a" "b"', ": 3"]))))
    whole = [row for number, row in enumerate(rows) if number != place]
    if len(found) == len(rows):
        assert isinstance(found[place], tuple)
        assert [row for number, row in enumerate(found) if number != place] == whole
    else:  # a bracket that is never closed: the rows after it cannot be separated
        assert layout in ("one line", "nothing indented")
        assert found[:place] == rows[:place]
        assert len(found) == place + 1


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json"])
def test_a_long_file_is_never_whole_in_memory(kind: str) -> None:
    row = {"prompt": "How is tea made?", "answer": "Boil water.\n" * 80}
    data = WRITERS[kind]([row] * 5_000)
    assert len(data) > 4 << 20
    for path in (put(f"long{kind}", data), put(f"long{kind}.gz", gzip.compress(data, 1))):
        tracemalloc.start()
        count = sum(isinstance(found, Row) for found in read_all(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 5_000
        assert peak < 7 << 19


def test_a_row_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.data import delimited, json_rows, rows

    for module in (limits, json_rows, delimited, rows):
        monkeypatch.setattr(module, "MAX_ROW", 1 << 20)
    long = "x" * (5 << 19)
    told = "is longer than 1 MiB"
    assert all_of("a.jsonl", f'{{"a": 1}}\n{{"a": "{long}"}}\n{{"a": 2}}') == [
        A1,
        ("a.jsonl line 2", "a.jsonl line 2", told),
        A2,
    ]
    assert all_of("a.csv", f"a,b\n1,{long}\n1,2\n") == [("a.csv line 2", "a.csv line 2", told), {"a": "1", "b": "2"}]
    assert all_of("a.json", f'[{{"a": 1}}, {{"a": "{long}"}}, {{"a": 2}}]') == [
        A1,
        ("a.json row 2", "a.json row 2", told),
    ]
    monkeypatch.setattr(json_rows, "MAX_OBJECT_BYTES", 1 << 20)
    assert refused("a.json", f'{{"a": "{long}"}}')[1] == "is an object of more than 1 MiB"


def test_a_quote_that_never_closes_is_bounded() -> None:
    limit = csv.field_size_limit(1 << 16)
    try:
        found = all_of("a.csv", 'a,b\n1,"x\n' + "y,z\n" * (1 << 16))
        long = "x" * (1 << 17)
        wide = all_of("a.csv", f'a,b\n1,{long}\n2,"{long}"\n3,4\n')
    finally:
        csv.field_size_limit(limit)
    assert limit == 1 << 25
    assert wide[2:] == [{"a": "3", "b": "4"}]
    assert [where for _, where, _ in wide[:2]] == ["a.csv line 2", "a.csv line 3"]
    assert found == [("a.csv line 2", "a.csv line 2", "is not well formed: field larger than field limit (65536)")]


# --- encodings, delimiters, facts ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".json", ".jsonl"])
@pytest.mark.parametrize("name", ["windows-1251", "utf-16-le", "UTF-32", "koi8-r", "utf-7", "gb18030", "mac-cyrillic"])
def test_an_encoding_that_is_given_wins(kind: str, name: str) -> None:
    rows = [{"a": "чай с мёдом", "b": "да"}, {"a": "три\nложки", "b": ""}]
    text = json.dumps(rows, ensure_ascii=False) if kind == ".json" else WRITERS[kind](rows).decode()
    assert all_of(f"a{kind}", text.encode(name), name) == rows


def test_bytes_that_are_not_the_encoding_given_are_said() -> None:
    data = "a\nчай\n".encode("utf-16-le") + b"\x00\xd8" + "x\nда\n".encode("utf-16-le")
    assert all_of("a.csv", data, "utf-16-le") == [
        {"a": "чай"},
        ("a.csv line 3", "a.csv line 3", "is not utf-16-le text"),
        {"a": "да"},
    ]


@pytest.mark.parametrize("name", ["utf-9", "base64", "rot13", "", "idna", "x\0y", "unicode_escape"])
def test_an_encoding_that_does_not_exist_is_said(name: str) -> None:
    calls: tuple[Callable[[Path, str], Any], ...] = (read_all, describe)
    for call in calls:
        with pytest.raises(DataError) as caught:
            list(call(put("a.csv", "a\n1\n"), name))
        message = (caught.value.where, caught.value.what, caught.value.next)
        assert message == (repr(name), "is not an encoding", "Write utf-8, windows-1252 or similar")


BY = "the header and the rows below it are separated by "


@pytest.mark.parametrize(
    ("name", "data", "delimiter", "why", "expected"),
    [
        ("a.csv", "a;b\n1,5;2\n", ";", BY + "';', not by ','", [{"a": "1,5", "b": "2"}]),
        ("a.csv", "a\tb\n1\t2\n", "\t", BY + "'\\t', not by ','", [{"a": "1", "b": "2"}]),
        ("a.csv", 'a;b\n"1;\n2";3\n', ";", BY + "';', not by ','", [{"a": "1;\n2", "b": "3"}]),
        ("a.tsv", "a,b\n1,2\n", ",", BY + "',', not by '\\t'", [{"a": "1", "b": "2"}]),
        ("a.csv", "sep=;\r\na;b\r\n1;2\r\n", ";", "the first line is 'sep=;'", [{"a": "1", "b": "2"}]),
        ("a.csv", "sep=,\na,b\n1,2\n", ",", "the first line is 'sep=,'", [{"a": "1", "b": "2"}]),
        ("a.csv", "a, b;c\n1,2\n", ",", "", [{"a": "1", "b;c": "2"}]),
        ("a.csv", "a;b\none\ntwo; three\n", ",", "", [{"a;b": "one"}, {"a;b": "two; three"}]),
        ("a.csv", "a;\n1;\n", ",", "", [{"a;": "1;"}]),
        ("a.csv", "a;a\n1;2\n", ",", "", [{"a;a": "1;2"}]),
        ("a.csv", "a|b;c\n1|2;3\n", ",", "", [{"a|b;c": "1|2;3"}]),
        ("a.csv", "", ",", "", []),
    ],
)
def test_another_delimiter_is_seen_and_said(
    name: str, data: str, delimiter: str, why: str, expected: list[Any]
) -> None:
    assert all_of(name, data) == expected
    facts = describe(put(name, data))
    assert (facts.delimiter, facts.delimiter_why) == (delimiter, why)
    wide = put("wide.csv" if name == "a.csv" else "wide.tsv", data.encode("utf-16"))
    assert describe(wide).delimiter == delimiter or not data


def test_zero_bytes_in_a_header_are_refused() -> None:
    assert refused("a.csv", "a,b\n1,2\n".encode("utf-16-le"))[1] == "has NUL bytes in its header"
    assert all_of("a.csv", "a,b\n1\0,2\n") == [{"a": "1\0", "b": "2"}]


def test_facts_about_a_file() -> None:
    data = "frage;antwort\r\nGrün?;Schön, süß\r\n".encode("windows-1252")
    facts = describe(put("a.csv.gz", gzip.compress(data)))
    assert isinstance(facts, SourceFacts)
    assert (facts.file, facts.kind, facts.packed, facts.delimiter) == ("a.csv.gz", ".csv", True, ";")
    assert facts.bytes == len(gzip.compress(data))
    assert facts.encoding
    assert facts.encoding.why == "windows-1252, guessed from 1 line with letters such as 'ü', 'ö', 'ß'"
    rows = read_all(Path("a.csv.gz"), facts.encoding.name)
    assert [row.values for row in rows if isinstance(row, Row)] == [{"frage": "Grün?", "antwort": "Schön, süß"}]
    plain = describe(put("a.parquet", parquet(ROWS)))
    assert (plain.kind, plain.packed, plain.encoding, plain.delimiter) == (".parquet", False, None, None)
    assert describe(put("a.jsonl", "{}")).delimiter is None
    with pytest.raises(DataError, match="cannot be read: No such file"):
        describe(Path.cwd() / "gone.csv")
    with pytest.raises(DataError, match="is not a complete"):
        describe(put("b.csv.gz", gzip.compress(data)[:-9]))
