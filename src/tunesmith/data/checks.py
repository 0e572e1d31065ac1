"""What can be wrong with rows. Each function looks at all rows and yields findings.

Keyword-only parameters are the options a recipe may give. A check proposes; `prepare` acts and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.conversation import Conversation, Turn, normalise

Proposal = Literal["keep", "drop"]


@dataclass(frozen=True)
class Finding:
    """Something found in a row: by which check, why, and what is proposed."""

    check: str
    row: str
    file: str
    line: int
    unit: str
    message: str
    proposal: Proposal


@dataclass(frozen=True)
class Context:
    """What checks may ask for beside the rows."""

    count_tokens: Callable[[Conversation], int]
    max_tokens: int
    parts: Mapping[str, str]  # row id -> train, valid, test or unseen; empty before the split
    broken: Sequence[Finding] = ()  # rows that could not be read as conversations


def broken(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Rows that are no conversation: turns out of order, no answer, tool calls. Without this check they are errors."""
    yield from context.broken


def empty(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Rows in which the question or an answer says nothing: the model would learn to say nothing."""
    for row in rows:
        silent = [turn.role for turn in row.turns if turn.role != "system" and not turn.text.strip()]
        if silent:
            yield _finding("empty", row, f"the {silent[0]}'s text is empty")


def duplicate(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Rows that repeat an earlier row's prompt and answer: they count twice and leak between splits."""
    seen: dict[tuple[str, ...], Conversation] = {}
    for row in rows:
        key = _key(row.turns)
        first = seen.setdefault(key, row)
        if first is not row:
            yield _finding("duplicate", row, f"repeats {first.origin}")


def leak(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Training rows whose prompt is also a test or validation prompt: the score would be memory, not skill."""
    held: dict[tuple[str, ...], Conversation] = {}
    for row in rows:
        if context.parts.get(row.id, "train") != "train":
            held.setdefault(_prompt_key(row), row)
    for row in rows:
        if context.parts.get(row.id) == "train" and (other := held.get(_prompt_key(row))):
            message = f"its prompt is also in {context.parts[other.id]}: {other.origin}"
            yield _finding("leak", row, message)


def too_long(rows: Sequence[Conversation], context: Context, *, max_tokens: int | None = None) -> Iterator[Finding]:
    """Rows longer than prompt.max_tokens: cut rows would teach the model to break off."""
    limit = max_tokens or context.max_tokens
    for row in rows:
        if (count := context.count_tokens(row)) > limit:
            yield _finding("too_long", row, f"{count} tokens, limit {limit}")


AFTER_SPLIT = ("leak",)


def _key(turns: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(normalise(turn.text) for turn in turns)  # turn by turn: '1 2' then '3' is not '1' then '2 3'


def _prompt_key(row: Conversation) -> tuple[str, ...]:
    return _key([turn for turn in row.prompt if turn.role != "system"])


def _finding(check: str, row: Conversation, message: str, proposal: Proposal = "drop") -> Finding:
    return Finding(check, row.id, row.origin.file, row.origin.line, row.origin.unit, message, proposal)
