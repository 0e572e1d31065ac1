"""Each kind of row is read alike by `new`, `audit` and a drafted recipe, and all three say what they leave aside."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from handmade import write
from tunesmith.commands.audit import audit, audit_arguments
from tunesmith.commands.read_rows import log_sources, row_loader
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.data.detect_format import MARKS, detect_format
from tunesmith.errors import DataError

WHERE = "oven mill barn well dairy forge inn quay loft cellar"


def talk(number: int) -> list[dict[str, Any]]:
    place = WHERE.split()[number % 10]
    return [
        {"role": "user", "content": f"Who keeps the {place} in village {number}?"},
        {
            "role": "assistant",
            "content": f"In village {number} the {place} is kept by the family of house {number * 7}.",
        },
    ]


def call(number: int) -> list[dict[str, Any]]:
    asked, answer = talk(number)
    return [asked, {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}, answer]


def pair(number: int, **more: Any) -> dict[str, Any]:
    asked, answer = talk(number)
    return {"prompt": asked["content"], "completion": answer["content"], **more}


def table(path: Path, cells: Sequence[str]) -> Path:
    with path.open("w", newline="") as sink:
        csv.writer(sink).writerows([["nr", "messages"], *([str(number), cell] for number, cell in enumerate(cells))])
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drafted(source: str) -> tuple[Recipe, list[str]]:
    said: list[str] = []
    tunesmith.new("rows", source, Path("rows.yaml"), said.append)
    return read_recipe("rows.yaml"), said


def read(recipe: Recipe) -> tuple[int, list[str]]:
    """How many rows the drafted recipe reads, and what is said of the others."""
    said: list[str] = []
    with row_loader(recipe.data, recipe.folder, None) as reading:
        loaded = reading()
        log_sources(loaded, said.append)
        return len(loaded.rows), said


def audited(source: str) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    name, data, base, recipe = audit_arguments(source)
    return audit(name, data, base, Path("out"), said.append, recipe=recipe).account, said


def agree(source: str, rows: int, remarks: list[str], format: dict[str, Any]) -> None:
    recipe, said = drafted(source)
    assert {recipe.data.format.name: recipe.data.format.options} == format
    assert [line for line in said if not line.startswith("new:")] == remarks
    assert read(recipe) == (rows, remarks)
    account, said = audited(source)
    assert said == remarks
    assert account["read"] - account["unread"] - sum(account["left_out"].values()) == rows
    assert json.loads(Path("out/audit.json").read_text())["unused"] == account["unused"]


TOOLS = "dropped, not conversations: 20 of 40 rows (a message is a tool call)"


def test_plain_rows_among_tool_rows(here: Path) -> None:
    write(here / "rows.jsonl", [{"messages": (call if number % 2 else talk)(number)} for number in range(40)])
    agree("rows.jsonl", 20, [TOOLS], {"chat": {}})
    assert any(check.name == "broken" for check in read_recipe("rows.yaml").data.checks)
    assert "(a message is a tool call): dropped" in Path("rows.yaml").read_text()


def test_tool_rows_alone_are_refused_everywhere(here: Path) -> None:
    write(here / "rows.jsonl", [{"messages": call(number)} for number in range(10)])
    for command in (drafted, audited):
        with pytest.raises(DataError, match="all 10 sampled rows are tool calls"):
            command("rows.jsonl")


def test_tables_of_offered_tools_that_nobody_calls_are_plain(here: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    write(here / "rows.jsonl", [{"messages": talk(number), "tools": tools} for number in range(10)])
    agree("rows.jsonl", 10, ["not used: the column tools"], {"chat": {}})


@pytest.mark.parametrize("dump", [json.dumps, repr, lambda said: json.dumps({"messages": said})])
def test_messages_in_a_tables_cells(here: Path, dump: Any) -> None:
    table(here / "rows.csv", [dump(talk(number)) for number in range(30)])
    agree("rows.csv", 30, ["not used: the column nr"], {"chat": {}})


def test_questions_and_answers_of_messages(here: Path) -> None:
    rows = [{"prompt": talk(number)[:1], "completion": talk(number)[1:]} for number in range(10)]
    write(here / "rows.jsonl", rows)
    agree("rows.jsonl", 10, [], {"chat": {"messages": "prompt", "completion": "completion"}})


BAD = "left out as preference data: 15 of 30 rows (label marks its answer as bad)"


@pytest.mark.parametrize("marks", [(False, True), (0, 1), ("false", "true")])
def test_rows_marked_good_or_bad(here: Path, marks: Any) -> None:
    write(here / "rows.jsonl", [pair(number, label=marks[number % 2]) for number in range(30)])
    agree("rows.jsonl", 15, [BAD], {"columns": {"prompt": "prompt", "answer": "completion"}})
    write(here / "rows.jsonl", [{"messages": talk(number), "label": marks[number % 2]} for number in range(30)])
    Path("rows.yaml").unlink()
    agree("rows.jsonl", 15, [BAD], {"chat": {}})
    assert f"# 15 of 30 sampled rows are left out: {BAD.partition('(')[2][:-1]}" in Path("rows.yaml").read_text()


def test_a_label_of_two_classes_beside_texts_alone_stays_a_group() -> None:
    rows = [{"text": pair(number)["completion"], "label": number % 2} for number in range(30)]
    assert detect_format(rows).options["group"] == "label"
    marked = detect_format([pair(number, label=number % 2 == 0) for number in range(30)])
    assert marked.left == {"label": MARKS}
    assert "group" not in marked.options


def test_conversations_that_begin_with_the_assistant(here: Path) -> None:
    opening = {"role": "assistant", "content": "… continued."}
    write(here / "rows.jsonl", [{"messages": [opening] * (number % 3 == 0) + talk(number)} for number in range(30)])
    agree("rows.jsonl", 30, ["in the conversations: 10 opening assistant turns left out"], {"chat": {}})


def test_what_was_read_of_turns_is_counted_everywhere(here: Path) -> None:
    rows = []
    for number in range(30):
        turns = [*talk(number), *talk(number + 100)]
        if number < 12:
            turns[1] = {**turns[1], "weight": 0}
        if number < 5:
            turns[3] = {**turns[3], "content": f"<think>I count to {number}.</think>\n\n{turns[3]['content']}"}
        rows.append({"messages": turns})
    write(here / "rows.jsonl", rows)
    said = "in the conversations: 12 answers kept as context, not trained on; 5 answers with reasoning"
    agree("rows.jsonl", 30, [said], {"chat": {}})
    assert said in Path("out/audit.html").read_text()


def test_a_line_that_is_not_json_counts_in_a_draft_too(here: Path) -> None:
    write(here / "rows.jsonl", [{"messages": talk(number)} for number in range(29)])
    with Path("rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "con\n')
    reason = "is not JSON: Unterminated string starting at"
    agree("rows.jsonl", 29, [f"dropped, not conversations: 1 of 30 rows ({reason})"], {"chat": {}})
    assert "from all 30 rows of a table" in Path("rows.yaml").read_text()
    Path("rows.yaml").unlink()
    Path("rows.jsonl").write_text('{"messages": [{"role\n' * 3, encoding="utf-8")
    with pytest.raises(DataError, match="is not JSON"):
        drafted("rows.jsonl")


def test_a_folder_with_a_report(here: Path) -> None:
    (here / "data").mkdir()
    write(here / "data/rows.jsonl", [pair(number) for number in range(20)])
    (here / "data/report.json").write_text(json.dumps({"kept": 20, "removed": [pair(number) for number in range(5)]}))
    note = "data/rows.jsonl: not read from the same folder: report.json (an object that contains a list)"
    agree("data", 20, [note], {"columns": {"prompt": "prompt", "answer": "completion"}})


def test_a_table_of_several_forms_of_preference_names_each(here: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(10):
        rows += [
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"chosen": talk(number), "rejected": talk(number)},
            pair(number, label=True),
        ]
    write(here / "rows.jsonl", rows)
    for command in (drafted, audited):
        with pytest.raises(DataError) as caught:
            command("rows.jsonl")
        assert caught.value.what == (
            "20 of 30 sampled rows are preference pairs: 10 in which chosen and rejected are answers to 'prompt' "
            "(DPO); 10 in which chosen and rejected are lists of messages"
        )


def test_a_column_that_the_split_follows_is_used(here: Path) -> None:
    write(here / "rows.jsonl", [pair(number, fold="test" if number % 5 else "train") for number in range(20)])
    split = "split: {by: given, column: fold, together: null}"
    Path("rows.yaml").write_text(f"name: rows\nbase: {{model: m}}\ndata: {{source: rows.jsonl, {split}}}\n")
    assert read(read_recipe("rows.yaml")) == (20, [])
