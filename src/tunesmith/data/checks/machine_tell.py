"""Phrases typical of a language model: it mentions itself, refuses, writes a preamble, offers further help.

Why it hurts: the tuned model repeats them to its users; refusals spread to questions that deserve an answer.

Example: "As an AI language model, I cannot write cover letters. Sure! Here is one:"

What to do: remove the phrase if the rest is good, or quarantine the row. Preambles, offers and notes are
not reported if a tenth or more of the answers have them: then they are the style of the chat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import defect_findings
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal

SCOPE = "table"  # a phrase that many rows have is intended
FRAMES = (
    "a preamble",
    "praise of a question",
    "an offer to go on",
    "a note about the text",
    "words before the letter",
    "words after the letter",
)  # around a text that was asked for
USUAL = 0.1  # of the rows: a phrase that more of them have is intended
_ASKS = re.compile(r"\?|^\W*(?:wh\w+|how|is|are|can|do|does)\b", re.IGNORECASE)
MIN_ROWS = 30  # rows: with fewer, a share means nothing


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields phrases in which a model mentions itself, offers help, or refuses."""
    question_ids = {row.id for row in rows if _ASKS.search(row.question)}
    findings = [
        finding
        for finding in defect_findings("machine_tell", rows, defects.machine_tells, do)
        if finding.message != "praise of a question" or finding.row not in question_ids
    ]
    row_counts = {frame: len({finding.row for finding in findings if finding.message == frame}) for frame in FRAMES}
    usual = {frame for frame in FRAMES if len(rows) >= MIN_ROWS and row_counts[frame] >= USUAL * len(rows)}
    yield from (finding for finding in findings if finding.message not in usual)
