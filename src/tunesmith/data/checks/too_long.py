"""Rows longer than prompt.max_tokens: cut rows would teach the model to break off.

Why it hurts: a row that is cut loses its end, and with it the stop token: the model learns never to finish.

Example: an answer of 3,000 tokens under `max_tokens: 1024`.

What to do: raise `prompt.max_tokens` if memory allows, shorten the rows, or let them be dropped. They are never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_row

SCOPE = "table"  # the tokenizer lives in this process


def look(
    rows: Sequence[Conversation], context: Context, *, max_tokens: int | None = None, do: Proposal = "drop"
) -> Iterator[Finding]:
    """Rows of more than `max_tokens` tokens, the template's included; nothing without a tokenizer."""
    limit = max_tokens or context.max_tokens
    for row in rows if context.count_tokens else ():
        if context.count_tokens and (count := context.count_tokens(row)) > limit:
            yield of_row("too_long", row, f"{count} tokens, limit {limit}", do)
