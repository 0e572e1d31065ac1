"""A row, whatever its origin, as turns of a conversation."""

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
    """One message. `reasoning` is the thought that an assistant writes before `text`.

    An assistant's message with `learn` False is context only: it carries no loss (OpenAI's `weight: 0`).
    """

    role: Role
    text: str
    reasoning: str = ""
    learn: bool = True


@dataclass(frozen=True)
class Origin:
    """Where a row stands: file and line (or, in formats without lines, its number from 1)."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


@dataclass(frozen=True)
class Conversation:
    """A row as turns; the last turn is the answer to learn. `fields` are the row's own values."""

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
        """What the user last said."""
        return next((turn.text for turn in reversed(self.prompt) if turn.role == "user"), "")

    def own_fields(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """What the row's columns say, the answer's apart; of `names` alone where they are given."""
        return {
            name: str(value)
            for name, value in self.fields.items()
            if str(value).strip() and str(value) != self.answer and (names is None or name in names)
        }

    def with_system(self, system: str | None) -> Conversation:
        """The same with a system message in front, unless it has one."""
        if not system or self.turns[0].role == "system":
            return self
        return replace(self, turns=(Turn("system", system), *self.turns))


_MARKS = re.compile(r"[.,;:!?…。、'\"’‘“”«»()\[\]{}–—_-]+")


def normalise(text: str) -> str:
    """Case, spaces and sentence marks folded: equal for texts that people call the same; C++ is not C."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(_MARKS.sub(" ", folded).split())
    return words or folded.strip()  # marks alone: '?' is not '!'


def to_plain(row: Conversation) -> dict[str, Any]:
    """Plain values, for JSON lines."""
    return {
        "id": row.id,
        "group": row.group,
        "messages": [_plain_turn(turn) for turn in row.turns],
        "origin": asdict(row.origin),
        "fields": dict(row.fields),
    }


def _plain_turn(turn: Turn) -> dict[str, Any]:
    """A message in the form that chat files use: `reasoning_content` and `weight` only where they say something."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if not turn.learn:
        message["weight"] = 0
    return message


def from_plain(plain: Mapping[str, Any]) -> Conversation:
    """The inverse of `to_plain`."""
    turns = tuple(
        Turn(cast(Role, turn["role"]), turn["content"], turn.get("reasoning_content", ""), turn.get("weight") != 0)
        for turn in plain["messages"]
    )
    return Conversation(plain["id"], turns, Origin(**plain["origin"]), plain["group"], plain["fields"])


def read_rows(path: Path) -> list[Conversation]:
    """The conversations of a prepared file."""
    import json

    text = path.read_text(encoding="utf-8")  # not splitlines(): an answer may hold U+2028, which JSON leaves as it is
    return [from_plain(json.loads(line)) for line in text.split("\n") if line]
