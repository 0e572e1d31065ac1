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

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import (
    CheckContext,
    Defect,
    Finding,
    Proposal,
    answer_turn,
    defect_findings,
    make_defect,
    span_finding,
)
from tunesmith.data.language import HIDDEN, mask

_HANGS = "the a an and or nor but of from into than as if because while which whose their your my our every is are was"
_HANGS += (
    " were has have had will would can could should to with for by at der die das und oder le la les et ou el los las"
)
_FUNCTION_WORDS = frozenset(_HANGS.split())
_LIST_MARKER = re.compile(r"[ \t]*(?:[-*•●▪]|\(?\d{1,3}[.)])(?:[ \t]|$)")
_SHORT = 8  # words: a shorter answer is a phrase or a title, which needs no full stop


def detect(text: str) -> Iterator[Defect]:
    """Yields the last word of a text that breaks off: no full stop, and an ending after which more must follow.

    Such endings are a function word, a comma, an opened bracket or quote, and a list marker without its item. Code,
    list items, titles and answers of fewer than eight words are not judged.
    """
    body = text.rstrip()
    if len(body.split(None, _SHORT)) < _SHORT or mask(text)[len(body) - 1] == HIDDEN:
        return
    start = body.rfind("\n") + 1
    line = body[start:]
    if reason := _cut_reason(line, body[:start].rstrip()):
        yield make_defect("truncated", text, len(body) - len(line.split()[-1]), len(body), reason)


def _cut_reason(line: str, above: str) -> str:
    """Why a text whose last line is `line` is cut; '' if it is not."""
    last, word = line[-1], line.split()[-1]
    if _LIST_MARKER.fullmatch(line) and _LIST_MARKER.match(above[above.rfind("\n") + 1 :]):
        return "a list marker without its item"
    if _LIST_MARKER.match(line) or not (last.isalnum() or last in ",([{“«"):
        return ""
    if last == ",":
        return "" if len(line.split()) < 5 else "ends in a comma"  # 'Kind regards,'
    if last in "([{“«":
        return "ends in an opened bracket or quote"
    if word in _FUNCTION_WORDS and len(line.split()) > 3 and line.split()[-2][-1] != ":":
        return f"ends in '{word}'"
    opened = max(line.rfind("("), line.rfind("[")) > max(line.rfind(")"), line.rfind("]"))
    quoted = line.rfind("“") > line.rfind("”") or len(re.findall(r'(?<!\d)"', line)) % 2 == 1
    can_be_cut = len(line.split()) >= _SHORT and "://" not in word
    return "a bracket or quote stays open" if (opened or quoted) and can_be_cut else ""


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
        findings = list(defect_findings("truncated", [row], detect, do))
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
