"""Answers half of which repeats the same sentence or phrase three times or more.

Why it hurts: small models tend to repeat themselves anyway, and each such answer reinforces it.

Example: an answer that lists the same tip nine times with another number.

What to do: read them; songs and schedules repeat on purpose. They are kept unless the recipe says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import defect_findings
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal

SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields answers half of which is repeated three times or more."""
    yield from defect_findings("repetition", rows, defects.repetition, do, "keep")
