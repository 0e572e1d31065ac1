"""Rows longer than `prompt.max_tokens`.

Why it hurts: a row that is cut loses its end and its stop token, so the model learns never to finish. Rows are
therefore never cut.

Example: an answer of 3,000 tokens with `max_tokens: 1024`.

What to do: raise `prompt.max_tokens` if memory allows, shorten the rows, or let them be dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding

SCOPE = "table"  # only this process has the tokenizer


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, max_tokens: int | None = None, do: Proposal = "drop"
) -> Iterator[Finding]:
    """Yields rows of more than `max_tokens` tokens, including the template's; nothing without a tokenizer."""
    limit = max_tokens or context.max_tokens
    for row in rows if context.count_tokens else ():
        if context.count_tokens and (count := context.count_tokens(row)) > limit:
            yield row_finding("too_long", row, f"{count} tokens, limit {limit}", do)
