"""Reads a list of chat messages into turns: content in parts, reasoning, loss flags, order; counts what is not used."""

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
CHATS = ("messages", "conversations", "conversation", "turns")  # columns and keys that hold a list of messages
REASONING = ("reasoning_content", "reasoning", "thinking")  # DeepSeek and Qwen; OpenRouter and vLLM; gpt-oss
# Whether a message carries loss: `weight` OpenAI; `train`, `training` Axolotl; `loss` ChatGLM, ms-swift, LLaMA-Factory.
LOSS_FLAGS = ("weight", "train", "training", "loss", "learn")
LITERAL = 1 << 20  # characters of a Python literal: parsing one takes some hundred times its size in memory
_EMPTY: tuple[Any, ...] = (None, "", "null", "[]", "{}", [], {})
_TEXT_PARTS = ("text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")
_NUMPY_BREAK = re.compile(r"\}\n \{")  # between the dicts of a printed numpy array; inside a text it would be escaped
_NO_ANSWER = "A conversation needs a user and an assistant message"


@dataclass(frozen=True)
class Notes:
    """What a user should know of rows as they were read: `unused` counts values by column or message key.

    `turns` counts turns by what became of them: reasoning split off, kept as context only, joined, left out.
    """

    unused: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)

    def enter(self, other: Notes) -> None:
        """Adds the counts of another row."""
        self.unused.update(other.unused)
        self.turns.update(other.turns)


# --- lists of messages in cells ------------------------------------------------------------------------------


def message_list(cell: Any) -> list[Any] | None:
    """The list of messages that a cell holds: as it is, as JSON text, or as the text of a Python list.

    An object with such a list under `messages` or another usual key (a row of OpenAI's files) counts too. None for
    anything else; whether the items are messages is not looked at, unless the cell is text.
    """
    if isinstance(cell, list):
        return cell
    if isinstance(cell, Mapping):
        return next((cell[key] for key in CHATS if isinstance(cell.get(key), list)), None)
    return message_list(decoded_messages(cell)) if isinstance(cell, str) else None


def decoded_messages(text: str) -> list[Any] | dict[str, Any] | None:
    """The value of a text that is a list of messages, or an object with one, in JSON or as Python prints it."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    value = _decoded(text)
    return value if value is not None and are_messages(message_list(value) or ()) else None


def are_messages(items: Sequence[Any]) -> bool:
    """Whether every item is an object with a role, under the name that OpenAI's or ShareGPT's form gives it."""
    return bool(items) and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items)


@lru_cache(maxsize=8)  # a row's cell is looked at by several functions in turn
def _decoded(text: str) -> list[Any] | dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _literal(text)
    return value if isinstance(value, list | dict) else None


def _literal(text: str) -> Any:
    """The value of a list as Python or numpy prints it, which is what pandas writes into a table; None for others."""
    if len(text) > LITERAL or "'" not in text:
        return None
    try:
        return ast.literal_eval(_NUMPY_BREAK.sub("}, {", text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def uses_tools(message: Any) -> bool:
    """Whether a message calls a tool, addresses one or carries its result; empty tool fields do not count."""
    if not isinstance(message, Mapping):
        return False
    if str(message.get("role", message.get("from"))) in TOOL_ROLES:
        return True
    if str(message.get("recipient")).startswith("functions."):  # gpt-oss
        return True
    return any(message.get(key) not in _EMPTY for key in ("tool_calls", "function_call"))


# --- messages to turns ---------------------------------------------------------------------------------------


def read_messages(listed: Sequence[Any], role: str, content: str, column: str, notes: Notes) -> list[Turn]:
    """The turns of a list of messages, each for itself; keys that are not used are counted in `notes`.

    Raises DataError, without a place, for the first message that cannot be learned from.
    """
    return [_turn(message, role, content, column, number, notes) for number, message in enumerate(listed, start=1)]


def _turn(message: Any, role: str, content: str, column: str, number: int, notes: Notes) -> Turn:
    if uses_tools(message):
        raise DataError(f"message {number} is a tool call", next="Tool use cannot be learned yet; remove the row")
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
    """A message's text and, from parts of that kind, its reasoning. Text parts are joined as they stand."""
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, list):
        kind = type(value).__name__
        raise DataError(f"message {number} holds {kind}, not text", next="Only text can be learned; remove the row")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else _part_text(part, kind)
        if text is None:
            raise DataError(
                f"message {number} holds a part of type '{kind}', not text",
                next="Only text can be learned; remove the row",
            )
        (thoughts if kind in _THINKING_PARTS else texts).append(text)
    return "".join(texts), "".join(thoughts)


def _part_text(part: Any, kind: Any) -> str | None:
    """The text of one part of a content; None for an image, a sound or anything else."""
    if not isinstance(part, Mapping) or kind not in (*_TEXT_PARTS, *_THINKING_PARTS):
        return None
    value = part.get("text") if part.get("text") is not None else part.get(str(kind))
    if isinstance(value, list):  # Mistral's thinking parts hold text parts
        pieces = [_part_text(each, "text") for each in value]
        return None if None in pieces else "".join(piece for piece in pieces if piece)
    return value if isinstance(value, str) else None


def _one_thought(candidates: Sequence[str], number: int) -> str:
    """The one reasoning of a message, which may stand under several keys."""
    thoughts = list(dict.fromkeys(text for each in candidates if (text := each.strip("\r\n"))))
    if len(thoughts) > 1:
        advice = f"Keep one of {', '.join(REASONING)} and <think> in the text"
        raise DataError(f"message {number} holds two different reasonings", next=advice)
    return thoughts[0] if thoughts else ""


def _carries_loss(message: Mapping[str, Any], keys: Sequence[str], number: int) -> bool:
    """Whether no flag of a message says that it is context only."""
    carries = True
    for key in keys:
        value = message.get(key)
        if value is None or value != value:  # NaN is how tables write that there is none
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(
                f"message {number} has {key} {value!r}, which is neither 0 nor 1",
                next=f"Set {key} to 1 to learn the message, to 0 to keep it as context",
            )
        carries = carries and bool(value)
    return carries


# --- turns in order ------------------------------------------------------------------------------------------


def in_order(turns: Sequence[Turn], changes: Counter[str]) -> tuple[Turn, ...]:
    """The turns up to the last answer that carries loss, with user and assistant alternating, the user first.

    Assistant turns before the first user turn and turns behind the last answer to be learned are left out; neighboring
    turns of one role are joined with a blank line. All three are counted in `changes`. Raises DataError when there is
    no answer to learn, a system message stands in the middle, or two turns cannot be one.
    """
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), len(turns))
    opening = [turn for turn in turns[:first] if turn.role == "system"]
    spoken = turns[first:]
    if not any(turn.role == "assistant" for turn in spoken):
        raise DataError("has no question with an answer", next=_NO_ANSWER)
    end = max((place for place, turn in enumerate(spoken) if turn.role == "assistant" and turn.learn), default=-1) + 1
    if not end:
        advice = "All its answers have weight 0 (or train, loss: false): set one to 1, or remove the row"
        raise DataError("no answer to learn from", next=advice)
    if first > len(opening):
        changes["opening assistant turns left out"] += first - len(opening)
    if len(spoken) > end:
        changes["turns behind the last learned answer left out"] += len(spoken) - end
    result: list[Turn] = []
    for turn in [*opening, *spoken[:end]]:
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


def _joined(one: Turn, other: Turn) -> Turn:
    """Two neighboring turns of one role as one; reasoning stays only where no text comes before it."""
    if one.learn != other.learn:
        raise DataError(
            "two assistant messages follow each other, and only one carries loss",
            next="Give both the same weight, or put a user message between them",
        )
    if one.text and other.reasoning:
        raise DataError(
            "an assistant message with reasoning follows another one", next="Put a user message between them"
        )
    reasoning = "\n\n".join(thought for thought in (one.reasoning, other.reasoning) if thought)
    return replace(one, text="\n\n".join(text for text in (one.text, other.text) if text), reasoning=reasoning)
