"""Decides whether a text asserts a claim: 'I have not used Java yet' does not claim Java."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

from tunesmith.claims.claim import Claim

_END = re.compile(
    r"[.!?](?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bMrs\.)(?<!\bInc\.)(?<!\bLtd\.)(?=\s|$)|[;\n]"
)
_TURN = re.compile(r",\s+(?:but|I|my|and I|yet|and my|so)\b|\b(?:but|however)\b|\band (?:I|my)\b", re.IGNORECASE)
_COMMA = re.compile(r",|\b(?:but|however)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:cannot|not(?!\s+(?:only|just|merely))|never|no(?!\s+"
    r"(?:doubt|stranger|matter|less|fewer))|without|lack|lacking|yet to|neither|nor|new to)\b|n['’]t\b",
    re.IGNORECASE,
)
_DENIAL_AFTER = re.compile(
    r"^[^,.;]*(?:,\s*which I (?:do not|don['’]t|lack|have not|haven['’]t|have yet)|\b(?:would be|is|are) new to me|"
    r",\s*(?:which|a field that)\b[^.;]*\blearn|"
    r",?\s(?:is|are|was|were|would be)\s(?:(?:still|sadly|simply)\s)?"
    r"(?:missing|absent|lacking|beyond me|(?:not|nothing)\s(?:(?:something|anything|what|one|a thing)\s)?(?:that\s)?"
    r"(?:I|in my|on my|among my|part of my)\b))",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:if|unless|whether|should you)\b[^,;:]*$", re.IGNORECASE)
_WISH = re.compile(
    r"\b(?:learn|(?<!machine )(?<!deep )(?<!-)learning|study|studying|taking|enrol(?:led|ling)|course in|"
    r"grow into|hop(?:e|ing) to (?:gain|acquire|get)|"
    r"interest(?:ed)? in (?:learning|gaining)|working towards?)\b",
    re.IGNORECASE,
)


def sentence_ends(text: str) -> tuple[list[int], list[int]]:
    """Return where sentences end: positions of the final marks, and positions after them."""
    spans = [match.span() for match in _END.finditer(text)]
    return [start for start, _ in spans], [end for _, end in spans]


def sentence_span(text: str, claim: Claim, ends: tuple[list[int], list[int]]) -> tuple[int, int]:
    """Return the span of the claim's sentence, given the text's `sentence_ends`."""
    earlier, later = bisect_right(ends[1], claim.start), bisect_left(ends[0], claim.end)
    return ends[1][earlier - 1] if earlier else 0, ends[0][later] if later < len(ends[0]) else len(text)


def is_asserted(before: str, after: str, report: bool = False) -> bool:
    """Return whether a claim is asserted, given the words of its sentence before and after it.

    In a `report` every comma ends a denial: 'Lee was not far behind, with 11' asserts the 11.
    """
    clause = before[max((match.start() for match in (_COMMA if report else _TURN).finditer(before)), default=0) :]
    return not (_DENIAL.search(clause) or _WISH.search(clause) or _DENIAL_AFTER.match(after))


def is_conditional(before: str) -> bool:
    """Return whether a letter names something only as a condition: 'if a license is needed'."""
    return bool(_CONDITION.search(before))


def next_sentence(text: str, end: int, ends: tuple[list[int], list[int]]) -> str:
    """Return the sentence after the one that ends at `end`, or '' at the end of a paragraph."""
    index = bisect_left(ends[0], end)
    if index >= len(ends[0]) or "\n" in text[ends[0][index] : ends[1][index] + 1]:
        return ""
    return text[ends[1][index] : ends[0][index + 1] if index + 1 < len(ends[0]) else len(text)]
