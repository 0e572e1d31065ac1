"""Rows are repaired cell by cell and cleaned files are undone exactly; what was personal stays with its book."""

from __future__ import annotations

import copy
import csv
import gzip
import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tunesmith
from handmade import mended, opened
from tunesmith.commands.audit import audit
from tunesmith.config.recipe import Data, read_recipe
from tunesmith.data.clean import undo_clean
from tunesmith.data.privacy import PseudonymMap, restore
from tunesmith.data.repair_rows import RowRepair, changes_from_plain, changes_to_dicts, edit_kinds, undo_row
from tunesmith.data.sources import read
from tunesmith.errors import DataError, RecipeError

# --- one row -------------------------------------------------------------------------------------------------

LIST = "1. Open the tab. 2. Tap the cart. 3. Tap the button."
LINES = "1. Open the tab.\n2. Tap the cart.\n3. Tap the button."


def test_lists_and_slots_are_repaired_in_answers_alone() -> None:
    values = {"prompt": f"{LIST} [Company Name]\r\n", "answer": f"{LIST}", "company": "Tern & Daughters"}
    done = mended(values, [LIST])
    assert done.values == {
        "prompt": f"{LIST} [Company Name]",  # blanks go everywhere
        "answer": LINES,
        "company": "Tern & Daughters",
    }
    letter = "Sincerely yours, [Your Name] of [Company Name]"
    done = mended({"letter": letter, "note": letter, "Applicant": "Mira Quill", "Company": "Tern"}, [letter])
    assert done.values["letter"] == done.values["note"] == "Sincerely yours, Mira Quill of Tern"  # the same text
    other = mended({"letter": letter, "note": f"{letter}!", "Applicant": "Mira Quill", "Company": "Tern"}, [letter])
    assert other.values["note"] == f"{letter}!"
    assert set(edit_kinds(other.changes)) == {"placeholder"}


def test_fields_are_repaired_before_the_slots_they_fill() -> None:
    for names in (("letter", "Company"), ("Company", "letter")):
        plain = {"letter": "I would like to join [Company Name] soon.", "Company": "Caf\u00c3\u00a9 Tern &amp; Co\r\n"}
        done = mended({name: plain[name] for name in names}, [plain["letter"]])
        assert done.values["letter"] == "I would like to join Café Tern & Co soon."  # an entity would not have fitted
        assert list(done.values) == list(names)


def test_texts_in_lists_and_mappings_are_reached_and_other_values_stay() -> None:
    values = {
        "messages": [
            {"role": "user", "content": "Why\r\n?"},
            {"role": "assistant", "content": LIST, "tags": [["a\r", 1], None]},
        ],
        "n": 3,
        "share": 0.5,
        "flag": True,
        "none": None,
    }
    before = copy.deepcopy(values)
    done = mended(values, [LIST])
    assert values == before  # the row itself is left
    assert done.values["messages"][0]["content"] == "Why\n?"
    assert done.values["messages"][1]["content"] == LINES
    assert done.values["messages"][1]["tags"] == [["a", 1], None]
    assert {name: done.values[name] for name in ("n", "share", "flag", "none")} == {
        "n": 3,
        "share": 0.5,
        "flag": True,
        "none": None,
    }
    assert {change.path for change in done.changes} == {
        ("messages", 0, "content"),
        ("messages", 1, "content"),
        ("messages", 1, "tags", 0, 0),
    }
    assert undo_row(done.values, done.changes) == before


def test_a_whole_row_stays_as_it_is() -> None:
    values = {"prompt": "How?", "answer": "Tap Save."}
    assert mended(values, ["Tap Save."]) == mended(values)
    assert (mended(values).values, mended(values).changes, mended(values).pseudonym_count) == (values, (), 0)
    assert not RowRepair()
    assert RowRepair(damage=True) and RowRepair(book=PseudonymMap())


TEXT = st.one_of(
    st.text(st.characters(), max_size=20),
    st.sampled_from(
        [
            LIST,
            "caf\u00c3\u00a9",
            "a\r\nb \n",
            "Fish &amp; chips",
            "Dear [Company Name],",
            "x\ufffdy",
            "1. a 2. b 3. c\r",
        ]
    ),
    st.lists(
        st.sampled_from([" ", "\n", "\r", "\u00c3\u00a9", "&lt;", "1. a ", "2. b ", "3. c", "[Your Name]", "x"])
    ).map("".join),
)
VALUE = st.recursive(
    st.one_of(TEXT, st.integers(), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "Company", "Applicant"]), VALUE, max_size=4), st.lists(TEXT, max_size=2)
)
def test_repair_is_idempotent_and_undone_cell_by_cell(values: dict[str, Any], answers: list[str]) -> None:
    texts = [value for value in values.values() if isinstance(value, str)]
    learnt = [*answers, *texts[:1]]
    done = mended(values, learnt)
    plain = json.loads(json.dumps(changes_to_dicts(done.changes)))  # as it stands in a diff
    assert changes_from_plain(plain) == done.changes
    assert undo_row(done.values, changes_from_plain(plain)) == values
    assert list(undo_row(done.values, done.changes)) == list(values)
    after = [text for value, text in zip(values.values(), done.values.values(), strict=True) if value in texts[:1]]
    again = mended(done.values, [*answers, *after])
    assert (again.values, again.changes) == (done.values, ())
    assert bool(done.changes) == (done.values != values)


def test_a_row_that_was_changed_since_is_not_undone() -> None:
    done = mended({"answer": LIST}, [LIST])
    with pytest.raises(DataError, match="cannot undo 'collapsed_list'"):
        undo_row({"answer": LINES.replace("\n", " ")}, done.changes)


# --- pseudonyms -----------------------------------------------------------------------------------------------


def test_a_person_is_the_same_in_every_field_and_row() -> None:
    book = PseudonymMap()
    rows: list[dict[str, Any]] = [
        {
            "Applicant": "Mira Quill",
            "mail": "mira@mill.example.net",
            "letter": "I am Mira. Write to mira@mill.example.net.",
        },
        {"Applicant": "Mira Quill", "mail": "", "letter": "Yours, Mira Quill", "list": ["Mira's", {"x": "Ask Quill"}]},
        {"Applicant": "Tom Tern", "mail": "tom@mill.example.net", "letter": "Mira is my neighbour, says Tom."},
    ]
    done = [mended(values, [values["letter"]], book=book, names=("Applicant",)) for values in rows]
    first, second, third = (repaired.values for repaired in done)
    person, family = first["Applicant"].split()
    assert first["letter"] == f"I am {person}. Write to {first['mail']}."
    assert second["Applicant"] == first["Applicant"] == f"{person} {family}"
    assert second["letter"] == f"Yours, {person} {family}"
    assert second["list"] == [f"{person}'s", {"x": f"Ask {family}"}]
    assert third["mail"] != first["mail"]
    assert third["letter"] == f"Mira is my neighbour, says {third['Applicant'].split()[0]}."  # its own names alone
    assert [repaired.pseudonym_count for repaired in done] == [4, 4, 3]
    for values, repaired in zip(rows, done, strict=True):
        back = {name: restore(value, book) for name, value in repaired.values.items() if isinstance(value, str)}
        assert back == {name: value for name, value in values.items() if isinstance(value, str)}
        once_more = mended(repaired.values, [repaired.values["letter"]], book=book, names=("Applicant",))
        assert once_more.values == repaired.values


def test_kinds_narrow_what_is_replaced_and_damage_is_left_unless_asked() -> None:
    values = {"answer": f"Call 212-555-0123 or mail sam@mill.example.net. {LIST}\r"}
    done = RowRepair(book=PseudonymMap(), kinds=("email",)).row(values, [])
    assert "212-555-0123" in done.values["answer"] and "sam@" not in done.values["answer"]
    assert done.values["answer"].endswith(f"{LIST}\r")
    assert (done.changes, done.pseudonym_count) == ((), 1)


# --- files ---------------------------------------------------------------------------------------------------

COLUMNS = {"columns": {"prompt": "prompt", "answer": "answer"}}
ROWS: list[dict[str, Any]] = [
    {"prompt": "How do I pay?", "answer": LIST, "topic": "caf\u00c3\u00a9"},
    {"prompt": "how do i PAY", "answer": LINES, "topic": "an exact copy, once mended"},
    {"prompt": 'What, "then"?', "answer": "Fish &amp; chips, with a\r\nsecond line.", "topic": ""},
    {"prompt": " ", "answer": "An answer to nothing.", "topic": "dropped\rfor silence"},
    {"prompt": "Who?", "answer": "Dear team, my name is [Your Name] and so on.", "topic": "nobody"},
    {"prompt": "Where\tto?", "answer": "日本語 😀 \u2028 end", "topic": "kept; as | it is"},
    {"prompt": "When?", "answer": "At noon.\r", "topic": "a bare return"},
]
TYPED = [
    {**ROWS[0], "n": 1, "share": 0.1, "tags": ["a\r\n", {"deep": [LIST, None]}], "none": None, "flag": True},
    {**ROWS[1], "n": 12345678901234567890, "share": 1e-9, "tags": [], "none": None, "flag": False},
    *({**each, "n": 0, "share": 2.0, "tags": ["x"], "none": None, "flag": True} for each in ROWS[2:]),
]


def store(folder: Path, kind: str) -> tuple[Path, list[dict[str, Any]]]:
    """A file of rows, and the rows as its reader gives them."""
    packed = kind.endswith(".gz")
    ending = kind.removesuffix(".gz")
    path = folder / f"rows{kind}"
    if ending == ".parquet":
        import pyarrow
        import pyarrow.parquet

        plain = [{**each, "n": min(each["n"], 1 << 60), "tags": ["a\r\n", LIST]} for each in TYPED]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), path)
        return path, plain
    if ending in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as sink:
            table = csv.writer(sink, delimiter="," if ending == ".csv" else "\t", quoting=csv.QUOTE_ALL)
            table.writerows([list(ROWS[0]), *(list(each.values()) for each in ROWS)])
        rows = ROWS
    else:
        lines = [json.dumps(each, ensure_ascii=False) for each in TYPED]
        text = "\n\n".join(lines) + "\n" if ending == ".jsonl" else f"[{','.join(lines)}]"
        path.write_text(text, encoding="utf-8")
        rows = TYPED
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path, rows


def data_for(path: Path | Sequence[Path], **changes: Any) -> Data:
    source = str(path) if isinstance(path, Path) else [str(each) for each in path]
    checks = ["empty", "duplicate", "placeholder"]
    return Data.model_validate({"source": source, "format": COLUMNS, "checks": checks, "repair": True, **changes})


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".jsonl.gz"])
def test_cleaning_is_undone_to_the_sources_rows(tmp_path: Path, kind: str) -> None:
    path, rows = store(tmp_path, kind)
    assert [dict(each.values) for each in read(path)] == rows  # the file holds what was meant
    bytes_before = path.read_bytes()
    found = audit("rows", data_for(path), Path(), tmp_path / "out", fix=True)
    (cleaned,) = found.cleaned
    ending = kind.removesuffix(".gz") if kind.startswith((".csv", ".tsv")) else ".jsonl"
    assert cleaned.file == tmp_path / f"out/rows.cleaned{ending}"
    assert path.read_bytes() == bytes_before
    assert (cleaned.kept, cleaned.left_out) == (4, 3)  # a copy and a silent row dropped, a slot quarantined
    kept = [dict(each.values) for each in read(cleaned.file)]
    assert [each["prompt"] for each in kept] == ["How do I pay?", 'What, "then"?', "Where\tto?", "When?"]
    assert kept[0]["answer"] == LINES and kept[0]["topic"] == "café"
    assert kept[1]["answer"] == "Fish & chips, with a\nsecond line."
    assert [dict(each.values) for each in read(cleaned.file)][3]["answer"] == "At noon."
    if ending == ".jsonl":
        assert kept[0]["tags"][0] == "a" and kept[0]["n"] == rows[0]["n"]
    lines = [json.loads(line) for line in cleaned.diff.read_text(encoding="utf-8").split("\n") if line]
    assert [(line["row"], line["decision"], line["check"]) for line in lines if "decision" in line] == [
        (2, "drop", "duplicate"),
        (4, "drop", "empty"),
        (5, "quarantine", "placeholder"),
    ]
    assert cleaned.changed == sum("changes" in line for line in lines)
    assert {name: lines[-1]["end"][name] for name in ("kept", "left_out", "undoable")} == {
        "kept": 4,
        "left_out": 3,
        "undoable": True,
    }
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "audit.html",
        "audit.json",
        "findings.jsonl",
        cleaned.file.name,
        cleaned.diff.name,
    }
    back = tmp_path / f"back{ending}"
    assert tunesmith.undo(cleaned.diff, back) == len(rows)
    again = [dict(each.values) for each in read(back)]
    assert again == rows
    assert [list(each) for each in again] == [list(each) for each in rows]
    lined = tmp_path / "back2.jsonl"
    tunesmith.undo(cleaned.diff, lined)
    assert [dict(each.values) for each in read(lined)] == rows


def test_clean_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer\nHow?,Tap it.\nWho?,Nobody.\n")
    (cleaned,) = audit("rows", data_for(path), Path(), tmp_path / "out", fix=True).cleaned
    assert (cleaned.kept, cleaned.changed, cleaned.left_out) == (2, 0, 0)
    assert cleaned.file.read_text() == path.read_text()


def test_a_second_cleaning_finds_nothing_to_do(tmp_path: Path) -> None:
    path, _ = store(tmp_path, ".jsonl")
    (first,) = audit("rows", data_for(path), Path(), tmp_path / "out", fix=True).cleaned
    (second,) = audit("rows", data_for(first.file), Path(), tmp_path / "again", fix=True).cleaned
    assert (second.kept, second.changed, second.left_out) == (first.kept, 0, 0)
    assert second.file.read_bytes() == first.file.read_bytes()


def test_rows_nobody_can_read_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "How?", "answer": "Tap it.\r\n"}
    path.write_text("".join(line + "\n" for line in (json.dumps(good), "{", json.dumps({"prompt": "x"}))))
    found = audit("rows", data_for(path), Path(), tmp_path / "out", fix=True)
    (cleaned,) = found.cleaned
    assert (found.account["read"], found.account["dropped"]) == (3, {"broken": 2})
    assert (cleaned.kept, cleaned.left_out) == (1, 2)
    lines = [json.loads(line) for line in cleaned.diff.read_text().split("\n") if line]
    assert [line["check"] for line in lines if "check" in line] == ["broken", "broken"]
    assert next(line for line in lines if "unreadable" in line)["row"] == 2
    assert tunesmith.undo(cleaned.diff, tmp_path / "back.jsonl") == 2
    assert [dict(each.values) for each in read(tmp_path / "back.jsonl")] == [good, {"prompt": "x"}]


def test_another_encoding_and_separator_become_the_usual_ones(tmp_path: Path) -> None:
    rows = [{"prompt": f"Où est le café {n} ?", "answer": f"Près, au {n} ; à gauche.\r\n"} for n in range(30)]
    with (tmp_path / "rows.csv").open("w", encoding="cp1252", newline="") as sink:
        table = csv.writer(sink, delimiter=";")
        table.writerows([list(rows[0]), *(list(each.values()) for each in rows)])
    (cleaned,) = audit("rows", data_for(tmp_path / "rows.csv"), Path(), tmp_path / "out", fix=True).cleaned
    assert (cleaned.kept, cleaned.changed) == (30, 30)
    tunesmith.undo(cleaned.diff, tmp_path / "back.csv")
    assert [dict(each.values) for each in read(tmp_path / "back.csv")] == rows


def test_files_of_one_name_are_cleaned_side_by_side(tmp_path: Path) -> None:
    files = []
    for folder, kind in (("a", "jsonl"), ("b", "jsonl"), ("c", "csv")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"rows.{kind}"
        lines = [json.dumps({"prompt": f"How {folder}?", "answer": "Tap it.\r"})]
        path.write_text(
            "\n".join(lines if kind == "jsonl" else ["prompt,answer", f"How {folder}?,Tap &amp; it."]) + "\n"
        )
        files.append(path)
    cleaned = audit("rows", data_for(files), Path(), tmp_path / "out", fix=True).cleaned
    assert len({each.file for each in cleaned}) == len({each.diff for each in cleaned}) == 3
    for number, (source, each) in enumerate(zip(files, cleaned, strict=True)):
        back = tmp_path / f"back{number}{source.suffix}"
        assert tunesmith.undo(each.diff, back) == 1
        assert [dict(item.values) for item in read(back)] == [dict(item.values) for item in read(source)]


def test_a_file_that_is_named_twice_is_cleaned_as_two(tmp_path: Path) -> None:
    path, rows = store(tmp_path, ".jsonl")
    first, second = audit("rows", data_for([path, path]), Path(), tmp_path / "out", fix=True).cleaned
    assert (first.kept, first.left_out) == (4, 3)
    assert (second.kept, second.left_out) == (0, 7)  # all copies, or left out as in the first
    for each in (first, second):
        back = tmp_path / f"back-{each.file.name}"
        assert tunesmith.undo(each.diff, back) == len(rows)
        assert [dict(item.values) for item in read(back)] == rows


# --- what is not undone --------------------------------------------------------------------------------------


@pytest.fixture
def cleaned(tmp_path: Path) -> Any:
    path, _ = store(tmp_path, ".csv")
    (done,) = audit("rows", data_for(path), Path(), tmp_path / "out", fix=True).cleaned
    return done


def test_a_changed_or_lost_cleaned_file_is_refused(cleaned: Any, tmp_path: Path) -> None:
    text = cleaned.file.read_text()
    cleaned.file.write_text(text.replace("café", "cafe"))
    with pytest.raises(DataError, match=r"the cleaned file is missing or was changed\. Restore it"):
        undo_clean(cleaned.diff, tmp_path / "back.csv")
    cleaned.file.unlink()
    with pytest.raises(DataError, match="the cleaned file is missing or was changed"):
        undo_clean(cleaned.diff, tmp_path / "back.csv")
    assert not list(tmp_path.glob("*back*"))


@pytest.mark.parametrize("text", ["", "{", "[]\n", '{"row": 1}\n', '{"end": 5}\n', '{"end": {}}\n'])
def test_what_is_no_diff_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.diff.jsonl").write_text(text)
    with pytest.raises(DataError, match="is not the diff of a cleaning"):
        undo_clean(tmp_path / "x.diff.jsonl", tmp_path / "back.csv")
    with pytest.raises(DataError, match="is not the diff of a cleaning"):
        undo_clean(tmp_path / "gone", tmp_path / "back.csv")


def test_undo_writes_no_other_kind_of_file(cleaned: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"back\.parquet.*cannot be written.*\.csv, \.tsv or \.jsonl"):
        undo_clean(cleaned.diff, tmp_path / "back.parquet")
    assert not (tmp_path / "back.parquet").exists()


def test_rows_that_are_no_table_are_not_pressed_into_one(tmp_path: Path) -> None:
    path, _ = store(tmp_path, ".jsonl")
    (done,) = audit("rows", data_for(path), Path(), tmp_path / "out", fix=True).cleaned
    with pytest.raises(DataError, match=r"is not text.*Name a \.jsonl file"):
        undo_clean(done.diff, tmp_path / "back.csv")
    loose = tmp_path / "loose.jsonl"
    loose.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d", "more": "e"}\n')
    (done,) = audit("loose", data_for(loose), Path(), tmp_path / "out2", fix=True).cleaned
    with pytest.raises(DataError, match=r"different columns.*Name a \.jsonl file"):
        undo_clean(done.diff, tmp_path / "back.csv")
    assert not (tmp_path / "back.csv").exists()


# --- personal data -------------------------------------------------------------------------------------------

MAIL, PHONE = "mira@mill.example.net", "212-555-0187"
PEOPLE = [
    {"prompt": "Who are you?", "answer": f"I am Mira Quill, {MAIL}.\r\n", "Applicant": "Mira Quill"},
    {"prompt": f"Call {PHONE}?", "answer": f"1. Mail {MAIL} 2. Call {PHONE} 3. Wait", "Applicant": "Tom Tern"},
    {"prompt": "Who then?", "answer": "Yours truly, [Your Name]", "Applicant": "Mira Quill"},
    {"prompt": " ", "answer": f"Mira Quill is left out, {MAIL}.", "Applicant": "Mira Quill"},
]
VALUES = (MAIL, PHONE, "Mira", "Quill", "Tern", "mira@")
PERSONAL = ["empty", {"personal": {"names": ["Applicant"]}}, "placeholder", "whitespace", "collapsed_list", "too_short"]


def people(folder: Path) -> Path:
    path = folder / "people.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in PEOPLE))
    return path


def written(folder: Path) -> str:
    """Every text below a folder."""
    return "\n".join(
        f"{path.name}\n{path.read_text(encoding='utf-8', errors='replace')}"
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_a_cleaning_with_pseudonyms_holds_no_value_and_is_not_undone(tmp_path: Path) -> None:
    path, book_file = people(tmp_path), tmp_path / "kept apart" / "book.json"
    book_file.parent.mkdir()
    data = data_for(path, checks=PERSONAL, pseudonyms=str(book_file))
    found = audit("people", data, Path(), tmp_path / "out", fix=True)
    (cleaned,) = found.cleaned
    assert (cleaned.kept, cleaned.left_out) == (3, 1)
    assert found.account["repaired"]["pseudonyms"] > 0
    text = written(tmp_path / "out")
    assert not [value for value in VALUES if value in text]
    assert stat.S_IMODE(book_file.stat().st_mode) == 0o600
    assert MAIL in book_file.read_text()
    assert not [each for each in (tmp_path / "out").rglob("*") if "book" in each.name]
    assert found.account["checks"]["personal"]["found"] > 0  # pseudonyms look like what they stand for
    with pytest.raises(DataError, match="personal data was replaced"):
        tunesmith.undo(cleaned.diff, tmp_path / "back.jsonl")
    book = PseudonymMap.load(book_file)
    kept = [dict(each.values) for each in read(cleaned.file)]
    assert [restore(each["answer"], book) for each in kept] == [
        f"I am Mira Quill, {MAIL}.",
        f"1. Mail {MAIL}\n2. Call {PHONE}\n3. Wait",
        "Yours truly, Mira Quill",
    ]
    assert kept[0]["Applicant"] == kept[2]["Applicant"]
    before = book_file.read_bytes()
    audit("people", data, Path(), tmp_path / "again", fix=True)  # the book is opened again: the same pseudonyms
    assert (tmp_path / "again/people.cleaned.jsonl").read_bytes() == cleaned.file.read_bytes()
    assert book_file.read_bytes() == before


def test_a_run_holds_neither_the_values_nor_the_pseudonym_map(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    lines = [
        {**PEOPLE[n % 2], "prompt": f"{PEOPLE[n % 2]['prompt']} And how to do {n} of them?", "topic": f"t{n % 3}"}
        for n in range(18)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    changes: dict[str, Any] = {
        "data__format": {"columns": {"prompt": "prompt", "answer": "answer", "group": "topic"}},
        "data__checks": PERSONAL,
        "data__split": {"by": "rows", "together": None},
        "data__repair": True,
        "prompt__max_tokens": 512,
    }
    plain = read_recipe(str(recipe_file(**changes)))
    open_run = tunesmith.open_run(plain, tmp_path / "plain")
    tunesmith.prepare(plain, open_run)
    repairs = [json.loads(line) for line in (open_run / "data/repairs.jsonl").read_text().split("\n") if line]
    assert len(repairs) == 18  # without a book each change is written down, and can be undone
    assert {change["path"][0] for line in repairs for change in line["changes"]} == {"answer"}
    recipe = read_recipe(str(recipe_file(**changes, data__pseudonyms="apart.json")))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    said: list[str] = []
    tunesmith.prepare(recipe, run, said.append)
    text = written(run.path)
    assert not [value for value in VALUES if value in text]
    assert "Person1" in (run / "data/train.jsonl").read_text()
    assert (run / "data/repairs.jsonl").read_text() == ""
    assert stat.S_IMODE((tmp_path / "apart.json").stat().st_mode) == 0o600
    assert not list(run.path.rglob("*apart*"))
    assert any("pseudonyms for personal data" in each for each in said)
    assert not [value for value in VALUES if value in "\n".join(said)]


def test_an_unknown_kind_of_personal_data_is_said_before_rows_are_read(tmp_path: Path) -> None:
    data = data_for(people(tmp_path), checks=[{"personal": {"kinds": ["emial"]}}], pseudonyms=str(tmp_path / "book"))
    with pytest.raises(RecipeError, match=r"unknown kind 'emial'\. Did you mean 'email'"):
        audit("people", data, Path(), tmp_path / "out")
    assert not (tmp_path / "book").exists()


def test_opened_sources_name_the_files_made_from_them(tmp_path: Path) -> None:
    path, _ = store(tmp_path, ".csv.gz")
    (source,) = opened(path)
    assert (source.stem, source.kind) == ("rows", ".csv")
    assert len(source.fingerprint()) == 64
    assert source.facts()["bytes"] == path.stat().st_size
