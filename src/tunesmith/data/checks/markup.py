"""HTML tags and entities left in prose, and a code fence nobody closed.

Why it hurts: a page copied with its markup teaches the model to write tags that its readers see as tags.

Example: "Fish &amp; chips<br>are served hot."

What to do: entities are repaired; rows with tags are set aside, because a tag's meaning (a list, a link) must be kept
by hand. Texts that speak of HTML are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import damage
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal

SCOPE = "row"


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal | None = None) -> Iterator[Finding]:
    """HTML tags and entities in prose, and code fences without an end."""
    yield from damage("markup", rows, defects.markup, do)
