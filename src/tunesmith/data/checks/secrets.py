"""Keys, tokens and passwords: a model can repeat them to anybody, so such rows are dropped.

Why it hurts: as with personal data, and the loss may cost money the same day.

Example: a code sample with a live access key in it.

What to do: revoke the key, then remove it from the data. The value is never written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_place, of_row
from tunesmith.data.privacy import find_secrets

SCOPE = "row"


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Every place that holds a key, a token or a password, in any turn and its reasoning."""
    for row in rows:
        for place, turn in enumerate(row.turns):
            for span in find_secrets(turn.text):
                message = f"{span.kind.replace('_', ' ')} in the {turn.role}'s text"
                yield of_place("secrets", row, place, (span.start, span.end), message, do, show=False)
            for span in find_secrets(turn.reasoning):
                yield of_row("secrets", row, f"{span.kind.replace('_', ' ')} in the {turn.role}'s reasoning", do)
