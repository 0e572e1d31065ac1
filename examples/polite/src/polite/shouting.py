"""Answers in capital letters.

Why it hurts: the model learns to shout.

Example: "PLEASE READ THE MANUAL."

What to do: write them in sentences, or leave them out with `shouting: {do: drop}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, answer_turn, span_finding

SCOPE = "row"  # it needs one row at a time, so batches of rows are checked in parallel


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, share: float = 0.7, do: Proposal = "drop"
) -> Iterator[Finding]:
    """Yields answers with at least `share` of their letters in capitals."""
    for row in rows:
        letters = [letter for letter in row.answer if letter.isalpha()]
        capitals = sum(letter.isupper() for letter in letters)
        if len(letters) > 3 and capitals >= share * len(letters):
            message = f"{capitals} of {len(letters)} letters are capitals"
            yield span_finding("shouting", row, answer_turn(row), (0, len(row.answer)), message, do)
