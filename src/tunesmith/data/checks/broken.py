"""Rows that are no conversation: no answer to learn, tool calls, images, empty lists, a missing column.

Why it hurts: such a row has no answer to learn, or would teach the model to speak for the user.

Example: a row whose assistant calls a tool instead of answering.

What to do: mend the rows in the file. Without this check they are errors, and nothing runs; with it they are dropped
and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding

SCOPE = "table"


def look(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """The rows that could not be read, each with the reason."""
    yield from context.broken
