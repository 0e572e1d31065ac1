"""What a check finds: the row, the place in it that proves it, and what is proposed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from tunesmith.data.conversation import Conversation, Turn, normalise
from tunesmith.data.defects import Language
from tunesmith.data.privacy import KINDS, find_personal, find_secrets

Proposal = Literal["keep", "repair", "quarantine", "drop"]  # in this order: of several for one row the last one wins
ENGLISH = Language("Latin", "en")
PRIVATE = tuple(kind for kind in KINDS if kind != "url")
NAMED = 3  # 'Name: value' lines of a prompt: so many make a form
_VALUE = re.compile(r"(?m)^[^\W\d_][\w /-]{1,40}: (\S[^\n]*)")
AROUND = 30  # characters shown on each side of a finding's words


@dataclass(frozen=True)
class Finding:
    """Something found in a row: by which check, why, where, and what is proposed.

    `turn` counts the row's turns from 0; characters `start` to `end` of its text prove the finding; -1 where it is
    about the whole row. `excerpt` is that place with a few words around it, '' where it must not be written down.
    A finding about the whole table has no row.
    """

    check: str
    row: str
    file: str
    line: int
    unit: str
    message: str
    proposal: Proposal
    turn: int = -1
    start: int = -1
    end: int = -1
    excerpt: str = ""


@dataclass(frozen=True)
class Context:
    """What checks may ask for beside the rows.

    `count_tokens` is None where there is no tokenizer. `parts` is row id -> train, valid, test or unseen, empty before
    the split.
    """

    count_tokens: Callable[[Conversation], int] | None = None
    max_tokens: int = 1 << 30
    parts: Mapping[str, str] = field(default_factory=dict)
    broken: Sequence[Finding] = ()  # rows that could not be read as conversations
    language: Language = ENGLISH
    specials: re.Pattern[str] | None = None  # finds the special tokens of the recipe's model
    refusal: Callable[[Conversation], str] | None = None  # why a row cannot be learned under the chat template, or ''


def to_plain(finding: Finding) -> dict[str, Any]:
    """Plain values; `dataclasses.asdict`, which copies deeply, takes eight times as long."""
    return dict(vars(finding))


def of_row(check: str, row: Conversation, message: str, proposal: Proposal) -> Finding:
    """A finding about a whole row."""
    place = row.origin
    return Finding(check, row.id, place.file, place.line, place.unit, message, proposal)


def of_place(
    check: str,
    row: Conversation,
    turn: int,
    span: tuple[int, int],
    message: str,
    proposal: Proposal,
    *,
    show: bool = True,
) -> Finding:
    """A finding about characters `span` of turn `turn` (from 0); without `show` its words are not written down.

    In the excerpt personal data and secrets are dots, whichever check shows it.
    """
    place, text = row.origin, row.turns[turn].text
    shown = excerpt(hidden(text), *span) if show else ""
    return Finding(check, row.id, place.file, place.line, place.unit, message, proposal, turn, *span, shown)


def of_table(check: str, message: str, proposal: Proposal = "keep") -> Finding:
    """A finding about the table as a whole."""
    return Finding(check, "", "", 0, "", message, proposal)


def excerpt(text: str, start: int, end: int) -> str:
    """The words at `start` to `end`, at most 120 characters of them, with a little on both sides."""
    words = text[start:end] if end - start <= 120 else f"{text[start : start + 80]} … {text[end - 35 : end]}"
    left, right = max(0, start - AROUND), min(len(text), end + AROUND)
    before, after = text[left:start], text[end:right]
    return f"{'…' if left else ''}{before}⟦{words}⟧{after}{'…' if right < len(text) else ''}"


@lru_cache(maxsize=8)  # the findings of one text come one after the other
def hidden(text: str) -> str:
    """`text` with a dot for each character of personal data and secrets: every place stays where it is."""
    for span in [*find_secrets(text), *find_personal(text, kinds=PRIVATE)]:
        text = text[: span.start] + "•" * (span.end - span.start) + text[span.end :]
    return text


def answer_turn(row: Conversation) -> int:
    """The place of the last answer among the turns."""
    return len(row.turns) - 1


def key(turns: Sequence[Turn]) -> tuple[str, ...]:
    """What two rows must share to be the same, turn by turn: '1 2' then '3' is not '1' then '2 3'."""
    return tuple(normalise(turn.text) for turn in turns)


def prompt_key(row: Conversation) -> tuple[str, ...]:
    """The key of a row's prompt; the system message does not count."""
    return key([turn for turn in row.prompt if turn.role != "system"])


def form_values(question: str) -> list[str]:
    """The values of a form's 'Name: value' lines; none where there are fewer than three."""
    values = _VALUE.findall(question)
    return values if len(values) >= NAMED else []


def spoken(turns: Sequence[Turn]) -> str:
    """The turns' texts but the system's, one after the other."""
    return "\n".join(turn.text for turn in turns if turn.role != "system")
