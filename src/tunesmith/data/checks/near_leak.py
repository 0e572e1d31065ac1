"""Training rows whose prompt nearly repeats a test or validation prompt.

Why it hurts: a test question with one word changed is still a question that the model has seen.

Example: "How do I pay by card?" in training, "How do I pay with card?" in the test.

What to do: let the training row be dropped. `data.split.together` keeps such rows in the same part from the start; 0.6
suits short questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, dialog_text, row_finding

SCOPE = "split"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, threshold: float = 0.8, do: Proposal = "drop"
) -> Iterator[Finding]:
    """Yields each training row whose prompt has similarity `threshold` or more to a held-out prompt, once."""
    from tunesmith.data.duplicates import leaks

    train = [row for row in rows if context.parts.get(row.id) == "train"]
    held_out = [row for row in rows if context.parts.get(row.id, "train") != "train"]
    pairs = leaks(
        [dialog_text(row.prompt) for row in train], [dialog_text(row.prompt) for row in held_out], threshold=threshold
    )
    for pair in {pair.first: pair for pair in pairs}.values():
        held_out_row = held_out[pair.second]
        message = (
            f"its prompt is {pair.similarity:.0%} similar to {held_out_row.origin} in {context.parts[held_out_row.id]}"
        )
        yield row_finding("near_leak", train[pair.first], message, do)
