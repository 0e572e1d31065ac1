"""Decides whose facts a statement is about: the writer's, or the reader's, such as an advert's requirements."""

from __future__ import annotations

import re

from tunesmith.claims.claim import Claim, Side

_WRITER = r"\bI\b|\bI['’](?:m|ve)\b|\b[Mm]y(?:self)?\b|\bme\b|\bmine\b"
_READER = (  # except 'I hold the post of …'
    r"\b[Yy]ou(?:r|rs)?\b|(?<!\bhold )(?<!\bheld )(?<!\bholding )\b(?:[Tt]he|[Tt]his) "
    r"(?:role|position|job|post|posting|advert|vacancy|opening|company|employer|"
    r"successful candidate)\b(?! of my)|\b(?:job (?:description|posting|advert)|requirements?)\b"
)
_SHOWN_TO_READER = (  # shown to the reader, not the reader's: 'you will find', 'I can show you'
    r"\b[Yy]ou(?:['’]ll| will| would| can| may)? (?:also |soon )?(?:see|find|get|gain|notice|meet|discover)\b|"
    r"\b(?:show|offer|give|tell|bring|send|assure|promise|provide) you\b|\b[Aa]s (?:you|your \w+) \w+,"
)
_CUE = re.compile(rf"(?P<none>{_SHOWN_TO_READER})|(?P<writer>{_WRITER})|(?P<reader>{_READER})")
_THEIRS = re.compile(
    r"^[^.;,]*(?:,\s*(?:which|as) you\b|\bis something you\b|"
    r"\bthat you (?:need|want|ask|require|list|seek)\b)",
    re.IGNORECASE,
)
_MINE = re.compile(
    r"^[^.;,]*(?:,?\s(?:is|are) (?:(?:something|one thing|exactly what|just what|what|a thing) )?(?:that )?"
    r"I (?:already |also |do |can )?(?:have|hold|bring|offer|own|possess)\b|\b(?:among|on|in|of) my\b)",
    re.IGNORECASE,
)
_DEMAND = re.compile(  # a demand extends to the end of the clause: 'you ask for 4 years as a cook'
    r"(?:\byou (?:also )?(?:ask|prefer|want|require|seek|need|expect|wish|list|mention|name|look|are looking|"
    r"would like)|"
    r"\b(?:the|your|this) (?:advert|ad|posting|list|notice|vacancy|job description)\b[^.;,]{0,20}?"
    r"\b(?:speak|ask|mention|list|name|require|call|want|say)s?)\b(?P<then>[^.;]*)$",
    re.IGNORECASE,
)
_DEMAND_ANSWERED = re.compile(  # the sentence after a demand: 'That I have.'
    r"^\s*(?:I (?:do|have|bring|hold|offer|meet|fulfil)(?: (?:exactly|just|all of))? "
    r"(?:it|that|this|these|those|both|one)\b|"
    r"(?:it|that|this|these|those|both|all of (?:it|that|this))(?: (?:is|are))?(?: (?:exactly|just|precisely))?"
    r"(?: (?:something|what))? I (?:already |do |can )?(?:have|bring|hold|offer)\b)(?!\s+(?:not|yet|n['’]t))",
    re.IGNORECASE,
)
_POST = r"(?:positions?|roles?|jobs?|posts?|opening|opportunity|vacancy)\b"
_OFFICE = re.compile(
    rf"(?P<writer>\b(?:my|current|previous|past|last|recent|former|earlier)"
    rf"(?:\s+(?!for\b|to\b|appl)\w+){{0,3}}?\s+(?:{_POST}|employer|company)|"
    r"\b(?:worked|was|were|am|been|served|spent|serving|began|started|currently|previously|gained|acquired|held|"
    r"experiences?|tenure|time|years?(?! \d)|months?|career|internship|stint|before|earlier|role as|after|from|"
    r"(?:my|I|current|present|previous) work at|"
    r"employ(?:s|ed)|gave me|pays me|seconded)\b)|"
    r"(?P<reader>\b(?:appl(?:y|ying|ication|ied (?:for|to))|join(?:ing)?|interest(?:ed)?|want to|would like to|"
    r"(?:hope|hoping|love|eager|keen|excited) to|(?:hope|hoping) for|"
    r"hear(?:ing)? from|answering|sending|looking (?:for|at)|seeking|adverts?|advertis\w+|notice|"
    r"become (?:an?|the|your)|your next|my next|candidate for|considered for|name forward|offer myself|"
    r"(?:bring|apply|offer)(?:ing)? (?:my|these|this)\b[^.;]{0,60}? (?:to|at)|excited (?:about|by)|impressed by|"
    r"drawn to|visit|"
    rf"(?:{_POST})(?!\s+(?:by|there|as)\b)|contribut\w+|success of|your|opportunity)\b)",
    re.IGNORECASE,
)
_VACANT = re.compile(
    rf"^\s*(?:{_POST}|(?:that |which )?(?:has|have|is|are) (?:just |now |currently )?"
    r"(?:advertised|posted|published|hiring|looking for|seeking|on offer)\b)",
    re.IGNORECASE,
)
_THERE = re.compile(r"^,? (?:where )?I (?:have |also |successfully )*\w+ed\b")  # 'At the mill, I learned to bake'
_OWN_POST = re.compile(r"\b(?:my|current|previous|past|last|former)\b[^,.;]{0,30}$", re.IGNORECASE)


def claim_side(claim: Claim, before: str, after: str, following: str = "") -> Side:
    """Return whose facts a claim is about, by the nearest cue in its sentence.

    Titles and employers are decided by what is done with them (applied for, worked at), everything else by the last
    'I', 'my', 'you', 'the role' before it. Without a cue a claim is about the writer; a title or employer is about
    both. A demand is claimed by the writer if its sentence ends so ('is something I have') or the `following` one says
    so.
    """
    if claim.kind == "name":
        return "both"
    if (" I " in after or " my " in after) and _MINE.match(after):
        return "writer"
    demand = _DEMAND.search(before)
    if demand and not re.search(_WRITER, demand["then"]):
        return "writer" if _DEMAND_ANSWERED.match(following) else "reader"
    if claim.kind in {"title", "employer", "organisation"}:
        if _VACANT.match(after) and not _OWN_POST.search(before):
            return "reader"
        return _last_cue(_OFFICE, before) or ("writer" if _THERE.match(after) else "both")
    if " you" in after and _THEIRS.match(after):
        return "reader"
    return _last_cue(_CUE, before) or "writer"


def _last_cue(cues: re.Pattern[str], before: str) -> Side | None:
    side: Side | None = None
    for match in cues.finditer(before):
        if match.lastgroup == "writer":
            side = "writer"
        elif match.lastgroup == "reader":
            side = "reader"
    return side
