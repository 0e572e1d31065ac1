"""A row of any origin as a conversation of chat turns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message. `reasoning` is what an assistant writes before `text`.

    An assistant's message with `learn` False is context only and has no loss (OpenAI's `weight: 0`).
    """

    role: Role
    text: str
    reasoning: str = ""
    learn: bool = True

    @property
    def full_text(self) -> str:
        """The text after its reasoning, if there is any."""
        return f"{self.reasoning}\n{self.text}" if self.reasoning else self.text


@dataclass(frozen=True)
class Origin:
    """The file and line of a row, or its number from 1 in formats without lines."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


@dataclass(frozen=True)
class Conversation:
    """A row as turns; the last turn is the answer that is trained on. `fields` are the row's own values."""

    id: str
    turns: tuple[Turn, ...]
    origin: Origin
    group: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """Every turn before the last answer."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last turn's text."""
        return self.turns[-1].text

    @property
    def question(self) -> str:
        """The text of the user's last turn."""
        return next((turn.text for turn in reversed(self.prompt) if turn.role == "user"), "")

    def own_fields(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """The nonempty columns as text, except the answer's; only those in `names` if given."""
        return {
            name: text
            for name, value in self.fields.items()
            if (names is None or name in names) and (text := str(value)).strip() and not self._is_answer(text)
        }

    def _is_answer(self, cell: str) -> bool:
        """Whether a cell is this row's answer, with or without the reasoning before it."""
        return cell == self.answer or (cell.endswith(self.answer) and split_reasoning(cell)[1] == self.answer)

    def with_system(self, system: str | None) -> Conversation:
        """This conversation with a system message in front, unless it has one."""
        if not system or self.turns[0].role == "system":
            return self
        return replace(self, turns=(Turn("system", system), *self.turns))


_THINK, _END_THINK = "<think>", "</think>"
_END_OUTSIDE_CODE = re.compile(f"(?<!`){_END_THINK}|{_END_THINK}(?!`)")
_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def split_reasoning(text: str) -> tuple[str, str]:
    r"""Splits an assistant's text into the reasoning that it begins with and the text that follows.

    Reasoning is the text between a leading `<think>` (only whitespace may precede it) and the next `</think>`. If no
    `<think>` precedes the first `</think>`, everything before it is reasoning: so write models whose template opens the
    block. A `</think>` in a code fence or in backticks does not count, unless a leading `<think>` has no other end.
    Line breaks (`\n`, `\r`) around the reasoning and before the text are removed, so the returned text is always a
    suffix of the input. A text without reasoning, or with a `<think>` that is never closed, is returned unchanged; an
    empty block gives the reasoning ''.
    """
    if _END_THINK not in text:
        return "", text
    outside = _END_OUTSIDE_CODE.search(_FENCED.sub(lambda fence: " " * len(fence[0]), text))
    stripped = text.lstrip()
    if stripped.startswith(_THINK):
        start = len(text) - len(stripped) + len(_THINK)
        end = outside.start() if outside else text.index(_END_THINK)
    elif outside and _THINK not in text[: outside.start()]:
        start, end = 0, outside.start()
    else:
        return "", text
    return text[start:end].strip("\r\n"), text[end + len(_END_THINK) :].lstrip("\r\n")


_PUNCTUATION = re.compile(r"[.,;:!?…。、'\"’‘“”«»()\[\]{}–—_-]+")


def normalize(text: str) -> str:
    """The text without differences of case, spacing and punctuation; C++ and C stay different."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(_PUNCTUATION.sub(" ", folded).split())
    return words or folded.strip()  # only punctuation: '?' is not '!'


def conversation_to_dict(row: Conversation) -> dict[str, Any]:
    """The conversation as plain values for JSON lines."""
    return {
        "id": row.id,
        "group": row.group,
        "messages": [_plain_turn(turn) for turn in row.turns],
        "origin": asdict(row.origin),
        "fields": dict(row.fields),
    }


def _plain_turn(turn: Turn) -> dict[str, Any]:
    """A message as in chat files; `reasoning_content` and `weight` only if they are not the default."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if not turn.learn:
        message["weight"] = 0
    return message


def conversation_from_dict(plain: Mapping[str, Any]) -> Conversation:
    """The inverse of `conversation_to_dict`."""
    turns = tuple(
        Turn(cast(Role, turn["role"]), turn["content"], turn.get("reasoning_content", ""), turn.get("weight") != 0)
        for turn in plain["messages"]
    )
    return Conversation(plain["id"], turns, Origin(**plain["origin"]), plain["group"], plain["fields"])


def read_rows(path: Path) -> list[Conversation]:
    """Reads the conversations of a prepared file."""
    import json

    text = path.read_text(encoding="utf-8")  # not splitlines(): JSON does not escape U+2028
    return [conversation_from_dict(json.loads(line)) for line in text.split("\n") if line]
