"""Answers that break off: a sign of a cut behind which more must come, or another end than nearly all others have.

Why it hurts: the model learns to stop in the middle of a sentence, and a stop there cannot be told from a good one.

Example: "Whisk the eggs, then add the flour and the"

What to do: finish the answer from its source. Rows found are set aside (quarantine), because nobody can know the
rest. Where nine of ten answers end with a signature, as letters do, or nearly all with a full stop, an answer that ends
in mid-line is found too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.checks._damage import damage
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, answer_turn, of_place

SCOPE = "table"
USUAL = {"signature": 0.9, "mark": 0.97}  # of the answers judged: from there on another end is a cut
ENOUGH = 50  # answers: below it 'usual' means nothing
STRANGE = {"signature": ("item", "phrase", "line"), "mark": ("line",), "": ()}  # which ends are cuts, by what is usual
SHORT = 8  # words: a shorter answer is a phrase, which needs no end
_MARKED = re.compile(r"[.!?…。！？:;)\]}>\"'”’»*_`~|।]\s*\Z|[^\w\s,]\s*\Z")  # the last covers emoji and other signs
_ITEM = re.compile(r"[ \t]*(?:[-*•●▪#>|]|\(?\d{1,3}[.)])[ \t]*")


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal | None = None) -> Iterator[Finding]:
    """Answers with a sign of a cut at their end, and those that end as hardly any other does."""
    ends = [_end(row.answer) for row in rows]
    usual = _usual(ends)
    for row, end in zip(rows, ends, strict=True):
        found = list(damage("truncated", [row], defects.truncated, do))
        yield from found
        if not found and end in STRANGE[usual]:
            last = row.answer.rstrip()
            span = (len(last) - len(last.split("\n")[-1].split()[-1]), len(last))
            message = "ends in mid-line, as hardly any other answer does"
            yield of_place("truncated", row, answer_turn(row), span, message, do or "quarantine")


def _usual(ends: Sequence[str]) -> str:
    """How nearly all answers end; '' where there is no such rule."""
    judged = Counter(end for end in ends if end)
    total = judged.total()
    return next((end for end, share in USUAL.items() if total >= ENOUGH and judged[end] >= share * total), "")


def _end(answer: str) -> str:
    """How an answer ends: with a mark, a signature, a list's item, a phrase, in mid-line; '' if too short to judge."""
    body = answer.rstrip()
    if len(body.split(None, SHORT)) < SHORT:
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
    return "line" if len(last.split()) >= SHORT and last.split()[-1].islower() else "phrase"
