"""Row formats: each function converts a row's values into turns and the row's group.

Keyword-only parameters are the options that a recipe may set. A function raises DataError, without a location, for a
row that does not fit; the caller adds file and line.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.data.conversation import Role, Turn, split_reasoning
from tunesmith.data.detect_row import detect_row_format, is_preference_pair, preference_pair_error
from tunesmith.data.messages import ReadNotes, message_list, ordered_turns, read_messages
from tunesmith.errors import DataError

_EMPTY: tuple[Any, ...] = (None, "", [], {})


class ParsedRow(tuple[tuple[Turn, ...], str]):
    """The pair (turns, group) of a row; `notes` counts unused columns and keys, and changed turns."""

    notes: ReadNotes

    def __new__(cls, turns: Iterable[Turn], group: str, notes: ReadNotes) -> ParsedRow:
        """Creates the pair."""
        parsed = super().__new__(cls, (tuple(turns), group))
        parsed.notes = notes
        return parsed


def auto(values: Mapping[str, Any], *, group: str | None = None) -> ParsedRow:
    """Detected from each row: chat, sharegpt, alpaca, or a known pair of columns; `check` reports which and why."""
    detected = detect_row_format(values)
    formats: dict[str, Callable[..., ParsedRow]] = {
        "alpaca": alpaca,
        "chat": chat,
        "columns": columns,
        "sharegpt": sharegpt,
    }
    return formats[detected.name](values, **detected.options, group=group)


def columns(
    values: Mapping[str, Any],
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    system: str | None = None,
    group: str | None = None,
) -> ParsedRow:
    """A prompt column and an answer column, and optionally a system message and a group.

    Each may also be a template with columns in braces, such as 'Write about {topic} for {reader}.'
    """
    turns = [Turn("user", _fill(values, prompt, "prompt")), _answer(_fill(values, answer, "answer"))]
    if system is not None:
        turns.insert(0, Turn("system", _fill(values, system, "system")))
    used = [name for text in (prompt, answer, system) if text is not None for name in _columns_in(text, values)]
    return _parsed(values, turns, group, used)


def fields(
    values: Mapping[str, Any],
    *,
    fields: list,  # type: ignore[type-arg]
    answer: str,
    instruction: str | None = None,
    group: str | None = None,
) -> ParsedRow:
    """A document written from fields: the prompt is an instruction and a 'Name: value' line for each nonempty field."""
    field_lines = [
        f"{name}: {text}" for name in fields if (text := " ".join(_cell(values, str(name), "fields").split()))
    ]
    field_block = "\n".join(field_lines)
    question = f"{instruction}\n\n{field_block}" if instruction else field_block
    turns = Turn("user", question), _answer(_cell(values, answer, "answer"))
    return _parsed(values, turns, group, [*map(str, fields), answer])


def lines(
    values: Mapping[str, Any],
    *,
    line: str = "line",
    prompt: str | None = None,
    ask: list | None = None,  # type: ignore[type-arg]
    group: str | None = None,
) -> ParsedRow:
    """Lines of a persona, each the answer to its `prompt` column or to a question in `ask`, chosen by a hash."""
    answer = _cell(values, line, "line")
    question = _cell(values, prompt, "prompt").strip() if prompt is not None else ""
    if not question:
        if not ask:
            raise DataError("the line has no prompt", next="Set prompt to a column, or ask to a list of questions")
        index = int.from_bytes(hashlib.sha256(answer.encode("utf-8", "surrogatepass")).digest()[:4], "big") % len(ask)
        question = str(ask[index])
    return _parsed(values, (Turn("user", question), _answer(answer)), group, [line, *([prompt] if prompt else [])])


def alpaca(
    values: Mapping[str, Any],
    *,
    instruction: str = "instruction",
    input: str = "input",
    output: str = "output",
    group: str | None = None,
) -> ParsedRow:
    """Alpaca rows: instruction, input (may be absent or empty), output."""
    instruction_text = _cell(values, instruction, "instruction")
    context = _cell(values, input, "input").strip() if values.get(input) is not None else ""
    question = f"{instruction_text.rstrip()}\n\n{context}" if context else instruction_text
    turns = Turn("user", question), _answer(_cell(values, output, "output"))
    return _parsed(values, turns, group, [instruction, input, output])


def chat(
    values: Mapping[str, Any],
    *,
    messages: str = "messages",
    completion: str | None = None,
    role: str = "role",
    content: str = "content",
    group: str | None = None,
) -> ParsedRow:
    """A list of messages with role and content, also as JSON text.

    With `completion`, the column `messages` is the prompt and `completion` the answer; each is a list or a text.
    """
    notes = ReadNotes()
    turns = _chat_turns(values, messages, "messages", role, content, notes, "user" if completion else None)
    if completion is not None:
        turns = [replace(turn, learn=False) if turn.role == "assistant" else turn for turn in turns]
        turns += _chat_turns(values, completion, "completion", role, content, notes, "assistant")
    elif turns and turns[-1].role == "user" and is_preference_pair(values):
        raise preference_pair_error(values)
    ordered = ordered_turns(turns, notes.turns)
    return _parsed(values, ordered, group, [messages, *([completion] if completion else [])], notes)


def sharegpt(values: Mapping[str, Any], *, conversations: str = "conversations", group: str | None = None) -> ParsedRow:
    """ShareGPT rows: a list of {from: human | gpt | system, value}."""
    return chat(values, messages=conversations, role="from", content="value", group=group)


def _chat_turns(
    values: Mapping[str, Any], column: str, option: str, role: str, content: str, notes: ReadNotes, plain: Role | None
) -> list[Turn]:
    """The turns of one column; `plain` is the role of a cell that is text instead of messages, None to refuse it."""
    cell = values.get(column)
    if (message_items := message_list(cell)) is not None:
        return read_messages(message_items, role, content, column, notes)
    if cell is None and column not in values:
        raise _missing(values, column, option)
    if isinstance(cell, str) and plain:
        return [_answer(cell) if plain == "assistant" else Turn(plain, cell)]
    advice = f"Set '{option}' to the column with the messages"
    raise DataError(f"'{column}' is of type {type(cell).__name__}, not a list of messages", next=advice)


def _parsed(
    values: Mapping[str, Any],
    turns: Iterable[Turn],
    group: str | None,
    used: Iterable[str],
    notes: ReadNotes | None = None,
) -> ParsedRow:
    """The row's turns and group; the notes count nonempty columns that are not `used`, and kinds of turns."""
    notes, turns = notes or ReadNotes(), tuple(turns)
    answers = [turn for turn in turns if turn.role == "assistant"]
    context, reasoned = sum(not turn.learn for turn in answers), sum(bool(turn.reasoning) for turn in answers)
    notes.turns.update({"answers with reasoning": reasoned} if reasoned else {})
    notes.turns.update({"answers kept as context, not trained on": context} if context else {})
    used_columns = {*used, group}
    notes.unused.update(str(name) for name, value in values.items() if name not in used_columns and value not in _EMPTY)
    return ParsedRow(turns, _group(values, group), notes)


def _answer(text: str) -> Turn:
    """An assistant's turn, with leading reasoning split off."""
    reasoning, text = split_reasoning(text)
    return Turn("assistant", text, reasoning)


def _columns_in(text: str, values: Mapping[str, Any]) -> list[str]:
    """The columns that an option of `columns` names: the option itself, or those in its braces."""
    if text in values or "{" not in text:
        return [text]
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def _group(values: Mapping[str, Any], group: str | None) -> str:
    return _cell(values, group, "group").strip() if group is not None else ""


def _fill(values: Mapping[str, Any], template: str, option: str) -> str:
    """The text of a column, or a template filled with columns; '{{' is a literal brace."""
    if template in values or "{" not in template:
        return _cell(values, template, option)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        advice = "Close each brace; write {{ for a literal brace"
        raise DataError(f"'{template}' is not a template: {error}", next=advice) from error
    pieces = []
    for text, name, form, conversion in parts:
        if form or conversion:
            raise DataError(f"'{template}' has a format specifier", next="Write only {column} in braces")
        pieces += [text, "" if name is None else _cell(values, name, option)]
    return "".join(pieces)


def _cell(values: Mapping[str, Any], name: str, option: str) -> str:
    value = values.get(name)
    if value is None:
        if name not in values:
            raise _missing(values, name, option)
        return ""
    if isinstance(value, bool | bytes | dict | list):
        raise DataError(
            f"'{name}' is of type {type(value).__name__}, not text", next=f"Set '{option}' to a text column"
        )
    return str(value)


def _missing(values: Mapping[str, Any], name: str, option: str) -> DataError:
    if is_preference_pair(values):
        return preference_pair_error(values)
    present = ", ".join(map(str, values)) or "nothing"
    return DataError(f"no column '{name}'. It has: {present}", next=f"Set {option} in data.format to one of them")
