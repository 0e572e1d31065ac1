r"""Control characters, carriage returns, and invisible spaces: trailing, doubled, no-break, zero-width.

Why it hurts: they are tokens too: the model learns to write them, and two rows that look equal are not.

Example: an answer that ends "Kind regards,\r\n \r\n\r\n".

What to do: let them be repaired. Two spaces before a line break, which Markdown reads, stay. Each turn has one finding
per problem, with its count; one or two spaces at the end of a line are repaired too, but not reported.
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
    """Yields broken whitespace, one finding per turn and problem."""
    yield from defect_findings("whitespace", rows, defects.broken_whitespace, do, prompts=True, once=True)
