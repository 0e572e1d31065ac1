"""HTML tags and entities left in prose, and code fences that are never closed.

Why it hurts: a page copied with its markup teaches the model to write tags, which readers then see.

Example: "Fish &amp; chips<br>are served hot."

What to do: entities are repaired; rows with tags are quarantined, because only a person can keep what a tag
means (a list, a link). Texts about HTML are left alone.
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
    """Yields HTML tags and entities in prose, and unclosed code fences."""
    yield from defect_findings("markup", rows, defects.markup, do)
