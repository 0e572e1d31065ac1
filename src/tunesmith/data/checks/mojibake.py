"""Letters decoded with the wrong encoding, and letters that were lost.

Why it hurts: the model learns to write the damage, and its tokenizer spends several tokens on each broken letter.

Example: "the cafÃ©â€™s menu" for "the café’s menu".

What to do: let it be repaired if the letters can be recovered; if they are lost, correct the row by hand.
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
    """Yields letters decoded with the wrong encoding, and lost letters."""
    yield from defect_findings("mojibake", rows, defects.mojibake, do, prompts=True)
