"""Extracts the claims of a text, from left to right and without overlaps, with the side that each is about."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain

from tunesmith.claims.abilities import find_abilities, load_vocabulary
from tunesmith.claims.amounts import add_phrase_nouns, find_article_counts, find_dates, find_ordinals, find_quantities
from tunesmith.claims.claim import Claim, Side
from tunesmith.claims.people import (
    find_degrees,
    find_employers,
    find_people,
    find_proper_names,
    find_titles,
    find_workplaces,
)
from tunesmith.claims.words import ReportOptions, words

FIRST_PERSON = re.compile(r"\bI\b|\b[Mm]y\b")  # a text with one of these is read as a letter
_BULLETS = frozenset("-*•–")
_NUMBERED = re.compile(r"\d{1,2}[.)]\s")
_PRIORITY = {"name": 0, "degree": 1, "employer": 2, "organisation": 3, "title": 4, "skill": 6}  # others: 5


def extract(
    text: str,
    skills: Iterable[str] = (),
    organizations: Iterable[str] = (),
    report: ReportOptions | None = None,
    field: bool = False,
) -> list[Claim]:
    """Return the claims of a text in order, without overlaps.

    `skills` and `organizations` are phrases to find in addition to the built-in words. If two claims overlap, the more
    specific kind wins: a degree's subject is no skill, the 4 of a school class is no number. A text with 'I' or 'my' is
    read as a letter: employers and skills that no list names are found by their context. Pass `field` for the text of a
    field, which is never read as a letter and has no letterhead. Pass `report` to read the text as a report; if it asks
    for names, they replace degrees, titles and employers.
    """
    phrases = report.phrases.find(text) if report else []
    phrase_spans = [(phrase.start, phrase.end) for phrase in phrases]  # the 3 of '3-point range' counts nothing
    stated = [
        *([] if field else find_people(text)),
        *find_degrees(text),
        *find_employers(text),
        *find_mentions(text, organizations),
        *find_titles(text),
    ]
    if report and report.names:
        stated = [
            claim for claim in find_proper_names(text) if not _overlaps(claim, phrase_spans)
        ]  # names replace degrees, titles and employers
    skill_vocabulary = load_vocabulary(frozenset(skills))
    letter = not (report or field) and bool(FIRST_PERSON.search(text))
    if letter:
        stated += find_workplaces(text, stated, skill_vocabulary)
    named_claims = _drop_overlaps(stated)
    named_spans = [(claim.start, claim.end) for claim in named_claims]
    date_claims = [claim for claim in find_dates(text) if not _overlaps(claim, named_spans)]
    head_spans = [] if field else letterhead_spans(text)
    spans = named_spans + [(claim.start, claim.end) for claim in date_claims] + head_spans
    amounts = [
        claim
        for claim in find_quantities(text, spans + phrase_spans, bool(report and report.scores))
        if not _overlaps(claim, spans)
    ]
    if report:
        ranks = [claim for claim in find_ordinals(text) if report.scores and not _overlaps(claim, phrase_spans)]
        counted = sorted([*amounts, *find_article_counts(text, report), *ranks], key=lambda claim: claim.start)
        amounts = [claim for claim in add_phrase_nouns(text, counted, phrases) if not _overlaps(claim, spans)]
    date_claims = [claim for claim in date_claims if not any(a <= claim.start < b for a, b in head_spans)]
    settled = _drop_overlaps(chain(named_claims, date_claims, amounts, skill_vocabulary.find(text)))
    if letter:
        ability_claims = find_abilities(text, [claim for claim in settled if claim.kind == "skill"])
        spans = [(claim.start, claim.end) for claim in settled]
        settled += [claim for claim in ability_claims if not _overlaps(claim, spans)]
    return sorted(settled, key=lambda claim: claim.start)


def find_mentions(text: str, organizations: Iterable[str]) -> Iterable[Claim]:
    """Yield known organizations wherever the text names them."""
    for name in organizations:
        start = text.find(name)
        while start >= 0:
            if not text[start - 1 : start].isalnum() and not text[start + len(name) : start + len(name) + 1].isalnum():
                yield Claim("employer", start, start + len(name), name, words(name))
            start = text.find(name, start + len(name))


def letterhead_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of addresses, telephone numbers and the letter's own date: short lines without a sentence."""
    spans, start = [], 0
    for line in text.split("\n"):
        stripped = line.strip()
        is_item = stripped[:1] in _BULLETS or _NUMBERED.match(stripped)
        is_short = not is_item and 0 < len(stripped) < 50 and len(stripped.split()) <= 6 and stripped[-1] not in ".!?"
        if is_short and any(char.isdigit() for char in stripped):
            spans.append((start, start + len(line)))
        start += len(line) + 1
    return spans if len(spans) < text.count("\n") else []  # a text with such lines only is a list, not a letter


def _overlaps(claim: Claim, spans: Iterable[tuple[int, int]]) -> bool:
    first, last = claim.start, claim.end
    return any([first < end and start < last for start, end in spans])  # noqa: C419  a generator takes twice as long


def _drop_overlaps(claims: Iterable[Claim]) -> list[Claim]:
    """Return the claims without those that overlap a more specific or longer one."""
    settled: list[Claim] = []
    spans: list[tuple[int, int]] = []
    for claim in sorted(claims, key=lambda claim: (_PRIORITY.get(claim.kind, 5), claim.start - claim.end, claim.start)):
        if not _overlaps(claim, spans):
            settled.append(claim)
            spans.append((claim.start, claim.end))
    return settled


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
