"""Files in, rows out: the same rows from every kind of file, and an error that names file and line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.sources import READERS, locate, read
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


ONCE = "The first line must name each column once"
WIDE = "Put text that contains the separator into double quotes"
NO_LIST = ("holds no list of rows", "Write it as a list of objects, or as .jsonl")
QUOTES = "Mend the quotes"
MEND = "Mend it, or remove the row"


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
        assert re.match(r"(is no parquet file|cannot be read): \w", what), what
        assert "None" not in what


def test_parquet_text_that_is_not_utf8_is_said() -> None:
    import pyarrow

    text = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff"))
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"a": text}), file)
    where, what, _ = refused("a.parquet", file.getvalue())
    assert (where, what[:40]) == ("a.parquet", "is no parquet file: 'utf-8' codec can't ")


def test_a_file_that_went_away_is_said(here: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read(here / "gone.csv"))
    assert str(caught.value) == "gone.csv: cannot be read: No such file or directory. Check the path and its rights."


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
NO_FILE = ("no such file", f"data.source may be a file, folder or glob of {KINDS}")


@pytest.mark.parametrize(
    ("source", "where", "what", "next"),
    [
        ("gone.csv", "{tree}/gone.csv", *NO_FILE),
        ("empty", "{tree}/empty", *NO_FILE),
        ("*.parquet", "{tree}/*.parquet", *NO_FILE),
        ("notes.txt", "{tree}/notes.txt", "files ending in '.txt' cannot be read", f"Use {KINDS}"),
        ("no*", "{tree}/notes.txt", "files ending in '.txt' cannot be read", f"Use {KINDS}"),
        ("a\0b", r"'a\x00b'", "is no path: embedded null byte", "Check data.source"),
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
    import gzip

    found = list(read(put(f"rows{kind}.gz", gzip.compress(WRITERS[kind](ROWS)))))
    assert [dict(row.values) for row in found] == ROWS
    assert found[0].origin.file == f"rows{kind}.gz"


def test_a_packed_file_that_is_cut_or_no_gzip_is_said() -> None:
    import gzip

    whole = gzip.compress(WRITERS[".csv"](ROWS))
    for data in (whole[:-12], b"prompt,answer\n"):
        where, what, _ = refused("a.csv.gz", data)
        assert where == "a.csv.gz"
        assert what.startswith("is no whole .gz file")


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_wide_text_is_known_by_its_mark(order: str) -> None:
    text = "\ufeff" + WRITERS[".csv"](ROWS).decode()
    assert [dict(row.values) for row in read(put("wide.csv", text.encode(order)))] == ROWS


def test_an_arrow_file_with_an_index_is_read_too() -> None:
    assert [dict(row.values) for row in read(put("a.arrow", arrow_stream(ROWS, whole=True)))] == ROWS
    where, what, _ = refused("b.arrow", b"ARROW1" + b"\0" * 40)
    assert (where, what[:16]) == ("b.arrow", "is no Arrow file")


def test_a_folder_that_datasets_saved_is_its_arrow_files(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    files = locate("saved", tmp_path)
    assert [file.suffix for file in files] == [".arrow"]
    assert [dict(row.values) for file in files for row in read(file)] == ROWS
