"""What a row's columns mean: each format's turns and group, and each row it refuses."""

from __future__ import annotations

import datetime
from typing import Any, cast

import pytest

from tunesmith.data.conversation import (
    Conversation,
    Origin,
    Role,
    Turn,
    conversation_from_dict,
    conversation_to_dict,
    read_rows,
)
from tunesmith.data.formats import alpaca, auto, chat, columns, detect_row_format, fields, lines, sharegpt
from tunesmith.data.messages import ROLES
from tunesmith.errors import DataError

Pair = tuple[str, str]
NEED_BOTH = "Each message needs both"
TALK = [("user", "a"), ("assistant", "b")]


def said(*pairs: Pair, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [{role: name, content: text} for name, text in pairs]


@pytest.mark.parametrize(
    ("parse", "values", "options", "turns", "group"),
    [
        (columns, {"prompt": "q", "answer": "a", "more": 1}, {}, [("user", "q"), ("assistant", "a")], ""),
        (
            columns,
            {"q": " q ", "a": "a\n", "s": "be kind", "t": " bills "},
            {"prompt": "q", "answer": "a", "system": "s", "group": "t"},
            [("system", "be kind"), ("user", " q "), ("assistant", "a\n")],
            "bills",
        ),
        (columns, {"prompt": 5, "answer": 1.5}, {}, [("user", "5"), ("assistant", "1.5")], ""),
        (columns, {"prompt": None, "answer": ""}, {}, [("user", ""), ("assistant", "")], ""),
        (
            columns,
            {"prompt": "q", "answer": datetime.date(2026, 1, 2), "t": 7},
            {"group": "t"},
            [("user", "q"), ("assistant", "2026-01-02")],
            "7",
        ),
        (
            alpaca,
            {"instruction": "Translate.\n", "input": " hello ", "output": "hallo"},
            {},
            [("user", "Translate.\n\nhello"), ("assistant", "hallo")],
            "",
        ),
        (
            alpaca,
            {"instruction": "Go.\n", "input": " ", "output": "x"},
            {},
            [("user", "Go.\n"), ("assistant", "x")],
            "",
        ),
        (alpaca, {"instruction": "Go.", "input": None, "output": "x"}, {}, [("user", "Go."), ("assistant", "x")], ""),
        (
            alpaca,
            {"do": "Go.", "to": "x", "get": "y", "t": "g"},
            {"instruction": "do", "input": "to", "output": "get", "group": "t"},
            [("user", "Go.\n\nx"), ("assistant", "y")],
            "g",
        ),
        (alpaca, {"instruction": "Go.", "output": "x"}, {}, [("user", "Go."), ("assistant", "x")], ""),
        (chat, {"messages": said(*TALK)}, {}, TALK, ""),
        (
            chat,
            {"messages": said(("system", "s"), *TALK, ("user", "c"), ("assistant", "d")), "t": "g"},
            {"group": "t"},
            [("system", "s"), *TALK, ("user", "c"), ("assistant", "d")],
            "g",
        ),
        (
            chat,
            {"talk": said(*TALK, role="who", content="says")},
            {"messages": "talk", "role": "who", "content": "says"},
            TALK,
            "",
        ),
        (chat, {"messages": [{"role": "user", "content": "a", "tool_calls": []}, *said(TALK[1])]}, {}, TALK, ""),
        (
            sharegpt,
            {"conversations": said(("system", "s"), ("human", "a"), ("gpt", "b"), role="from", content="value")},
            {},
            [("system", "s"), *TALK],
            "",
        ),
        (
            sharegpt,
            {"talk": said(("prompter", "a"), ("bot", "b"), role="from", content="value"), "t": "g"},
            {"conversations": "talk", "group": "t"},
            TALK,
            "g",
        ),
    ],
)
def test_a_row_becomes_turns_and_a_group(
    parse: Any, values: dict[str, Any], options: dict[str, str], turns: list[Pair], group: str
) -> None:
    found, name = parse(values, **options)
    assert ([(turn.role, turn.text) for turn in found], name) == (turns, group)


def no(column: str, has: str, option: str) -> Pair:
    return f"no column '{column}'. It has: {has}", f"Set {option} in data.format to one of them"


def not_text(column: str, kind: str) -> Pair:
    return f"'{column}' is of type {kind}, not text", f"Set '{column}' to a text column"


@pytest.mark.parametrize(
    ("parse", "values", "options", "expected"),
    [
        (columns, {"question": "q", "answer": "a"}, {}, no("prompt", "question, answer", "prompt")),
        (columns, {"prompt": "q", "reply": "a"}, {}, no("answer", "prompt, reply", "answer")),
        (columns, {"prompt": "q", "answer": "a"}, {"system": "s"}, no("s", "prompt, answer", "system")),
        (columns, {"prompt": "q", "answer": "a"}, {"group": "t"}, no("t", "prompt, answer", "group")),
        (columns, {}, {}, no("prompt", "nothing", "prompt")),
        (columns, {"prompt": True, "answer": "a"}, {}, not_text("prompt", "bool")),
        (columns, {"prompt": "q", "answer": ["a"]}, {}, not_text("answer", "list")),
        (columns, {"prompt": {"a": 1}, "answer": "a"}, {}, not_text("prompt", "dict")),
        (columns, {"prompt": b"q", "answer": "a"}, {}, not_text("prompt", "bytes")),
        (alpaca, {"input": "x", "output": "y"}, {}, no("instruction", "input, output", "instruction")),
        (alpaca, {"instruction": "x", "response": "y"}, {}, no("output", "instruction, response", "output")),
        (alpaca, {"instruction": "x", "output": "y"}, {"group": "t"}, no("t", "instruction, output", "group")),
        (alpaca, {"instruction": "x", "input": ["z"], "output": "y"}, {}, not_text("input", "list")),
        (chat, {"conversations": []}, {}, no("messages", "conversations", "messages")),
        (sharegpt, {"messages": []}, {}, no("conversations", "messages", "messages")),
        (chat, {"messages": said(*TALK)}, {"group": "t"}, no("t", "messages", "group")),
    ],
)
def test_a_row_without_the_column_is_told_what_it_has(
    parse: Any, values: dict[str, Any], options: dict[str, str], expected: Pair
) -> None:
    with pytest.raises(DataError) as caught:
        parse(values, **options)
    assert (caught.value.what, caught.value.next, caught.value.where) == (*expected, "")


TOOL = "Tool calls are not supported; remove the row"
TEXT = "Only text is supported; remove the row"
MIDDLE = ("has a system message in the middle", "Move it to the start, or make it a user message")
KNOWN = f"Use one of: {', '.join(ROLES)}"
NO_PAIR = ("has no question with an answer", "A conversation needs a user and an assistant message")


@pytest.mark.parametrize(
    ("messages", "what", "next"),
    [
        ([*said(TALK[0]), {"role": "assistant"}], "message 2 lacks 'role' or 'content'", NEED_BOTH),
        ([{"content": "x"}], "message 1 lacks 'role' or 'content'", NEED_BOTH),
        (["hello"], "message 1 lacks 'role' or 'content'", NEED_BOTH),
        (
            [*said(TALK[0]), {"role": "assistant", "content": None, "tool_calls": [{}]}],
            "message 2 is a tool call",
            TOOL,
        ),
        (said(*TALK, ("tool", "42")), "message 3 is a tool call", TOOL),
        (said(("user", "a"), ("function_call", "{}")), "message 2 is a tool call", TOOL),
        (said(("user", "a"), ("observation", "{}")), "message 2 is a tool call", TOOL),
        (said(("user", "a"), ("narrator", "b")), "message 2 has the unknown role 'narrator'", KNOWN),
        (said(("User", "a"), ("assistant", "b")), "message 1 has the unknown role 'User'", KNOWN),
        ([{"role": ["user"], "content": "a"}], "message 1 has the unknown role ['user']", KNOWN),
        ([{"role": None, "content": "a"}], "message 1 has the unknown role None", KNOWN),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "message 1 has a part of type 'text', not text",
            TEXT,
        ),
        ([{"role": "user", "content": None}], "message 1 has content of type NoneType, not text", TEXT),
        (said(*TALK, ("system", "s"), *TALK), *MIDDLE),
        (said(("user", "a")), *NO_PAIR),
        (said(("system", "s"), ("assistant", "a")), *NO_PAIR),
        (said(("assistant", "a"), ("user", "b")), *NO_PAIR),
        ([], *NO_PAIR),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_is_refused(messages: list[Any], what: str, next: str) -> None:
    with pytest.raises(DataError) as caught:
        chat({"messages": messages})
    assert (caught.value.what, caught.value.next, caught.value.where) == (what, next, "")


# --- conversations -------------------------------------------------------------------------------------------


def conversation(*pairs: Pair, **more: Any) -> Conversation:
    return Conversation("id", tuple(Turn(cast(Role, role), text) for role, text in pairs), Origin("f", 3), **more)


def test_the_parts_of_a_conversation() -> None:
    row = conversation(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert (row.question, row.answer, len(row.prompt), str(row.origin)) == ("c", "d", 4, "f line 3")
    assert str(Origin("f.parquet", 2, "row")) == "f.parquet row 2"


def test_a_system_message_is_put_before_those_that_have_none() -> None:
    row = conversation(*TALK)
    with_system = row.with_system("s")
    assert [turn.text for turn in with_system.turns] == ["s", "a", "b"]
    assert (with_system.id, with_system.question, with_system.answer) == ("id", "a", "b")
    assert with_system.with_system("other") is with_system
    assert row.with_system(None) is row.with_system("") is row


def test_rows_come_back_from_a_file_whatever_they_hold(tmp_path: Any) -> None:
    import json

    rows = [
        conversation(("user", "line\n\u2028\u2029\x85\x0b\x1c one"), ("assistant", "終\r\n"), group="g"),
        conversation(*TALK, fields={"n": 1, "x": 1.5, "ok": True, "t": "\u2028"}),
    ]
    path = tmp_path / "train.jsonl"
    path.write_bytes("".join(json.dumps(conversation_to_dict(row), ensure_ascii=False) + "\n" for row in rows).encode())
    assert read_rows(path) == rows
    assert [conversation_from_dict(conversation_to_dict(row)) for row in rows] == rows
    assert conversation_to_dict(rows[1])["messages"] == said(*TALK)


# --- templates, fields, lines --------------------------------------------------------------------------------


def test_columns_may_be_templates_over_columns() -> None:
    values = {"topic": "tea", "reader": "a child", "n": 3, "out": "Tea is hot.", "{odd}": "itself"}
    turns, _ = columns(values, prompt="Write {n} lines on {topic} for {reader}, {{so}}.", answer="out")
    assert [turn.text for turn in turns] == ["Write 3 lines on tea for a child, {so}.", "Tea is hot."]
    assert columns(values, prompt="{odd}", answer="out")[0][0].text == "itself"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("on {theme}", "no column 'theme'. It has: topic, out"),
        ("on {topic", "'on {topic' is not a template: expected '}' before end of string"),
        ("on {topic!r}", "'on {topic!r}' has a format specifier"),
        ("on {topic:>9}", "'on {topic:>9}' has a format specifier"),
        ("on {topic.__class__}", "no column 'topic.__class__'. It has: topic, out"),
        ("on {}", "no column ''. It has: topic, out"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        columns({"topic": "tea", "out": "x"}, prompt=template, answer="out")
    assert caught.value.what == what


def test_fields_are_listed_under_their_names_and_empty_ones_left_out() -> None:
    values = {"Job": "Baker", "Skills": " dough,\n ovens ", "Note": " ", "Letter": "Dear …", "Firm": "Crumb"}
    options: dict[str, Any] = {"fields": ["Job", "Firm", "Note", "Skills"], "answer": "Letter", "group": "Firm"}
    turns, group = fields(values, instruction="Write a letter.", **options)
    assert turns[0].text == "Write a letter.\n\nJob: Baker\nFirm: Crumb\nSkills: dough, ovens"
    assert (turns[1].text, group) == ("Dear …", "Crumb")
    assert fields(values, **options)[0][0].text == "Job: Baker\nFirm: Crumb\nSkills: dough, ovens"
    with pytest.raises(DataError, match="no column 'Age'"):
        fields(values, fields=["Age"], answer="Letter")


def test_lines_answer_their_prompt_or_a_question_drawn_by_their_text() -> None:
    ask = ["How are you?", "What now?", "And the weather?"]
    found = [lines({"line": f"Line {n}."}, ask=ask)[0] for n in range(40)]
    assert [turns[1].text for turns in found] == [f"Line {n}." for n in range(40)]
    assert {turns[0].text for turns in found} == set(ask)
    assert found == [lines({"line": f"Line {n}."}, ask=ask)[0] for n in range(40)]
    assert lines({"line": "No.", "asked": "Dance?"}, prompt="asked", ask=ask)[0][0].text == "Dance?"
    assert lines({"line": "No.", "asked": " "}, prompt="asked", ask=ask)[0][0].text in ask
    with pytest.raises(DataError, match="the line has no prompt"):
        lines({"line": "No."})


def test_a_preference_pair_is_refused_with_its_reason() -> None:
    with pytest.raises(DataError, match="is a preference pair"):
        columns({"prompt": "q", "chosen": "a", "rejected": "b"})


# --- recognized ----------------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SPOKEN = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("values", "name", "options"),
    [
        ({"messages": TURNS}, "chat", {}),
        ({"Turns": TURNS}, "chat", {"messages": "Turns"}),
        ({"conversations": SPOKEN}, "sharegpt", {}),
        ({"conversation": SPOKEN, "output": "x"}, "sharegpt", {"conversations": "conversation"}),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", {}),
        ({"Instruction": "q", "Output": "a"}, "alpaca", {"instruction": "Instruction", "output": "Output"}),
        ({"id": 1, "Question": "q", "Answer": "a"}, "columns", {"prompt": "Question", "answer": "Answer"}),
        ({"prompt": "q", "response": "x", "completion": "a"}, "columns", {"prompt": "prompt", "answer": "completion"}),
    ],
)
def test_a_rows_format_is_recognised(values: dict[str, Any], name: str, options: dict[str, str]) -> None:
    found = detect_row_format(values)
    assert (found.name, found.options) == (name, options)
    assert found.why
    turns, _ = auto(values)
    assert [(turn.role, turn.text) for turn in turns] == [("user", "q"), ("assistant", "a")]
    assert auto({**values, "topic": "t"}, group="topic")[1] == "t"


def test_what_is_not_recognised_is_refused_with_what_it_has() -> None:
    with pytest.raises(DataError, match=r"its format is unknown\. It has: a, b"):
        auto({"a": "1", "b": "2"})
    with pytest.raises(DataError, match="is a preference pair"):
        auto({"prompt": "q", "chosen": "a", "rejected": "b"})
