"""Lists whose items were run together into one line.

Why it hurts: line breaks lost in an export teach the model to write steps as a block, which pages show as a block.

Example: "1. Open the app 2. Tap Save 3. Close it"

What to do: let the list be put back into lines (`data.repair`, or `tunesmith audit --fix`). Numbered sentences in
prose ("1) open it, 2) wait and 3) go") are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import damage
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal

SCOPE = "row"


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal | None = None) -> Iterator[Finding]:
    """Lists of three items or more that stand in one line."""
    yield from damage("collapsed_list", rows, defects.collapsed_list, do)
