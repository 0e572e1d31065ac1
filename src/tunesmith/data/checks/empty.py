"""Rows whose question or answer is empty.

Why it hurts: an empty answer teaches the stop token as the first token, and a few such rows can make a model answer
with nothing.

Example: `{"instruction": "Name three rivers.", "output": ""}`. The words that exports write for a missing value (`nan`,
`N/A`, `null`, a dash) count as empty too, but `None` may be the answer to a question.

What to do: write the answer, or let the row be dropped. An empty turn before the last exchange is found by
`broken_turns`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding

SCOPE = "row"
MAX_CHARACTERS = 20  # characters of a word for a missing value
_MISSING = re.compile(r"[\s\u200b\ufeff]*|\W*(?:n[./]?a\.?|nan|#n/a)\W*|\(?(?:empty|no answer)\)?", re.IGNORECASE)
_NO_VALUE = re.compile(r"(?:none|null|nil|undefined|missing|unknown|-{1,3}|[–—.…_]+)\W?", re.IGNORECASE)
_MAY_ASK_FOR_NONE = re.compile(
    r"\?|\b(?:none|null|any|how many|find|identify|classify|choose|select|return|output)\b", re.IGNORECASE
)


def find_defects(rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Yields rows whose last question or last answer is empty; an empty system message is not reported."""
    for row in rows:
        last = [turn for turn in row.turns if turn.role != "system"][-2:]
        silent = [turn.role for turn in last if not turn.text.strip()]
        if silent:
            yield row_finding("empty", row, f"the {silent[0]}'s text is empty", do)
        elif len(row.answer) < MAX_CHARACTERS and _is_missing_value(row):
            yield row_finding("empty", row, "the assistant's text stands for a missing value", do)


def _is_missing_value(row: Conversation) -> bool:
    """Whether the answer is a word for a missing value; 'None' counts only if the instruction cannot ask for it."""
    answer = row.answer.strip()
    instruction = row.question.lstrip().split("\n", 1)[0]  # fields may follow on the next lines
    return bool(
        _MISSING.fullmatch(answer) or (_NO_VALUE.fullmatch(answer) and not _MAY_ASK_FOR_NONE.search(instruction))
    )
