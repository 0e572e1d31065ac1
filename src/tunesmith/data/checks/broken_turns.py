"""Conversations in which an earlier turn says nothing, or in which somebody says the same thing twice.

Why it hurts: the model learns to answer silence, or to repeat itself when it is asked again.

Example: user "How do I pay?", assistant "", user "Hello?", assistant "Tap Pay."

What to do: cut the conversation before the damage, or drop the row. A last answer that is empty is found by `empty`;
neighboring turns of one role are joined when the row is read, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from tunesmith.data.conversation import Conversation, normalise
from tunesmith.data.finding import Context, Finding, Proposal, of_place, of_row

SCOPE = "row"
SAID = 2  # words: "continue" and "yes" may well be said twice


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "quarantine") -> Iterator[Finding]:
    """Rows of several exchanges with a silent or repeated turn before the last answer."""
    for row in rows:
        spoken = [(place, turn) for place, turn in enumerate(row.turns) if turn.role != "system"]
        if len(spoken) <= 2:
            continue
        silent = next(((place, turn) for place, turn in spoken[:-1] if not turn.text.strip()), None)
        if silent:
            yield of_row("broken_turns", row, f"turn {silent[0] + 1}, by the {silent[1].role}, says nothing", do)
            continue
        for role in ("user", "assistant"):
            own = [(place, normalise(turn.text)) for place, turn in spoken if turn.role == role]
            if again := next(
                (later for (_, text), (later, same) in pairwise(own) if text == same and len(same.split()) >= SAID),
                None,
            ):
                span = (0, len(row.turns[again].text))
                yield of_place("broken_turns", row, again, span, f"the {role} says the same twice", do)
                break
