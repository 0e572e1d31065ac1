"""Conversations with an empty earlier turn, or in which one side says the same thing twice in a row.

Why it hurts: the model learns to answer an empty message, or to repeat itself when it is asked again.

Example: user "How do I pay?", assistant "", user "Hello?", assistant "Tap Pay."

What to do: cut the conversation before the damage, or drop the row. An empty last answer is found by `empty`. Adjacent
turns of one role are joined when the row is read, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding, span_finding

SCOPE = "row"
MIN_WORDS = 2  # words: shorter turns ("continue", "yes") may repeat on purpose


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "quarantine"
) -> Iterator[Finding]:
    """Yields rows of several exchanges with an empty or repeated turn before the last answer."""
    for row in rows:
        dialog = [(index, turn) for index, turn in enumerate(row.turns) if turn.role != "system"]
        if len(dialog) <= 2:
            continue
        empty = next(((index, turn) for index, turn in dialog[:-1] if not turn.text.strip()), None)
        if empty:
            yield row_finding("broken_turns", row, f"turn {empty[0] + 1}, by the {empty[1].role}, is empty", do)
            continue
        for role in ("user", "assistant"):
            texts = [(index, normalize(turn.text)) for index, turn in dialog if turn.role == role]
            if repeated := next(
                (
                    second_index
                    for (_, first), (second_index, second) in pairwise(texts)
                    if first == second and len(second.split()) >= MIN_WORDS
                ),
                None,
            ):
                span = (0, len(row.turns[repeated].text))
                yield span_finding("broken_turns", row, repeated, span, f"the {role} says the same thing twice", do)
                break
