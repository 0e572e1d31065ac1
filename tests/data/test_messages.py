"""Chat rows are read as they say: reasoning, loss flags, parts, order; what is not used is counted, never silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handmade import opened, write
from tunesmith.config.recipe import NamedSetting
from tunesmith.data.conversation import Turn, conversation_from_dict, conversation_to_dict, split_reasoning
from tunesmith.data.formats import alpaca, auto, chat, columns, detect_row_format, fields, lines, sharegpt
from tunesmith.data.load import LoadedRows, load_rows, summarize_notes
from tunesmith.data.messages import decoded_messages
from tunesmith.data.repair_rows import RowRepair, undo_row
from tunesmith.data.repair_rows import changes_from_plain as changes_from_plain
from tunesmith.data.repair_rows import changes_to_dicts as changes_to_plain
from tunesmith.errors import DataError, MultipleErrors

ASKED = {"role": "user", "content": "q"}


def answered(text: Any = "a", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def turns_of(*messages: dict[str, Any]) -> tuple[Turn, ...]:
    return chat({"messages": list(messages)})[0]


def refused(*messages: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        chat({"messages": list(messages)})
    assert caught.value.next
    return caught.value.what


# --- reasoning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nr\n</think>\n\na", ("r", "a")),
        ("<think>r</think>a", ("r", "a")),
        (" \n<think>  r\n  s</think> a", ("  r\n  s", " a")),
        ("<think>\r\nr\r\n</think>\r\n\r\na\r\n", ("r", "a\r\n")),
        ("r\ns\n</think>\n\na", ("r\ns", "a")),  # the template opened the block
        ("</think>\n\na", ("", "a")),
        ("<think></think>\na", ("", "a")),
        ("<think>\n\n</think>\n\na", ("", "a")),
        ("<think>r</think>", ("r", "")),
        ("<think>r</think>a <think>s</think> b", ("r", "a <think>s</think> b")),
        ("<think>r</think></think>a", ("r", "</think>a")),
        ("<think>never closed", ("", "<think>never closed")),
        ("\n plain \n", ("", "\n plain \n")),
        ("Text, then <think>r</think> more", ("", "Text, then <think>r</think> more")),
        ("Models end it with `</think>`.", ("", "Models end it with `</think>`.")),
        ("See:\n```\nr\n</think>\na\n```\nDone", ("", "See:\n```\nr\n</think>\na\n```\nDone")),
        ("<think>\n```py\nx = '</think>'\n```\nso\n</think>\na", ("```py\nx = '</think>'\n```\nso", "a")),
        ("<think>\n```py\nx = 1\n</think>\na", ("```py\nx = 1", "a")),  # a fence that is not closed
    ],
)
def test_a_leading_thought_is_split_from_the_text(text: str, expected: tuple[str, str]) -> None:
    assert split_reasoning(text) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "```", "\n", "a", " ", "`"]), max_size=12).map("".join))
def test_the_text_is_always_the_end_of_what_was_given(text: str) -> None:
    reasoning, rest = split_reasoning(text)
    assert text.endswith(rest)
    assert reasoning in text
    assert (reasoning, rest) == ("", text) or "</think>" in text


def test_a_long_text_of_tags_is_split_quickly() -> None:
    assert split_reasoning("<think>" * 50_000 + "</think>" * 50_000)[1] == "</think>" * 49_999
    fenced = "```\n</think>\n```\n" * 50_000
    assert split_reasoning(f"{fenced}a") == ("", f"{fenced}a")


@pytest.mark.parametrize(
    "parsed",
    [
        lambda text: columns({"prompt": "q", "answer": text}),
        lambda text: auto({"question": "q", "answer": text}),
        lambda text: alpaca({"instruction": "q", "output": text}),
        lambda text: lines({"line": text}, ask=["q"]),
        lambda text: fields({"name": "n", "letter": text}, fields=["name"], answer="letter", instruction="q"),
        lambda text: chat({"messages": [ASKED, answered(text)]}),
        lambda text: sharegpt({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": text}]}),
        lambda text: chat({"prompt": [ASKED], "reply": text}, messages="prompt", completion="reply"),
    ],
)
def test_every_format_splits_the_answers_thought(parsed: Any) -> None:
    turns, _ = parsed("<think>\nr\n</think>\n\na")
    assert turns[-1] == Turn("assistant", "a", reasoning="r")
    assert parsed("plain\n")[0][-1] == Turn("assistant", "plain\n")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_the_reasoning_of_a_message_is_taken_under_each_usual_key(key: str) -> None:
    parsed = chat({"messages": [ASKED, answered(**{key: "\nr\n"})]})
    assert parsed[0][1] == Turn("assistant", "a", reasoning="r")
    assert not parsed.notes.unused


def test_reasoning_in_two_places_is_one_or_refused() -> None:
    same = answered("<think>r</think>a", reasoning="r", reasoning_content="r\n")
    assert turns_of(ASKED, same)[1] == Turn("assistant", "a", reasoning="r")
    assert refused(ASKED, answered(reasoning="r", thinking="s")) == "message 2 has two different reasoning texts"
    assert turns_of(ASKED, answered("<think></think>a", reasoning=""))[1] == Turn("assistant", "a")


def test_other_forms_of_reasoning() -> None:
    parts = [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]
    nested = [{"type": "thinking", "thinking": [{"type": "text", "text": "r"}]}, {"type": "text", "text": "a"}]
    expected = Turn("assistant", "a", reasoning="r")
    assert turns_of(ASKED, answered(parts))[1] == turns_of(ASKED, answered(nested))[1] == expected
    channels = [ASKED, answered("r", channel="analysis"), answered("a", channel="final")]
    parsed = chat({"messages": channels})
    assert parsed[0] == (Turn("user", "q"), expected)
    assert parsed.notes.unused == {"messages[].channel": 1}  # "final" says nothing that is not known


def test_a_users_think_tag_and_reasoning_key_stay_what_they_are() -> None:
    parsed = chat({"messages": [{"role": "user", "content": "<think>r</think>q", "reasoning": "x"}, answered()]})
    assert parsed[0][0] == Turn("user", "<think>r</think>q")
    assert parsed.notes.unused == {"messages[].reasoning": 1}


# --- loss flags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"learn": False}])
def test_an_answer_that_carries_no_loss_is_context(flag: dict[str, Any]) -> None:
    parsed = chat({"messages": [ASKED, answered("wrong", **flag), ASKED, answered("a", weight=1)]})
    assert [turn.learn for turn in parsed[0]] == [True, False, True, True]
    assert [turn.text for turn in parsed[0]] == ["q", "wrong", "q", "a"]
    assert not parsed.notes.unused


@pytest.mark.parametrize(
    "flag",
    [{"weight": 1}, {"weight": True}, {"weight": None}, {"weight": float("nan")}, {"train": True}, {"loss": 1.0}],
)
def test_an_answer_that_carries_loss_is_learned(flag: dict[str, Any]) -> None:
    assert turns_of(ASKED, answered(**flag))[1].learn


@pytest.mark.parametrize("value", [2, 0.5, -1, "0", [], {}])
def test_any_other_weight_is_an_error_that_names_it(value: Any) -> None:
    assert refused(ASKED, answered(weight=value)) == f"message 2 has weight {value!r}, which is neither 0 nor 1"
    assert refused({**ASKED, "weight": value}, answered()).startswith("message 1 has weight")


def test_a_weight_of_users_and_system_messages_changes_nothing() -> None:
    system = {"role": "system", "content": "s", "weight": 1}
    parsed = chat({"messages": [system, {**ASKED, "weight": 0}, answered()]})
    assert parsed[0] == (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"))
    assert not parsed.notes.unused
    train = chat({"messages": [{**ASKED, "train": True}, answered()]})  # a user's turn is not learned: said
    assert train.notes.unused == {"messages[].train": 1}


def test_what_follows_the_last_learned_answer_is_left_out() -> None:
    parsed = chat({"messages": [ASKED, answered(), ASKED, answered("wrong", weight=0), ASKED]})
    assert parsed[0] == (Turn("user", "q"), Turn("assistant", "a"))
    assert parsed.notes.turns == {"turns after the last answer with loss left out": 3}
    assert refused(ASKED, answered(weight=0)) == "has no answer to train on"
    assert refused(answered(), ASKED, answered(loss=False)) == "has no answer to train on"


# --- content -------------------------------------------------------------------------------------------------


def test_text_parts_are_joined_as_they_stand() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "output_text", "text": "b"}, "c", {"text": "d"}]
    assert turns_of(ASKED, answered(parts))[1].text == "a bcd"
    assert turns_of({"role": "user", "content": [{"type": "input_text", "text": "q"}]}, answered())[0].text == "q"
    table = [{"type": "text", "text": "q", "image_url": None}]  # as Parquet gives it
    assert turns_of({"role": "user", "content": table}, answered())[0].text == "q"


@pytest.mark.parametrize(
    "part",
    [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio", "input_audio": {}}, {"type": "image"}],
)
def test_a_part_that_is_no_text_refuses_the_row(part: dict[str, Any]) -> None:
    what = refused({"role": "user", "content": [{"type": "text", "text": "q"}, part]}, answered())
    assert what == f"message 1 has a part of type '{part['type']}', not text"


# --- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "kept", "changes"),
    [
        ("ua", "ua", {}),
        ("sua", "sua", {}),
        ("aua", "ua", {"opening assistant turns left out": 1}),
        ("saaua", "sua", {"opening assistant turns left out": 2}),
        ("asua", "sua", {"opening assistant turns left out": 1}),
        ("uua", "ua", {"user turns joined with the one before": 1}),
        ("uaa", "ua", {"assistant turns joined with the one before": 1}),
        ("ssua", "sua", {"system turns joined with the one before": 1}),
        ("uau", "ua", {"turns after the last answer with loss left out": 1}),
        ("uasu", "ua", {"turns after the last answer with loss left out": 2}),
    ],
)
def test_turns_out_of_order_are_left_out_or_joined_and_counted(roles: str, kept: str, changes: dict[str, int]) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    said = [{"role": names[role], "content": f"{role}{place}"} for place, role in enumerate(roles)]
    parsed = chat({"messages": said})
    assert "".join(turn.role[0] for turn in parsed[0]) == kept
    assert parsed.notes.turns == changes


def test_joined_turns_stand_apart_by_a_blank_line() -> None:
    assert [turn.text for turn in turns_of(ASKED, {"role": "human", "content": "r"}, answered("b"), answered("c"))] == [
        "q\n\nr",
        "b\n\nc",
    ]
    assert "only one has loss" in refused(ASKED, answered(weight=0), answered())
    assert "with reasoning follows another" in refused(ASKED, answered(), answered(reasoning="r"))


def test_roles_of_newer_models() -> None:
    turns = turns_of({"role": "developer", "content": "s"}, ASKED, answered())
    assert turns[0] == Turn("system", "s")
    assert refused(ASKED, answered(), {"role": "developer", "content": "s"}, ASKED, answered()).startswith(
        "has a system"
    )


# --- keys and columns that are not used ----------------------------------------------------------------------


def test_every_key_that_is_not_used_is_counted() -> None:
    said = [{**ASKED, "name": "Mo", "id": 1}, answered(name="Bo", refusal=None, tool_calls=[])]
    parsed = chat({"messages": said, "source": "x", "empty": "", "tools": []})
    assert parsed.notes.unused == {"messages[].name": 2, "messages[].id": 1, "messages[].tool_calls": 1, "source": 1}
    (line,) = summarize_notes(parsed.notes, {}, {}, 1)
    assert line == "not used: name in 2 messages, id in 1 message, tool_calls in 1 message, the column source"


@pytest.mark.parametrize(
    ("parsed", "unused"),
    [
        (lambda: columns({"prompt": "q", "answer": "a", "n": 1}), {"n"}),
        (lambda: columns({"p": "q", "a": "a", "s": "s", "n": 1}, prompt="On {p}", answer="a", system="s"), {"n"}),
        (lambda: fields({"x": "1", "y": "2", "n": 0}, fields=["x"], answer="y"), {"n"}),
        (lambda: lines({"line": "l", "n": 1}, ask=["q"]), {"n"}),
        (lambda: alpaca({"instruction": "q", "input": "", "output": "a", "history": [["x"]]}), {"history"}),
        (lambda: columns({"prompt": "q", "answer": "a", "n": 1}, group="n"), set()),
    ],
)
def test_columns_that_are_not_used_are_counted_in_every_format(parsed: Any, unused: set[str]) -> None:
    assert set(parsed().notes.unused) == unused


# --- messages in cells ---------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": 'Why? It\'s "so"\n'}, {"role": "assistant", "content": "é \\ 'a'"}]
PRINTED = "[{}\n {}]".format(*map(repr, TALK))  # as numpy prints an array of them


@pytest.mark.parametrize(
    "cell",
    [json.dumps(TALK), json.dumps({"messages": TALK}), repr(TALK), PRINTED, f" {json.dumps(TALK, indent=1)}\n"],
)
def test_a_cell_with_the_text_of_messages_is_read_as_chat(cell: str) -> None:
    for column in ("messages", "dialog"):
        found = detect_row_format({"nr": "1", column: cell})
        assert (found.name, found.options) == ("chat", {} if column == "messages" else {"messages": "dialog"})
        assert [turn.text for turn in auto({"nr": "1", column: cell})[0]] == [TALK[0]["content"], TALK[1]["content"]]


def test_sharegpt_in_a_cell_is_read_too() -> None:
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert detect_row_format({"data": json.dumps(said)}).options == {"conversations": "data"}
    assert [turn.text for turn in auto({"data": repr(said)})[0]] == ["q", "a"]


@pytest.mark.parametrize(
    "cell",
    ["[1, 2]", "[]", '["a"]', "[{'x': 1}]", "[not json", "{", "{}", "[" * 3000, "text", f"['{'a' * (1 << 20)}']"],
)
def test_other_texts_are_no_messages(cell: str) -> None:
    assert decoded_messages(cell) is None
    assert columns({"prompt": cell, "answer": cell})[0][1].text == cell


def test_a_question_and_answer_of_messages_are_read_and_only_the_answer_is_learned() -> None:
    history = [ASKED, answered("earlier"), {"role": "user", "content": "r"}]
    for completion in ([answered("a")], "a", json.dumps([answered("a")])):
        values = {"prompt": history, "completion": completion}
        assert detect_row_format(values).options == {"messages": "prompt", "completion": "completion"}
        turns, _ = auto(values)
        assert [(turn.text, turn.learn) for turn in turns if turn.role == "assistant"] == [
            ("earlier", False),
            ("a", True),
        ]
    texts = auto({"prompt": "q", "completion": [answered("a")]})[0]
    assert texts == (Turn("user", "q"), Turn("assistant", "a"))
    spoken = {"prompt": [{"from": "human", "value": "q"}], "response": "a"}
    assert [turn.text for turn in auto(spoken)[0]] == ["q", "a"]


# --- repair --------------------------------------------------------------------------------------------------

LIST = "1. Open the tab. 2. Tap the cart. 3. Tap the button."
LINES = "1. Open the tab.\n2. Tap the cart.\n3. Tap the button."
THOUGHT = "Let me see:\n\n    if  x:\t\n        y()\n\n\n\n\nSo 1. this 2. that 3. done \n"


@pytest.mark.parametrize(
    ("values", "parse", "path"),
    [
        ({"prompt": "q", "answer": f"<think>{THOUGHT}</think>\n\n{LIST}"}, columns, ("answer",)),
        ({"prompt": "q", "answer": f"{THOUGHT}</think>{LIST}"}, columns, ("answer",)),
        ({"messages": [ASKED, answered(f"<think>{THOUGHT}</think>{LIST}")]}, chat, ("messages", 1, "content")),
        ({"messages": [ASKED, answered(LIST, reasoning_content=THOUGHT)]}, chat, ("messages", 1, "content")),
    ],
)
def test_an_answer_is_repaired_behind_its_thought_which_stays(values: dict[str, Any], parse: Any, path: Any) -> None:
    done = RowRepair(damage=True).row(values, parse(values)[0])
    turn = parse(done.values)[0][-1]
    assert (turn.text, turn.reasoning) == (LINES, THOUGHT.strip("\n"))
    (change,) = done.changes
    assert change.path == path
    assert undo_row(done.values, changes_from_plain(json.loads(json.dumps(changes_to_plain(done.changes))))) == values


@pytest.mark.parametrize("cell", [json.dumps([ASKED, answered(LIST)]), repr({"messages": [ASKED, answered(LIST)]})])
def test_messages_in_a_cell_are_repaired_and_undone(cell: str) -> None:
    values = {"nr": "1", "messages": cell}
    done = RowRepair(damage=True).row(values, chat(values)[0])
    assert chat(done.values)[0][1].text == LINES
    assert undo_row(done.values, done.changes) == values
    assert [edit.kind for change in done.changes for edit in change.edits] == ["collapsed_list"]
    clean = {"messages": repr([ASKED, answered(" &amp ok")])}
    assert RowRepair(damage=True).row(clean, chat(clean)[0]).values == clean


def test_a_rows_answer_is_no_field_of_it_with_or_without_its_thought(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": "<think>r</think>\na", "name": "n"}]
    (row,) = read(tmp_path, rows, NamedSetting("columns", {})).rows
    assert row.own_fields() == {"prompt": "q", "name": "n"}
    (row,) = read(tmp_path, [{"dialog": json.dumps([ASKED, answered()]), "n": 1}]).rows
    assert row.own_fields() == {"n": "1"}


# --- whole files ---------------------------------------------------------------------------------------------


AUTO = NamedSetting("auto", {})


def read(folder: Path, rows: list[Any], format: NamedSetting = AUTO, *, drop: bool = True) -> LoadedRows:
    return load_rows(
        opened(write(folder / "rows.jsonl", rows)), format, None, into=folder / "rows.arrow", drop_broken=drop
    )


PLAIN = {"messages": [ASKED, answered()]}
CALL = {"messages": [ASKED, answered(None, tool_calls=[{"id": "t"}]), {"role": "tool", "content": "9"}, answered()]}


def test_plain_rows_are_read_among_tool_rows_which_are_counted(tmp_path: Path) -> None:
    late = {"messages": [ASKED, answered(), ASKED, {"role": "assistant", "function_call": {"name": "f"}}]}
    loaded = read(tmp_path, [CALL, PLAIN, late, {**PLAIN, "tools": [{"type": "function"}]}])
    assert (len(loaded.rows), len(loaded.broken)) == (2, 2)
    account = loaded.account()
    assert account["unread_because"] == {"a message is a tool call": 2}
    assert account["unused"] == {"tools": 1}
    assert summarize_notes(loaded.notes, {}, account["unread_because"], 4)[-1] == (
        "dropped, not conversations: 2 of 4 rows (a message is a tool call)"
    )
    with pytest.raises(MultipleErrors, match=r"2 of 4 rows do not fit.*add broken to data.checks"):
        read(tmp_path, [CALL, PLAIN, late, PLAIN], drop=False)


def test_a_file_of_tool_rows_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(MultipleErrors, match=r"message 2 is a tool call\. Tool calls are not supported"):
        read(tmp_path, [CALL] * 3)


@pytest.mark.parametrize("marks", [(True, False), (1, 0), (1.0, 0.0), ("true", "False"), ("1", "0")])
@pytest.mark.parametrize(
    "format", [NamedSetting("auto", {}), NamedSetting("columns", {"prompt": "prompt", "answer": "completion"})]
)
def test_rows_marked_as_bad_answers_are_left_out_and_counted(tmp_path: Path, marks: Any, format: NamedSetting) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "label": marks[n % 2]} for n in range(6)]
    loaded = read(tmp_path, rows, format, drop=False)
    assert [row.question for row in loaded.rows] == ["q0", "q2", "q4"]
    assert [str(found.line) for found in loaded.left_out] == ["2", "4", "6"]
    assert loaded.account()["left_out"] == {"label marks its answer as bad": 3}
    assert "label" not in loaded.notes.unused
    with pytest.raises(DataError, match="no answer is left to train on: in all 3 rows label marks a bad answer"):
        read(tmp_path, rows[1::2], format)


def test_labels_of_conversations_count_too(tmp_path: Path) -> None:
    loaded = read(tmp_path, [{**PLAIN, "label": False}, {**PLAIN, "label": True}, {**PLAIN, "label": None}])
    assert (len(loaded.rows), len(loaded.left_out)) == (2, 1)


@pytest.mark.parametrize(
    ("values", "format"),
    [
        ([0, 1, 2], NamedSetting("auto", {})),  # numbers of classes
        (["0", "1", "x"], NamedSetting("auto", {})),
        ([0, 1, 0], NamedSetting("columns", {"prompt": "prompt", "answer": "label"})),  # it is the answer
        (
            [False, True, False],
            NamedSetting("columns", {"prompt": "{prompt} {n}", "answer": "completion", "system": "{l}"}),
        ),
        ([0, 1, 0], NamedSetting("columns", {"answer": "completion", "group": "label"})),
        ([0, 1, 0], NamedSetting("lines", {"line": "completion", "ask": ["q"]})),
    ],
)
def test_a_label_that_is_used_or_names_a_class_leaves_nothing_out(
    tmp_path: Path, values: list[Any], format: NamedSetting
) -> None:
    name = "l" if format.options.get("system") else "label"
    rows = [{"prompt": "q", "completion": "a", "n": 1, name: str(value) if name == "l" else value} for value in values]
    assert len(read(tmp_path, rows, format).rows) == 3


@pytest.mark.parametrize(
    ("row", "says", "way"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "answers to 'prompt' (DPO)", "columns"),
        ({"chosen": PLAIN["messages"], "rejected": PLAIN["messages"]}, "lists of messages", "chat"),
        ({"prompt": [ASKED], "chosen": [answered()], "rejected": [answered()]}, "to the messages in 'prompt'", "chat"),
        (
            {"chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "rejected": []},
            "lists of messages",
            "chat",
        ),
        (
            {"input": {"messages": [ASKED]}, "preferred_output": [answered()], "non_preferred_output": [answered("b")]},
            "preferred_output and non_preferred_output are answers to the messages in 'input'",
            "chat",
        ),
        ({"chosen": "a", "rejected": "b"}, "texts without a prompt column", ""),
    ],
)
def test_each_form_of_preference_pair_is_named_and_its_way_out_works(row: Any, says: str, way: str) -> None:
    import yaml

    with pytest.raises(DataError) as caught:
        auto(row)
    assert says in caught.value.what
    if way:
        ((name, options),) = yaml.safe_load(caught.value.next.partition("data.format: ")[2]).items()
        assert name == way
        readers: dict[str, Callable[..., Any]] = {"columns": columns, "chat": chat}
        turns, _ = readers[name](row, **options)
        assert [turn.text for turn in turns] == ["q", "a"]


def test_a_pair_that_ends_with_its_question_is_no_conversation() -> None:
    with pytest.raises(DataError, match="is a preference pair"):
        sharegpt({"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"})


# --- no row in silence ---------------------------------------------------------------------------------------

_text = st.sampled_from(["", "q", "<think>r</think>a", "r</think>a", "<think>r", "é\n"])
_content = (
    _text | st.none() | st.lists(st.sampled_from([{"type": "text", "text": "x"}, {"type": "image"}, "y"]), max_size=2)
)
_role = st.sampled_from(["system", "developer", "user", "human", "assistant", "gpt", "tool", "narrator"])
_extra = st.dictionaries(
    st.sampled_from(["weight", "train", "loss", "name", "tool_calls", "reasoning_content", "thinking", "channel"]),
    st.sampled_from([None, 0, 1, True, False, "analysis", [], [{"id": 1}], "r"]),
    max_size=2,
)
_message = st.builds(lambda role, content, extra: {"role": role, "content": content, **extra}, _role, _content, _extra)
_row = st.builds(
    lambda messages, text, label: {
        "messages": json.dumps(messages) if text else messages,
        **({} if label is None else {"label": label}),
    },
    st.lists(_message, max_size=6),
    st.booleans(),
    st.sampled_from([None, None, True, False, 0, 1]),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(_row, max_size=8))
def test_every_row_is_read_refused_or_left_out(tmp_path: Path, rows: list[Any]) -> None:
    loaded = read(tmp_path, [PLAIN, *rows])
    assert len(loaded.rows) + len(loaded.broken) + len(loaded.left_out) == len(rows) + 1
    assert len({(found.file, found.line) for found in [*loaded.broken, *loaded.left_out]}) == len(
        [*loaded.broken, *loaded.left_out]
    )
    for row in loaded.rows:
        spoken = [turn for turn in row.turns if turn.role != "system"]
        assert [turn.role for turn in spoken] == ["user", "assistant"] * (len(spoken) // 2)
        assert row.turns[-1].role == "assistant"
        assert row.turns[-1].learn
        assert conversation_from_dict(conversation_to_dict(row)) == row
