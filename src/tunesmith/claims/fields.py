"""Fields as facts: whose they are, what they state, and which words the text may be searched for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tunesmith.claims.abilities import tells
from tunesmith.claims.claim import Claim, Side
from tunesmith.claims.extract import extract
from tunesmith.claims.fold import Words, words
from tunesmith.claims.people import CAPITALS
from tunesmith.claims.phrases import Report
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
    r"familiar|background|ability|certified|training|excellent|solid|deep)\s+)*(?:(?:of|in|with|to|using|as)\s+)?"
    r"(?:(?:an?|the)\s+)?",
    re.IGNORECASE,
)
_AT = re.compile(rf"\b(?:at|for|with)\s+(?P<name>(?:[Tt]he )?{CAPITALS}(?: and {CAPITALS})?)")
_VAGUE = re.compile(
    r"\w+ly\b|\b(?:communication|skills?|abilit\w+|experience|knowledge|attention|teams?|fields?|degree|years?|related|"
    r"strong|excellent|other|any|etc|manner|practices|role|position)\b",
    re.IGNORECASE,
)
_ACTIVITY = re.compile(r"^\w+ing(?:\s|$)")
_PIECES = re.compile(
    r"[;\n]|(?<=[a-z)])(?<!Inc)(?<!Ltd)\.\s|\),|,\s+(?=\d+\+?\s*(?:years?|yrs?|months?)\b)", re.IGNORECASE
)


SKILLS = re.compile(r"skill|tool|language|competenc", re.IGNORECASE)  # names of fields that list skills
_DEMANDS = re.compile(r"prefer|require|qualification", re.IGNORECASE)
_WISHES = re.compile(r"[;\n]|(?<=[a-z)])\.(?=\s|$)")
_ARTICLE = re.compile(r"^\s*(?:[-*•]\s*)?(?:\d+[.)]\s+)?(?:an?\s+|the\s+)?", re.IGNORECASE)
LONGEST_WISH = 7  # words: a longer one is a sentence, which no letter repeats


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
    """All fields, read once: sources, facts, phrases to look for in the text, and each advert's wishes by field."""

    sources: tuple[Source, ...]
    facts: tuple[Fact, ...]
    skills: frozenset[str]
    organisations: frozenset[str]
    wishes: tuple[tuple[str, Words], ...] = ()

    def speaks(self, side: Side, *kinds: str) -> bool:
        """Whether the fields say anything of these kinds for a side; what they do not speak of cannot be wrong.

        The writer's own fields count as a whole record: a degree that they do not name is one too many. An advert's
        list of demands ('3 years as a cook') does not tell which title or company it is about.
        """
        if side == "writer" and "name" not in kinds:
            return True
        told = (each for each in self.facts if each.claim.kind in kinds and each.side in {side, "both"})
        return any("skill" in kinds or not _DEMANDS.search(each.field) for each in told)


@lru_cache(maxsize=256)
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


def read(
    fields: Mapping[str, str],
    sides: Mapping[str, Side],
    skills: frozenset[str] = frozenset(),
    report: Report | None = None,
) -> Known:
    """The fields as facts. `sides` overrides the guess by name; `skills` are the caller's phrases."""
    sources = tuple(
        Source(name, sides.get(name) or guess_side(name), text, words(text)) for name, text in fields.items() if text
    )
    listed = {item for source in sources for item in _skill_items(source)}
    organisations = {name for source in sources for name in _organisations(source)}
    wished = [(source.name, wish) for source in sources for wish in _wishes(source)]
    known = hard(listed | {wish for _, wish in wished}) | skills
    facts = [fact for source in sources for fact in _facts(source, known, frozenset(organisations), report)]
    wishes = tuple((name, words(wish)) for name, wish in wished)
    return Known(sources, tuple(facts), known, frozenset(organisations), wishes)


def _skill_items(source: Source) -> list[str]:
    if SKILLS.search(source.name):
        return items(source.text)
    if _DEMANDS.search(source.name):
        return [item for item in items(source.text) if _particular(item)]
    return []


def _wishes(source: Source) -> Iterator[str]:
    """What an advert asks for, wish by wish and as it has it: 'experience in prisons', 'tram permit'."""
    if source.side != "reader" or _whole(source):
        return
    for piece in _WISHES.split(source.text):
        wish = _ARTICLE.sub("", piece).strip()
        rest = _LEAD.sub("", wish)
        plain = rest == piece.strip()  # neither an article nor 'experience with' says that a thing is named
        named = tells(words(rest)) and not _VAGUE.search(rest) and not (plain and _ACTIVITY.search(rest))
        if 2 <= len(wish.split()) <= LONGEST_WISH and (named or wish[:1].isdigit()):
            yield wish


def _particular(item: str) -> bool:
    """Whether a part of an advert's prose names a skill: two or three words, or a name; no 'communication skills'."""
    parts = item.split()
    named = len(parts) > 1 or any(mark.isupper() for mark in item)
    return (
        named
        and len(parts) <= 3
        and not any(mark.isdigit() for mark in item[:2])
        and not _VAGUE.search(item)
        and not _ACTIVITY.search(item)
    )


def _organisations(source: Source) -> list[str]:
    if _COMPANY.search(source.name) and len(source.words) <= 6:
        return [source.text.strip()]
    return [match["name"] for match in _AT.finditer(source.text)] if source.side != "reader" else []


def _facts(source: Source, skills: frozenset[str], organisations: frozenset[str], report: Report | None) -> list[Fact]:
    text = source.text
    whole = _whole(source)
    if whole:
        return [Fact(source.name, source.side, Claim(whole, 0, len(text), text, source.words), text)]  # type: ignore[arg-type]
    found = []
    cuts = [0, *(match.end() for match in _PIECES.finditer(text)), len(text)]
    for claim in extract(text, skills, organisations, report, field=True):
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
