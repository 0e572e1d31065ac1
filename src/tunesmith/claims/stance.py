"""Who a statement is about, and whether it states anything: 'I have not used Java yet' does not claim Java."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

from tunesmith.claims.claim import Claim, Side

_END = re.compile(
    r"[.!?](?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bMrs\.)(?<!\bInc\.)(?<!\bLtd\.)(?=\s|$)|[;\n]"
)
_TURN = re.compile(r",\s+(?:but|I|my|and I|yet|and my|so)\b|\b(?:but|however)\b|\band (?:I|my)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:not(?!\s+(?:only|just|merely))|\w+n['’]t|never|no(?!\s+"
    r"(?:doubt|stranger|matter|less|fewer))|without|lack|lacking|yet to|neither|nor|new to)\b",
    re.IGNORECASE,
)
_DENIAL_AFTER = re.compile(
    r"^[^,.;]*(?:,\s*which I (?:do not|don['’]t|lack|have not|haven['’]t|have yet)|\b(?:would be|is|are) new to me|"
    r",\s*(?:which|a field that)\b[^.;]*\blearn)",
    re.IGNORECASE,
)
_WISH = re.compile(
    r"\b(?:learn|(?<!machine )(?<!deep )(?<!-)learning|study|studying|taking|enrol(?:led|ling)|course in|"
    r"grow into|hop(?:e|ing) to (?:gain|acquire|get)|"
    r"interest(?:ed)? in (?:learning|gaining)|working towards?)\b",
    re.IGNORECASE,
)
_WRITER = r"\bI\b|\bI['’](?:m|ve)\b|\b[Mm]y(?:self)?\b|\bme\b|\bmine\b"
_READER = (
    r"\b[Yy]ou(?:r|rs)?\b|\b(?:the|this) (?:role|position|job|post|posting|advert|vacancy|opening|company|employer|"
    r"successful candidate)\b(?! of my)|\b(?:job (?:description|posting|advert)|requirements?)\b"
)
_CUE = re.compile(rf"(?P<writer>{_WRITER})|(?P<reader>{_READER})")
_AFTER = re.compile(
    r"^[^.;,]*(?:,\s*(?:which|as) you\b|\bis something you\b|"
    r"\bthat you (?:need|want|ask|require|list|seek)\b)",
    re.IGNORECASE,
)
_POST = r"(?:position|role|job|post|opening|opportunity|vacancy)\b"
_OFFICE = re.compile(
    rf"(?P<writer>\b(?:my|current|previous|past|last|recent|former|earlier)(?:\s+\w+){{0,3}}?\s+(?:{_POST}|employer|company)|"
    r"\b(?:worked|was|were|am|been|served|spent|serving|began|started|currently|previously|gained|acquired|held|"
    r"experience|tenure|time|years?|months?|career|internship|stint|before|earlier|role as|work at|after|from)\b)|"
    rf"(?P<reader>\b(?:appl(?:y|ying|ication|ied)|join(?:ing)?|interest(?:ed)?|want to|would like to|"
    rf"(?:hope|hoping|love|eager|keen|excited) to|{_POST}|"
    r"contribut\w+|success of|your|opportunity)\b)",
    re.IGNORECASE,
)
_VACANT = re.compile(rf"^\s*{_POST}", re.IGNORECASE)
_OWN = re.compile(r"\b(?:my|current|previous|past|last|former)\b[^,.;]{0,30}$", re.IGNORECASE)


def stops(text: str) -> tuple[list[int], list[int]]:
    """Where sentences end: the full stops' first characters, and the characters behind them."""
    found = [match.span() for match in _END.finditer(text)]
    return [start for start, _ in found], [end for _, end in found]


def sentence(text: str, claim: Claim, ends: tuple[list[int], list[int]]) -> tuple[int, int]:
    """First character of the claim's sentence and the one behind its last, from the text's `stops`."""
    earlier, later = bisect_right(ends[1], claim.start), bisect_left(ends[0], claim.end)
    return ends[1][earlier - 1] if earlier else 0, ends[0][later] if later < len(ends[0]) else len(text)


def states(before: str, after: str) -> bool:
    """Whether a claim is asserted at all, given its sentence's words before and after it."""
    clause = before[max((match.start() for match in _TURN.finditer(before)), default=0) :]
    return not (_DENIAL.search(clause) or _WISH.search(clause) or _DENIAL_AFTER.match(after))


def about(claim: Claim, before: str, after: str) -> Side:
    """Whose facts a claim speaks of, by the nearest cue in its sentence.

    Titles and employers go by what is done with them (applied for, worked at); everything else by the last 'I', 'my',
    'you', 'the role' in front of it. Without a cue the writer speaks of himself, titles and employers apart.
    """
    if claim.kind == "name":
        return "both"
    if claim.kind in {"title", "employer", "organisation"}:
        if _VACANT.match(after) and not _OWN.search(before):
            return "reader"
        last = _last(_OFFICE, before)
        return last or "both"
    if _AFTER.match(after):
        return "reader"
    return _last(_CUE, before) or "writer"


def _last(cues: re.Pattern[str], before: str) -> Side | None:
    side: Side | None = None
    for match in cues.finditer(before):
        side = "writer" if match["writer"] else "reader"
    return side
