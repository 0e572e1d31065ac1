"""Training rows whose prompt nearly repeats a test or validation prompt.

Why it hurts: a test question with one word changed is still a question the model has seen.

Example: "How do I pay by card?" in training, "How do I pay with card?" in the test.

What to do: let the training row be dropped. `data.split.together` keeps such rows on one side from the start; 0.6
suits short questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_row, spoken

SCOPE = "split"


def look(
    rows: Sequence[Conversation], context: Context, *, threshold: float = 0.8, do: Proposal = "drop"
) -> Iterator[Finding]:
    """Training rows at least `threshold` alike to a held-out prompt, each told once."""
    from tunesmith.data.duplicates import leaks

    train = [row for row in rows if context.parts.get(row.id) == "train"]
    held = [row for row in rows if context.parts.get(row.id, "train") != "train"]
    found = leaks([spoken(row.prompt) for row in train], [spoken(row.prompt) for row in held], threshold=threshold)
    for pair in {pair.first: pair for pair in found}.values():
        other = held[pair.second]
        message = f"its prompt is {pair.similarity:.0%} that of {other.origin} in {context.parts[other.id]}"
        yield of_row("near_leak", train[pair.first], message, do)
