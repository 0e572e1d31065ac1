"""What a row's columns mean. Each function turns a row's values into turns and the row's group.

Keyword-only parameters are the options a recipe may give. A function raises DataError, without a place, for a
row that does not fit; the caller adds file and line.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.data.conversation import Role, Turn
from tunesmith.data.recognise import preference_pair, recognise
from tunesmith.errors import DataError

Parsed = tuple[tuple[Turn, ...], str]

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def auto(values: Mapping[str, Any], *, group: str | None = None) -> Parsed:
    """Whatever the row looks like: chat, sharegpt, alpaca, or a known pair of columns; `check` says which and why."""
    found = recognise(values)
    known: dict[str, Callable[..., Parsed]] = {"alpaca": alpaca, "chat": chat, "columns": columns, "sharegpt": sharegpt}
    return known[found.name](values, **found.options, group=group)


def columns(
    values: Mapping[str, Any],
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    system: str | None = None,
    group: str | None = None,
) -> Parsed:
    """Named columns: what is asked, what is answered, and optionally a system message and a group.

    Each may also be a text with columns in braces, such as 'Write about {topic} for {reader}.'
    """
    turns = [Turn("user", _fill(values, prompt, "prompt")), Turn("assistant", _fill(values, answer, "answer"))]
    if system is not None:
        turns.insert(0, Turn("system", _fill(values, system, "system")))
    return tuple(turns), _group(values, group)


def fields(
    values: Mapping[str, Any],
    *,
    fields: list,  # type: ignore[type-arg]
    answer: str,
    instruction: str | None = None,
    group: str | None = None,
) -> Parsed:
    """Named fields to a document: the prompt lists 'Name: value' for each filled field under an instruction."""
    listed = [f"{name}: {text}" for name in fields if (text := " ".join(_cell(values, str(name), "fields").split()))]
    asked = "\n".join(listed)
    question = f"{instruction}\n\n{asked}" if instruction else asked
    return (Turn("user", question), Turn("assistant", _cell(values, answer, "answer"))), _group(values, group)


def lines(
    values: Mapping[str, Any],
    *,
    line: str = "line",
    prompt: str | None = None,
    ask: list | None = None,  # type: ignore[type-arg]
    group: str | None = None,
) -> Parsed:
    """A persona's lines: each answers its own `prompt` column, or one of the questions in `ask`, drawn by its text."""
    said = _cell(values, line, "line")
    if prompt is not None and (asked := _cell(values, prompt, "prompt").strip()):
        return (Turn("user", asked), Turn("assistant", said)), _group(values, group)
    if not ask:
        raise DataError("the line has no prompt", next="Set prompt to a column, or ask to a list of questions")
    place = int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:4], "big") % len(ask)
    return (Turn("user", str(ask[place])), Turn("assistant", said)), _group(values, group)


def alpaca(
    values: Mapping[str, Any],
    *,
    instruction: str = "instruction",
    input: str = "input",
    output: str = "output",
    group: str | None = None,
) -> Parsed:
    """Alpaca rows: instruction, input (may be missing or empty), output."""
    asked = _cell(values, instruction, "instruction")
    context = _cell(values, input, "input").strip() if values.get(input) is not None else ""
    question = f"{asked.rstrip()}\n\n{context}" if context else asked
    turns = (Turn("user", question), Turn("assistant", _cell(values, output, "output")))
    return turns, _group(values, group)


def chat(
    values: Mapping[str, Any],
    *,
    messages: str = "messages",
    role: str = "role",
    content: str = "content",
    group: str | None = None,
) -> Parsed:
    """A list of messages, each with its role and content; must end with the assistant."""
    listed = values.get(messages)
    if not isinstance(listed, list):
        raise _missing(values, messages, "messages")
    turns = tuple(_turn(message, role, content, number) for number, message in enumerate(listed, start=1))
    _check_order(turns)
    return turns, _group(values, group)


def sharegpt(values: Mapping[str, Any], *, conversations: str = "conversations", group: str | None = None) -> Parsed:
    """ShareGPT rows: a list of {from: human | gpt | system, value}."""
    return chat(values, messages=conversations, role="from", content="value", group=group)


def _group(values: Mapping[str, Any], group: str | None) -> str:
    return _cell(values, group, "group").strip() if group is not None else ""


def _fill(values: Mapping[str, Any], wanted: str, option: str) -> str:
    """A column's text, or a template's with the columns in its braces; '{{' stands for a brace."""
    if wanted in values or "{" not in wanted:
        return _cell(values, wanted, option)
    try:
        parts = list(string.Formatter().parse(wanted))
    except ValueError as error:
        raise DataError(f"'{wanted}' is no template: {error}", next="Close each brace; write {{ for a brace") from error
    pieces = []
    for text, name, form, conversion in parts:
        if form or conversion:
            raise DataError(f"'{wanted}' asks for a format", next="Only {column} may stand in braces")
        pieces += [text, "" if name is None else _cell(values, name, option)]
    return "".join(pieces)


def _cell(values: Mapping[str, Any], name: str, option: str) -> str:
    value = values.get(name)
    if value is None:
        if name not in values:
            raise _missing(values, name, option)
        return ""
    if isinstance(value, bool | bytes | dict | list):
        raise DataError(f"'{name}' holds {type(value).__name__}, not text", next=f"Name a text column as '{option}'")
    return str(value)


def _missing(values: Mapping[str, Any], name: str, option: str) -> DataError:
    if {"chosen", "rejected"} <= values.keys():
        return preference_pair()
    has = ", ".join(map(str, values)) or "nothing"
    return DataError(f"no column '{name}'. It has: {has}", next=f"Set {option} in data.format to one of them")


def _turn(message: Any, role: str, content: str, number: int) -> Turn:
    if not isinstance(message, dict) or role not in message or content not in message:
        raise DataError(f"message {number} lacks '{role}' or '{content}'", next="Each message needs both")
    name, text = message[role], message[content]
    if message.get("tool_calls") or name in ("tool", "function", "function_call", "observation"):
        raise DataError(f"message {number} is a tool call", next="Tool use cannot be learnt yet; remove the row")
    if not isinstance(name, str) or name not in ROLES:
        raise DataError(f"message {number} has the unknown role {name!r}", next=f"Use one of: {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise DataError(f"message {number} holds {type(text).__name__}, not text", next="Only text can be learnt")
    return Turn(ROLES[name], text)


def _check_order(turns: tuple[Turn, ...]) -> None:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if len(spoken) < 2:
        raise DataError("has no question with an answer", next="A conversation needs a user and an assistant message")
    for number, turn in enumerate(spoken):
        expected: Role = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise DataError(
                f"message {number + 1 + len(turns) - len(spoken)} is by the {turn.role} where the {expected} is due",
                next="User and assistant must take turns, the user first",
            )
    if spoken[-1].role != "assistant":
        raise DataError("ends with the user", next="The last message must be the assistant's answer")
