"""Rows in which the question or the answer says nothing: the model would learn to say nothing.

Why it hurts: an empty answer teaches the stop token as the first token, and a few such rows make a model go silent.

Example: `{"instruction": "Name three rivers.", "output": ""}`. A word that an export writes for nothing (`nan`, `N/A`,
`null`, a dash) is nothing too, but `None` may well answer a question.

What to do: write the answer, or let the row be dropped. A silent turn before the last exchange is found by
`broken_turns`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_row

SCOPE = "row"
LONGEST = 20  # characters of a word for nothing
_NOTHING = re.compile(r"[\s\u200b\ufeff]*|\W*(?:n[./]?a\.?|nan|#n/a)\W*|\(?(?:empty|no answer)\)?", re.IGNORECASE)
_NO_VALUE = re.compile(r"(?:none|null|nil|undefined|missing|unknown|-{1,3}|[–—.…_]+)\W?", re.IGNORECASE)
_MAY_BE_NONE = re.compile(
    r"\?|\b(?:none|null|any|how many|find|identify|classify|choose|select|return|output)\b", re.IGNORECASE
)


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Rows whose last question or last answer is blank; an empty system message is none."""
    for row in rows:
        last = [turn for turn in row.turns if turn.role != "system"][-2:]
        silent = [turn.role for turn in last if not turn.text.strip()]
        if silent:
            yield of_row("empty", row, f"the {silent[0]}'s text is empty", do)
        elif len(row.answer) < LONGEST and _says_nothing(row):
            yield of_row("empty", row, "the assistant's text stands for nothing", do)


def _says_nothing(row: Conversation) -> bool:
    """Whether the answer is a word for nothing; 'None' only under an instruction that cannot want it."""
    answer = row.answer.strip()
    instruction = row.question.lstrip().split("\n", 1)[0]  # below it may stand fields
    return bool(_NOTHING.fullmatch(answer) or (_NO_VALUE.fullmatch(answer) and not _MAY_BE_NONE.search(instruction)))
