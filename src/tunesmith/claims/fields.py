"""Fields as facts: whose they are, what they state, and which words the text may be searched for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.claims.claim import Claim, Side
from tunesmith.claims.extract import extract
from tunesmith.claims.fold import Words, words
from tunesmith.claims.people import CAPITALS
from tunesmith.claims.skills import hard

_WRITER = re.compile(
    r"\b(?:applicant|candidate|my|user|past|previous|current|working|work|experience|skill\w*|qualifications?|education|"
    r"degree|certificat\w+|achievement\w*|resume|résumé|cv|background|about|name|language\w*|award\w*|project\w*)\b",
    re.IGNORECASE,
)
_READER = re.compile(
    r"\b(?:job|title|company|employer|organi[sz]ation|preferred|required|requirement\w*|position|role|vacancy|advert|"
    r"description|hiring|responsibilit\w+|posting|school hiring|client)\b",
    re.IGNORECASE,
)
_OWNED = re.compile(r"\b(?:applicant|candidate|my|user|past|previous|current|former|last)\b", re.IGNORECASE)
_ITEMS = re.compile(r"[,;\n•|]+|\band\b|\bor\b|(?<=[a-z])\.\s")
_COMPANY = re.compile(r"company|employer|organi[sz]ation|school hiring", re.IGNORECASE)
_LEAD = re.compile(
    r"^(?:[-*\d.)\s]+)?(?:(?:good|strong|proven|proficient|proficiency|skilled|knowledge|experience|expertise|familiarity|"
    r"familiar|background|ability|certified|training|excellent|solid|deep)\s+)*(?:(?:of|in|with|to|using|as)\s+)?",
    re.IGNORECASE,
)
_AT = re.compile(rf"\b(?:at|for|with)\s+(?P<name>(?:[Tt]he )?{CAPITALS}(?: and {CAPITALS})?)")
_VAGUE = re.compile(
    r"\w+ly\b|\b(?:communication|skills?|abilit\w+|experience|knowledge|attention|teams?|fields?|degree|years?|related|"
    r"strong|excellent|other|any|etc|manner|practices|role|position)\b|"
    r"^\w+ing\s|^[A-Z]?[a-z]+ing$",
    re.IGNORECASE,
)
_PIECES = re.compile(
    r"[;\n]|(?<=[a-z)])(?<!Inc)(?<!Ltd)\.\s|\),|,\s+(?=\d+\+?\s*(?:years?|yrs?|months?)\b)", re.IGNORECASE
)


@dataclass(frozen=True)
class Fact:
    """A claim of a field, with the piece of the field (a line, an entry) that it stands in."""

    field: str
    side: Side
    claim: Claim
    piece: str


@dataclass(frozen=True)
class Source:
    """One field: its text, its side, all its folded words."""

    name: str
    side: Side
    text: str
    words: Words


@dataclass(frozen=True)
class Known:
    """All fields, read once: sources, facts, and phrases to look for in the text."""

    sources: tuple[Source, ...]
    facts: tuple[Fact, ...]
    skills: frozenset[str]
    organisations: frozenset[str]


def guess_side(name: str) -> Side:
    """Whose facts a field holds, from its name.

    'past', 'current', 'my', 'applicant' and the like make a field the writer's; else job, title, company, preferred,
    required and the like make it the reader's (the advert's); else name, experience, skills, qualifications, education
    make it the writer's. Any other field may support statements about both.
    """
    plain = re.sub(r"[_\-]+|(?<=[a-z])(?=[A-Z])", " ", name)
    if _OWNED.search(plain):
        return "writer"
    if _READER.search(plain):
        return "reader"
    return "writer" if _WRITER.search(plain) else "both"


def items(text: str) -> list[str]:
    """What a field lists: its parts between commas, semicolons, lines and 'and', leading phrases cut."""
    parts = (_LEAD.sub("", part.strip(" .()\t")) for part in _ITEMS.split(text))
    return [part for part in parts if part and len(part.split()) <= 4]


def read(fields: Mapping[str, str], sides: Mapping[str, Side], skills: frozenset[str] = frozenset()) -> Known:
    """The fields as facts. `sides` overrides the guess by name; `skills` are the caller's phrases."""
    sources = tuple(
        Source(name, sides.get(name) or guess_side(name), text, words(text)) for name, text in fields.items() if text
    )
    listed = {item for source in sources for item in _skill_items(source)}
    organisations = {name for source in sources for name in _organisations(source)}
    known = hard(listed) | skills
    facts = [fact for source in sources for fact in _facts(source, known, frozenset(organisations))]
    return Known(sources, tuple(facts), known, frozenset(organisations))


def _skill_items(source: Source) -> list[str]:
    if re.search(r"skill|tool|language|competenc", source.name, re.IGNORECASE):
        return items(source.text)
    if re.search(r"prefer|require|qualification", source.name, re.IGNORECASE):
        return [item for item in items(source.text) if _particular(item)]
    return []


def _particular(item: str) -> bool:
    """Whether a part of an advert's prose names a skill: two or three words, or a name; no 'communication skills'."""
    parts = item.split()
    named = len(parts) > 1 or any(mark.isupper() for mark in item)
    return named and len(parts) <= 3 and not any(mark.isdigit() for mark in item[:2]) and not _VAGUE.search(item)


def _organisations(source: Source) -> list[str]:
    if _COMPANY.search(source.name) and len(source.words) <= 6:
        return [source.text.strip()]
    return [match["name"] for match in _AT.finditer(source.text)] if source.side != "reader" else []


def _facts(source: Source, skills: frozenset[str], organisations: frozenset[str]) -> list[Fact]:
    text = source.text
    whole = _whole(source)
    if whole:
        return [Fact(source.name, source.side, Claim(whole, 0, len(text), text, source.words), text)]  # type: ignore[arg-type]
    found = []
    cuts = [0, *(match.end() for match in _PIECES.finditer(text)), len(text)]
    for claim in extract(text, skills, organisations):
        at = max(index for index, cut in enumerate(cuts[:-1]) if cut <= claim.start)
        found.append(Fact(source.name, source.side, claim, text[cuts[at] : cuts[at + 1]]))
    return found


def _whole(source: Source) -> str | None:
    """The kind of a field that is one value: a title, a company, a name."""
    name = source.name
    if len(source.words) > 6:
        return None
    if _COMPANY.search(name):
        return "employer"
    if re.search(r"\btitle\b|^position$|^role$|job.?title", name.replace("_", " "), re.IGNORECASE):
        return "title"
    if re.search(r"\bname\b|^applicant$|^candidate$|hiring manager", name.replace("_", " "), re.IGNORECASE):
        return "name"
    return None
