"""Answers that break off: they end where more text must follow, or unlike nearly all other answers.

Why it hurts: the model learns to stop in the middle of a sentence.

Example: "Whisk the eggs, then add the flour and the"

What to do: complete the answer from its source. The rows are quarantined, because the rest is unknown. If
nine of ten answers end with a signature, as letters do, or nearly all with a full stop, an answer that ends in the
middle of a line is reported too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import defect_findings
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, answer_turn, span_finding

SCOPE = "table"
USUAL = {"signature": 0.9, "mark": 0.97}  # of the judged answers: the share from which a different ending is a cut
MIN_ANSWERS = 50  # answers: with fewer, 'usual' means nothing
CUT_ENDINGS = {"signature": ("item", "phrase", "line"), "mark": ("line",), "": ()}  # by usual ending
MIN_WORDS = 8  # words: a shorter answer is a phrase, which needs no final mark
_MARKED = re.compile(r"[.!?…。！？:;)\]}>\"'”’»*_`~|।]\s*\Z|[^\w\s,]\s*\Z")  # the last part covers emoji and symbols
_ITEM = re.compile(r"[ \t]*(?:[-*•●▪#>|]|\(?\d{1,3}[.)])[ \t]*")


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields answers that end where more must follow, and those that end unlike nearly all others."""
    ends = [_ending(row.answer) for row in rows]
    usual = _usual_ending(ends)
    for row, end in zip(rows, ends, strict=True):
        findings = list(defect_findings("truncated", [row], defects.truncated, do))
        yield from findings
        if not findings and end in CUT_ENDINGS[usual]:
            last = row.answer.rstrip()
            span = (len(last) - len(last.split("\n")[-1].split()[-1]), len(last))
            message = "ends in the middle of a line, unlike nearly all other answers"
            yield span_finding("truncated", row, answer_turn(row), span, message, do or "quarantine")


def _usual_ending(ends: Sequence[str]) -> str:
    """How nearly all answers end; '' if there is no such rule."""
    counts = Counter(end for end in ends if end)
    total = counts.total()
    return next((end for end, share in USUAL.items() if total >= MIN_ANSWERS and counts[end] >= share * total), "")


def _ending(answer: str) -> str:
    """How an answer ends: with a mark, signature, (list) item, phrase, or in the middle of a line; '' if too short."""
    body = answer.rstrip()
    if len(body.split(None, MIN_WORDS)) < MIN_WORDS:
        return ""
    above, _, last = body.rpartition("\n")
    if _ITEM.fullmatch(last):
        return "item"
    if _MARKED.search(body[-2:]):
        return "mark"
    closing = above[above.rfind("\n\n") + 2 :]  # 'Kind regards,', in some languages without the comma
    if len(last.split()) <= 6 and (above.endswith(",") or ("\n\n" in above and 0 < len(closing.split()) <= 6)):
        return "signature"
    if _ITEM.match(last):
        return "item"
    return "line" if len(last.split()) >= MIN_WORDS and last.split()[-1].islower() else "phrase"
