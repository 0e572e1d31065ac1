"""Keys, tokens and passwords: a model can repeat them to anyone, so such rows are dropped.

Why it hurts: as with personal data, and a leaked key can cost money the same day.

Example: a code sample with a live access key in it.

What to do: revoke the key, then remove it from the data. The value is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding, span_finding
from tunesmith.data.privacy import find_secrets

SCOPE = "row"


def find_defects(rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Yields every key, token and password in any turn and its reasoning."""
    for row in rows:
        for turn_index, turn in enumerate(row.turns):
            for span in find_secrets(turn.text):
                message = f"{span.kind.replace('_', ' ')} in the {turn.role}'s text"
                yield span_finding("secrets", row, turn_index, (span.start, span.end), message, do, show=False)
            for span in find_secrets(turn.reasoning):
                yield row_finding("secrets", row, f"{span.kind.replace('_', ' ')} in the {turn.role}'s reasoning", do)
