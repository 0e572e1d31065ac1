"""Lists whose items were run together into one line.

Why it hurts: line breaks lost in an export teach the model to write steps as one block of text.

Example: "1. Open the app 2. Tap Save 3. Close it"

What to do: split the list into lines with `data.repair` or `tunesmith audit --fix`. Numbered clauses in prose ("1)
open it, 2) wait and 3) go") are left alone.
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
    """Yields lists of three or more items on one line."""
    yield from defect_findings("collapsed_list", rows, defects.collapsed_list, do)
