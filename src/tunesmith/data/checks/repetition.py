"""Answers that run in circles: half of the text says the same thing three times or more.

Why it hurts: repetition is what small models fall into anyway, and each such answer is a lesson in it.

Example: an answer that lists the same tip nine times with another number.

What to do: read them; songs and schedules repeat on purpose. They are kept unless the recipe says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import damage
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal

SCOPE = "row"


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal | None = None) -> Iterator[Finding]:
    """Answers half of which says the same three times or more."""
    yield from damage("repetition", rows, defects.repetition, do, "keep")
