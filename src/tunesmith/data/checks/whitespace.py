r"""Control characters, carriage returns, blanks that nobody sees: at line ends, doubled, no-break, without width.

Why it hurts: they are tokens too: the model learns to write them, and two rows that look alike are not.

Example: an answer that ends "Kind regards,\r\n \r\n\r\n".

What to do: let them be repaired. Two blanks before a line break, which Markdown reads, stay. A turn has one
finding of a sort, however many places; one or two blanks at a line's end are mended with the rest but are no finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import damage
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal

SCOPE = "row"


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal | None = None) -> Iterator[Finding]:
    """What no reader sees and a model learns, one finding a turn and sort."""
    yield from damage("whitespace", rows, defects.broken_whitespace, do, prompts=True, once=True)
