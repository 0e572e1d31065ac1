"""Rows whose label marks the answer as bad, as in preference data for KTO.

Why it hurts: trained on like any other row, a bad answer teaches the model to write what people rejected.

Example: `{"prompt": "…", "completion": "Look for it yourself.", "label": false}`.

What to do: nothing, if that is what the label means: these rows are left out. If the column means something else,
rename it, or name the columns in `data.format`. This check always runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding

SCOPE = "table"  # the rows are left out while the table is read


def find_defects(rows: Sequence[Conversation], context: CheckContext) -> Iterator[Finding]:
    """Yields a finding for each row that was left out while reading."""
    yield from context.left_out
