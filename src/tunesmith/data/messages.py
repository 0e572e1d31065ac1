"""Converts chat messages into turns: content parts, reasoning, loss flags, order; counts what is not used.

A column of labels marks answers that must not be learned.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from tunesmith.data.conversation import Role, Turn, split_reasoning
from tunesmith.errors import DataError

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TOOL_ROLES = frozenset(
    ("tool", "function", "function_call", "tool_call", "tool_calls", "tool_response", "observation", "ipython")
)
MESSAGE_KEYS = ("messages", "conversations", "conversation", "turns")  # columns and keys of lists of messages
REASONING = ("reasoning_content", "reasoning", "thinking")  # DeepSeek and Qwen; OpenRouter and vLLM; gpt-oss
# Whether a message has loss: `weight` OpenAI; `train`, `training` Axolotl; `loss` ChatGLM, ms-swift, LLaMA-Factory.
LOSS_FLAGS = ("weight", "train", "training", "loss", "learn")
LITERAL = 1 << 20  # characters of a Python literal: parsing it takes about a hundred times its size in memory
_EMPTY: tuple[Any, ...] = (None, "", "null", "[]", "{}", [], {})
_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")
_NUMPY_BREAK = re.compile(r"\}\n \{")  # between the dicts of a printed numpy array; inside a text it would be escaped
_NO_ANSWER = "A conversation needs a user and an assistant message"


@dataclass(frozen=True)
class ReadNotes:
    """Counts by kind while rows are read.

    `unused` counts ignored values by column or message key. `turns` counts turns with
    reasoning, and turns that are kept as context, joined or left out.
    """

    unused: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)

    def add(self, notes: ReadNotes) -> None:
        """Adds the counts of another row."""
        self.unused.update(notes.unused)
        self.turns.update(notes.turns)


# --- lists of messages in cells ------------------------------------------------------------------------------


def message_list(cell: Any) -> list[Any] | None:
    """The list of messages in a cell, which may be a list, JSON text, or the text of a Python list.

    An object with such a list under `messages` or another usual key (a row of OpenAI's files) counts too. None for
    anything else. Whether the items are messages is only checked if the cell is text.
    """
    if isinstance(cell, list):
        return cell
    if isinstance(cell, Mapping):
        return next((cell[key] for key in MESSAGE_KEYS if isinstance(cell.get(key), list)), None)
    return message_list(decoded_messages(cell)) if isinstance(cell, str) else None


def decoded_messages(text: str) -> list[Any] | dict[str, Any] | None:
    """Decodes a text with a list of messages, or an object with one, as JSON or Python literal; None for others."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    value = _decoded(text)
    return value if value is not None and are_messages(message_list(value) or ()) else None


def are_messages(items: Sequence[Any]) -> bool:
    """Whether every item is an object with a role, under OpenAI's or ShareGPT's key."""
    return bool(items) and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items)


@lru_cache(maxsize=8)  # several functions decode the cells of one row
def _decoded(text: str) -> list[Any] | dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _literal(text)
    return value if isinstance(value, list | dict) else None


def _literal(text: str) -> Any:
    """The value of a list as Python or numpy prints it, as pandas writes it into tables; None for others."""
    if len(text) > LITERAL or "'" not in text:
        return None
    try:
        return ast.literal_eval(_NUMPY_BREAK.sub("}, {", text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def uses_tools(message: Any) -> bool:
    """Whether a message calls a tool, addresses one or is its result; empty tool fields do not count."""
    if not isinstance(message, Mapping):
        return False
    if str(message.get("role", message.get("from"))) in TOOL_ROLES:
        return True
    if str(message.get("recipient")).startswith("functions."):  # gpt-oss
        return True
    return any(message.get(key) not in _EMPTY for key in ("tool_calls", "function_call"))


# --- messages to turns ---------------------------------------------------------------------------------------


def read_messages(messages: Sequence[Any], role: str, content: str, column: str, notes: ReadNotes) -> list[Turn]:
    """One turn per message; unused keys are counted in `notes`.

    Raises DataError, without a location, for the first message that cannot be trained on.
    """
    return [_turn(message, role, content, column, number, notes) for number, message in enumerate(messages, start=1)]


def _turn(message: Any, role: str, content: str, column: str, number: int, notes: ReadNotes) -> Turn:
    if uses_tools(message):
        raise DataError(f"message {number} is a tool call", next="Tool calls are not supported; remove the row")
    if not isinstance(message, dict) or role not in message or content not in message:
        raise DataError(f"message {number} lacks '{role}' or '{content}'", next="Each message needs both")
    name = message[role]
    if not isinstance(name, str) or name not in ROLES:
        raise DataError(f"message {number} has the unknown role {name!r}", next=f"Use one of: {', '.join(ROLES)}")
    text, thought = _content(message[content], number)
    used = {role, content}
    learn = True
    if ROLES[name] == "assistant":
        learn = _carries_loss(message, LOSS_FLAGS, number)
        inline, text = split_reasoning(text)
        thoughts = {key: message[key] for key in REASONING if isinstance(message.get(key), str)}
        used |= {*LOSS_FLAGS, *thoughts}
        thought = _one_thought([*thoughts.values(), thought, inline], number)
        if message.get("channel") == "analysis":  # gpt-oss: a message of its own, before the answer
            thought, text = text, ""
            used.add("channel")
    else:
        _carries_loss(message, ("weight",), number)
        used |= {"weight", *(key for key in LOSS_FLAGS if message.get(key) is False)}
    notes.unused.update(f"{column}[].{key}" for key, value in message.items() if key not in used and value is not None)
    return Turn(ROLES[name], text, thought if ROLES[name] == "assistant" else "", learn)


def _content(value: Any, number: int) -> tuple[str, str]:
    """A message's text and, from parts of that kind, its reasoning. Text parts are joined without a separator."""
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, list):
        kind = type(value).__name__
        raise DataError(
            f"message {number} has content of type {kind}, not text", next="Only text is supported; remove the row"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else _part_text(part, kind)
        if text is None:
            raise DataError(
                f"message {number} has a part of type '{kind}', not text",
                next="Only text is supported; remove the row",
            )
        (thoughts if kind in _THINKING_PARTS else texts).append(text)
    return "".join(texts), "".join(thoughts)


def _part_text(part: Any, kind: Any) -> str | None:
    """The text of one content part; None for an image, a sound or anything else."""
    if not isinstance(part, Mapping) or kind not in (*_TEXT_PARTS, *_THINKING_PARTS):
        return None
    value = part.get("text") if part.get("text") is not None else part.get(str(kind))
    if isinstance(value, list):  # Mistral's thinking parts contain text parts
        pieces = [_part_text(item, "text") for item in value]
        return None if None in pieces else "".join(piece for piece in pieces if piece)
    return value if isinstance(value, str) else None


def _one_thought(candidates: Sequence[str], number: int) -> str:
    """The reasoning of a message, which several keys may repeat."""
    thoughts = list(dict.fromkeys(text for candidate in candidates if (text := candidate.strip("\r\n"))))
    if len(thoughts) > 1:
        advice = f"Keep one of {', '.join(REASONING)} and <think> in the text"
        raise DataError(f"message {number} has two different reasoning texts", next=advice)
    return thoughts[0] if thoughts else ""


def _carries_loss(message: Mapping[str, Any], keys: Sequence[str], number: int) -> bool:
    """Whether a message has loss, that is, no flag marks it as context only."""
    carries = True
    for key in keys:
        value = message.get(key)
        if value is None or value != value:  # NaN is a missing value in tables
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(
                f"message {number} has {key} {value!r}, which is neither 0 nor 1",
                next=f"Set {key} to 1 to train on the message, to 0 to keep it as context",
            )
        carries = carries and bool(value)
    return carries


# --- turns in order ------------------------------------------------------------------------------------------


def ordered_turns(turns: Sequence[Turn], changes: Counter[str]) -> tuple[Turn, ...]:
    """The turns up to the last answer with loss, with user and assistant alternating, the user first.

    Assistant turns before the first user turn and turns after the last answer with loss are left out; adjacent turns of
    one role are joined with a blank line. All three are counted in `changes`. Raises DataError if there is no answer
    with loss, a system message is in the middle, or two turns cannot be joined.
    """
    dialog_start = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    opening = [turn for turn in turns[:dialog_start] if turn.role == "system"]
    dialog = turns[dialog_start:]
    if not any(turn.role == "assistant" for turn in dialog):
        raise DataError("has no question with an answer", next=_NO_ANSWER)
    dialog_end = (
        max((index for index, turn in enumerate(dialog) if turn.role == "assistant" and turn.learn), default=-1) + 1
    )
    if not dialog_end:
        advice = "All its answers have weight 0 (or train, loss: false): set one to 1, or remove the row"
        raise DataError("has no answer to train on", next=advice)
    if dialog_start > len(opening):
        changes["opening assistant turns left out"] += dialog_start - len(opening)
    if len(dialog) > dialog_end:
        changes["turns after the last answer with loss left out"] += len(dialog) - dialog_end
    result: list[Turn] = []
    for turn in [*opening, *dialog[:dialog_end]]:
        if result and result[-1].role == turn.role:
            result[-1] = _joined(result[-1], turn)
            changes[f"{turn.role} turns joined with the one before"] += 1
        elif turn.role == "system" and result:
            raise DataError(
                "has a system message in the middle", next="Move it to the start, or make it a user message"
            )
        else:
            result.append(turn)
    return tuple(result)


def _joined(first: Turn, second: Turn) -> Turn:
    """Joins two adjacent turns of one role; the second may only have reasoning if the first has no text."""
    if first.learn != second.learn:
        raise DataError(
            "two assistant messages follow each other, and only one has loss",
            next="Give both the same weight, or put a user message between them",
        )
    if first.text and second.reasoning:
        raise DataError(
            "an assistant message with reasoning follows another one", next="Put a user message between them"
        )
    reasoning = "\n\n".join(thought for thought in (first.reasoning, second.reasoning) if thought)
    return replace(first, text="\n\n".join(text for text in (first.text, second.text) if text), reasoning=reasoning)


COLUMNS = ("label", "kto_tag")  # TRL, Axolotl and ms-swift; LLaMA-Factory
_FALSE, _TRUE = frozenset(("false", "0", "0.0")), frozenset(("true", "1", "1.0"))
_QUESTION_FORMATS = frozenset(("auto", "columns", "alpaca", "chat", "sharegpt"))  # formats of a question and its answer


def label_column(names: Mapping[str, Any]) -> str:
    """The column that may mark answers as good or bad; '' if there is none."""
    return next((str(name) for name in names if str(name).strip().casefold() in COLUMNS), "")


def are_labels(cells: list[Any], format: str) -> bool:
    """Whether a column's cells are labels: true and false or, in formats with a question, 1 and 0."""
    values = {_plain(cell) for cell in cells if cell not in (None, "")}
    return (
        bool(values) and values <= _FALSE | _TRUE and (format in _QUESTION_FORMATS or bool(values & {"true", "false"}))
    )


class AnswerLabels:
    """Collects the label of each row and then returns the rows that are labeled bad.

    Only the whole column shows whether 0 means a bad answer or is a class number: it is a label if the column has no
    values but 0 and 1.
    """

    def __init__(self, format: str, options: Mapping[str, Any]) -> None:
        """Excludes the columns that `options` use for something else."""
        self._format = format
        self._group = options.get("group")
        option_values = [value for option, value in options.items() if option != "group"]
        self._used = [str(name) for value in option_values for name in (value if isinstance(value, list) else [value])]
        self._false: dict[int, bool] = {}  # row index -> whether it is the word or value false, not a number
        self._numbers = True
        self.column = ""

    def add(self, index: int, values: Mapping[str, Any]) -> None:
        """Adds the row at index `index`."""
        column = label_column(values)
        cell = values[column] if column else None
        if not column or cell in (None, "") or any(column == name or f"{{{column}}}" in name for name in self._used):
            return
        self.column, value = column, _plain(cell)
        if value in _FALSE:
            self._false[index] = value == "false"
        numbers = self._format in _QUESTION_FORMATS and column != self._group
        self._numbers = self._numbers and numbers and value in _FALSE | _TRUE

    def bad(self) -> list[int]:
        """The indices of the rows that are labeled bad, in order."""
        return [index for index, certain in self._false.items() if certain or self._numbers]


def _plain(cell: Any) -> str:
    return str(cell).strip().casefold()
