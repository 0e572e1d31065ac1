"""Row formats: each function converts a row's values into turns and the row's group; `auto` detects the format.

Keyword-only parameters are the options that a recipe may set. A function raises DataError, without a location, for a
row that does not fit; the caller adds file and line.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.conversation import Role, Turn, split_reasoning
from tunesmith.data.messages import (
    MESSAGE_KEYS,
    ROLES,
    ReadNotes,
    are_messages,
    message_list,
    ordered_turns,
    read_messages,
)
from tunesmith.errors import DataError

__all__ = ["alpaca", "auto", "chat", "columns", "fields", "lines", "sharegpt"]  # the names that a recipe may give

# Column names of questions and answers in public data sets; the first pair that fits is used.
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("instruction", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("source", "target"),
)
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))  # TRL and others; OpenAI
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "input")  # prompt columns beside preference pairs


@dataclass(frozen=True)
class DetectedFormat:
    """A format's name, its options, and the reason in words.

    `reasons` maps an option to its reason, `left` an unused column to the reason; `near` notes alternatives.
    """

    name: str
    options: dict[str, Any]
    why: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    near: tuple[str, ...] = ()


def is_preference_pair(names: Iterable[Any]) -> bool:
    """Whether columns of these names are a chosen and a rejected answer."""
    folded = {str(name).strip().casefold() for name in names}
    return any(folded.issuperset(pair) for pair in PREFERENCES)


def preference_pair_error(values: Mapping[str, Any]) -> DataError:
    """The error for a row with a chosen and a rejected answer, which says how to train on the chosen one."""
    names = {str(name).strip().casefold(): str(name) for name in values}
    chosen_column, rejected_column = next(
        (names[good], names[bad]) for good, bad in PREFERENCES if {good, bad} <= names.keys()
    )
    prompt = next((names[name] for name in PROMPT_COLUMNS if name in names), "")
    subject = f"{chosen_column} and {rejected_column} are"
    chosen_messages, prompt_messages = message_list(values[chosen_column]), message_list(values.get(prompt))
    if chosen_messages is None and not prompt:
        advice = "Preference pairs are not supported here: write each chosen answer beside its prompt, omit the others"
        return DataError(f"is a preference pair: {subject} texts without a prompt column", next=advice)
    if chosen_messages is None and prompt_messages is None:
        form, format = f"answers to '{prompt}' (DPO)", f"{{columns: {{prompt: {prompt}, answer: {chosen_column}}}}}"
    elif prompt_messages is None or (chosen_messages and not _is_answer(chosen_messages[0])):
        form, format = "lists of messages", f"{{chat: {{messages: {chosen_column}{_message_keys(chosen_messages)}}}}}"
    else:
        form = f"answers to the messages in '{prompt}' (DPO)"
        format = f"{{chat: {{messages: {prompt}, completion: {chosen_column}{_message_keys(prompt_messages)}}}}}"
    return DataError(
        f"is a preference pair: {subject} {form}",
        next=f"Preference pairs are not supported here. To train on the chosen answers, set data.format: {format}",
    )


def detect_row_format(values: Mapping[str, Any]) -> DetectedFormat:
    """The format of a row. Raises DataError if no format fits or the row cannot be trained on."""
    names = {str(name).strip().casefold(): str(name) for name in values}
    if is_preference_pair(names):
        raise preference_pair_error(values)
    for column in MESSAGE_KEYS:
        if (messages := message_list(values.get(names.get(column, "")))) is not None:
            return _chat(names[column], messages, values)
    if {"instruction", "output"} <= names.keys():
        options = {key: names[key] for key in ("instruction", "input", "output") if names.get(key, key) != key}
        return DetectedFormat("alpaca", options, f"it has the columns {names['instruction']} and {names['output']}")
    for prompt, answer in PAIRS:
        if prompt in names and answer in names:
            return _pair(names[prompt], names[answer], values)
    for name, cell in values.items():
        if (messages := message_list(cell)) is not None and are_messages(messages):
            return _chat(str(name), messages, values)
    columns = ", ".join(map(str, values)) or "nothing"
    raise DataError(
        f"its format is unknown. It has: {columns}", next="Write data.format: {columns: {prompt: …, answer: …}}"
    )


def _chat(column: str, messages: list[Any], values: Mapping[str, Any]) -> DetectedFormat:
    text = " as JSON text" if isinstance(values[column], str) else ""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if {"from", "value"} <= first.keys():
        options = {} if column == "conversations" else {"conversations": column}
        return DetectedFormat("sharegpt", options, f"{column} is a list of from and value{text}")
    options = {} if column == "messages" else {"messages": column}
    return DetectedFormat("chat", options, f"{column} is a list of role and content{text}")


def _pair(prompt: str, answer: str, values: Mapping[str, Any]) -> DetectedFormat:
    """A question and its answer as two texts, or with messages in at least one of them."""
    message_columns = [
        (name, messages) for name in (prompt, answer) if (messages := message_list(values[name])) is not None
    ]
    if not message_columns:
        return DetectedFormat(
            "columns", {"prompt": prompt, "answer": answer}, f"the columns {prompt} and {answer} are a pair"
        )
    options = {"messages": prompt, "completion": answer}
    if _message_keys(message_columns[0][1]):
        options |= {"role": "from", "content": "value"}
    with_messages = " and ".join(name for name, _ in message_columns)
    return DetectedFormat("chat", options, f"{prompt} and {answer} are a pair, with messages in {with_messages}")


def _is_answer(message: Any) -> bool:
    return isinstance(message, Mapping) and ROLES.get(str(message.get("role", message.get("from")))) == "assistant"


def _message_keys(messages: list[Any] | None) -> str:
    """The options of the format chat for ShareGPT's message keys; '' for OpenAI's."""
    return (
        ", role: from, content: value" if messages and isinstance(messages[0], dict) and "from" in messages[0] else ""
    )


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
