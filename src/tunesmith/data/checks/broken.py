"""Rows that are not a conversation: no answer, tool calls, images, an empty list, a missing column.

Why it hurts: such a row has no answer to train on, or would teach the model to speak for the user.

Example: a row whose assistant calls a tool instead of answering.

What to do: correct the rows in the file. With this check they are dropped and counted; without it they are errors and
nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding

SCOPE = "table"


def find_defects(rows: Sequence[Conversation], context: CheckContext) -> Iterator[Finding]:
    """Yields the rows that could not be read, each with the reason."""
    yield from context.broken
