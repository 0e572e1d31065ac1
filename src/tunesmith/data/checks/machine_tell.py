"""Words that give a generated answer away: a model that speaks of itself, a refusal, a preamble, an offer to go on.

Why it hurts: the tuned model repeats them to its users; refusals spread to questions that deserve an answer.

Example: "As an AI language model, I cannot write cover letters. Sure! Here is one:"

What to do: take the words out where the rest is good, or leave the row aside (quarantine). Preambles, offers and notes
are a chat's way of talking where a tenth of the answers has them: there they are no finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import damage
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal

SCOPE = "table"  # what many rows say is meant
FRAMES = (
    "a preamble",
    "praise of a question",
    "an offer to go on",
    "a note about the text",
    "words before the letter",
    "words behind the letter",
)  # around a text that was asked for
USUAL = 0.1  # of a portion's rows: what more of them say is meant
_ASKS = re.compile(r"\?|^\W*(?:wh\w+|how|is|are|can|do|does)\b", re.IGNORECASE)
FEW = 30  # rows: below it a share means nothing


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal | None = None) -> Iterator[Finding]:
    """Sentences in which a model speaks of itself, offers help, or refuses."""
    asked = {row.id for row in rows if _ASKS.search(row.question)}
    found = [
        finding
        for finding in damage("machine_tell", rows, defects.machine_tells, do)
        if finding.message != "praise of a question" or finding.row not in asked
    ]
    told = {why: len({finding.row for finding in found if finding.message == why}) for why in FRAMES}
    usual = {why for why in FRAMES if len(rows) >= FEW and told[why] >= USUAL * len(rows)}
    yield from (finding for finding in found if finding.message not in usual)
