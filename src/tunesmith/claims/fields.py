"""Reads fields as facts: which side they belong to, what they state, and which phrases to look for in the text.

Facts that follow from others (a sum, a difference of scores) are derived here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations

from tunesmith.claims.abilities import is_specific, specific_items
from tunesmith.claims.claim import Claim, Quantity, Side
from tunesmith.claims.extract import extract
from tunesmith.claims.people import CAPITALS
from tunesmith.claims.words import ReportOptions, Words, words

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
_OWNER = re.compile(r"\b(?:applicant|candidate|my|user|past|previous|current|former|last)\b", re.IGNORECASE)
_ITEM_END = re.compile(r"[,;\n•|]+|\band\b|\bor\b|(?<=[a-z])\.\s")
_COMPANY = re.compile(r"company|employer|organi[sz]ation|school hiring", re.IGNORECASE)
_LEADING_WORDS = re.compile(
    r"^(?:[-*\d.)\s]+)?(?:(?:good|strong|proven|proficient|proficiency|skilled|knowledge|experience|expertise|familiarity|"
    r"familiar|background|ability|certified|training|excellent|solid|deep)\s+)*(?:(?:of|in|with|to|using|as)\s+)?"
    r"(?:(?:an?|the)\s+)?",
    re.IGNORECASE,
)
_EMPLOYER_CUE = re.compile(rf"\b(?:at|for|with)\s+(?P<name>(?:[Tt]he )?{CAPITALS}(?: and {CAPITALS})?)")
_VAGUE = re.compile(
    r"\w+ly\b|\b(?:communication|skills?|abilit\w+|experience|knowledge|attention|teams?|fields?|degree|years?|related|"
    r"strong|excellent|other|any|etc|manner|practices|role|position)\b",
    re.IGNORECASE,
)
_ACTIVITY = re.compile(r"^\w+ing(?:\s|$)")
_PIECE_END = re.compile(
    r"[;\n]|(?<=[a-z)])(?<!Inc)(?<!Ltd)\.\s|\),|,\s+(?=\d+\+?\s*(?:years?|yrs?|months?)\b)", re.IGNORECASE
)


SKILL_FIELD = re.compile(r"skill|tool|language|competenc", re.IGNORECASE)  # names of fields that list skills
_DEMAND_FIELD = re.compile(r"prefer|require|qualification", re.IGNORECASE)
_REQUIREMENT_END = re.compile(r"[;\n]|(?<=[a-z)])\.(?=\s|$)")
_ARTICLE = re.compile(r"^\s*(?:[-*•]\s*)?(?:\d+[.)]\s+)?(?:an?\s+|the\s+)?", re.IGNORECASE)
MAX_REQUIREMENT_WORDS = 7  # a longer one is a sentence, which letters do not repeat


@dataclass(frozen=True)
class Fact:
    """A claim of a field, with the piece of the field (a line, an entry) that contains it."""

    field: str
    side: Side
    claim: Claim
    piece: str


@dataclass(frozen=True)
class SourceField:
    """One field: its name, side, text and folded words."""

    name: str
    side: Side
    text: str
    words: Words


@dataclass(frozen=True)
class ParsedFields:
    """All fields, read once: sources, facts, phrases to look for in the text, and requirements of adverts by field."""

    sources: tuple[SourceField, ...]
    facts: tuple[Fact, ...]
    skills: frozenset[str]
    organizations: frozenset[str]
    requirements: tuple[tuple[str, Words], ...] = ()

    def covers(self, side: Side, *kinds: str) -> bool:
        """Return whether the fields state anything of these kinds for a side; if not, they cannot contradict it.

        The writer's fields count as complete: a degree that they do not name is unsupported. An advert's requirements
        ('3 years as a cook') do not say which title or company it is about.
        """
        if side == "writer" and "name" not in kinds:
            return True
        facts = (fact for fact in self.facts if fact.claim.kind in kinds and fact.side in {side, "both"})
        return any("skill" in kinds or not _DEMAND_FIELD.search(fact.field) for fact in facts)


@lru_cache(maxsize=256)
def guess_side(name: str) -> Side:
    """Guess from a field's name whose facts it holds.

    'past', 'current', 'my', 'applicant' and the like make it the writer's; else job, title, company, preferred,
    required and the like make it the reader's (the advert's); else name, experience, skills, qualifications, education
    make it the writer's. Any other field applies to both.
    """
    plain = re.sub(r"[_\-]+|(?<=[a-z])(?=[A-Z])", " ", name)
    if _OWNER.search(plain):
        return "writer"
    if _READER.search(plain):
        return "reader"
    return "writer" if _WRITER.search(plain) else "both"


def list_items(text: str) -> list[str]:
    """Return the items of a list: parts between commas, semicolons, lines and 'and', without leading phrases."""
    parts = (_LEADING_WORDS.sub("", part.strip(" .()\t")) for part in _ITEM_END.split(text))
    return [part for part in parts if part and len(part.split()) <= 4]


def read_fields(
    fields: Mapping[str, str],
    sides: Mapping[str, Side],
    skills: frozenset[str] = frozenset(),
    report: ReportOptions | None = None,
) -> ParsedFields:
    """Read fields as facts. `sides` overrides the guess by name; `skills` are extra phrases to look for."""
    sources = tuple(
        SourceField(name, sides.get(name) or guess_side(name), text, words(text))
        for name, text in fields.items()
        if text
    )
    listed_skills = {item for source in sources for item in _skill_items(source)}
    organizations = {name for source in sources for name in _organizations(source)}
    requirements = [(source.name, requirement) for source in sources for requirement in _requirements(source)]
    skill_phrases = specific_items(listed_skills | {requirement for _, requirement in requirements}) | skills
    facts = [fact for source in sources for fact in _facts(source, skill_phrases, frozenset(organizations), report)]
    wishes = tuple((name, words(requirement)) for name, requirement in requirements)
    return ParsedFields(sources, tuple(facts), skill_phrases, frozenset(organizations), wishes)


def _skill_items(source: SourceField) -> list[str]:
    if SKILL_FIELD.search(source.name):
        return list_items(source.text)
    if _DEMAND_FIELD.search(source.name):
        return [item for item in list_items(source.text) if _is_particular(item)]
    return []


def _requirements(source: SourceField) -> Iterator[str]:
    """Yield what an advert asks for, as written: 'experience in prisons', 'tram permit'."""
    if source.side != "reader" or _single_value_kind(source):
        return
    for piece in _REQUIREMENT_END.split(source.text):
        requirement = _ARTICLE.sub("", piece).strip()
        topic = _LEADING_WORDS.sub("", requirement)
        unmarked = topic == piece.strip()  # no article or 'experience with' in front
        specific = is_specific(words(topic)) and not _VAGUE.search(topic) and not (unmarked and _ACTIVITY.search(topic))
        if 2 <= len(requirement.split()) <= MAX_REQUIREMENT_WORDS and (specific or requirement[:1].isdigit()):
            yield requirement


def _is_particular(item: str) -> bool:
    """Return whether a part of an advert's prose names a skill: two or three words, or a capitalized name."""
    parts = item.split()
    is_name = len(parts) > 1 or any(char.isupper() for char in item)
    return (
        is_name
        and len(parts) <= 3
        and not any(char.isdigit() for char in item[:2])
        and not _VAGUE.search(item)
        and not _ACTIVITY.search(item)
    )


def _organizations(source: SourceField) -> list[str]:
    if _COMPANY.search(source.name) and len(source.words) <= 6:
        return [source.text.strip()]
    return [match["name"] for match in _EMPLOYER_CUE.finditer(source.text)] if source.side != "reader" else []


def _facts(
    source: SourceField, skills: frozenset[str], organizations: frozenset[str], report: ReportOptions | None
) -> list[Fact]:
    text = source.text
    kind = _single_value_kind(source)
    if kind:
        return [Fact(source.name, source.side, Claim(kind, 0, len(text), text, source.words), text)]  # type: ignore[arg-type]
    facts = []
    starts = [0, *(match.end() for match in _PIECE_END.finditer(text)), len(text)]
    for claim in extract(text, skills, organizations, report, field=True):
        index = max(index for index, start in enumerate(starts[:-1]) if start <= claim.start)
        facts.append(Fact(source.name, source.side, claim, text[starts[index] : starts[index + 1]]))
    return facts


def _single_value_kind(source: SourceField) -> str | None:
    """Return the kind of a field that holds one value: a title, a company, a name."""
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


_BY = re.compile(r"\bby\s+(?:an?\s+)?(?:\w+\s)?$", re.IGNORECASE)
_MARGIN = re.compile(
    r"^[\s-]*(?:[a-z]+[\s-]+){0,3}?(?:win|victory|loss|defeat|margin|lead|advantage|edge|deficit|difference|gap|game)\b",
    re.IGNORECASE,
)
_TOGETHER = re.compile(
    r"\b(?:combin\w+|together|total(?:l?ed|l?ing)?|in all|between them|duo|trio|pair)\b", re.IGNORECASE
)


def is_difference(before: str, after: str) -> bool:
    """Return whether a number is stated as a difference ('by 16', 'a 30-point win'), from the text around it."""
    return bool(_BY.search(before) or _MARGIN.match(after))


def is_sum(before: str) -> bool:
    """Return whether a number is stated as a sum: 'they combined for 48'."""
    return bool(_TOGETHER.search(before))


def score_fact(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """Return the first of two subjects' facts about the same noun that form the claimed score, such as '113-107'."""
    value = claim.value
    for (fact, a), (_, b) in _amount_pairs(value, facts, names):
        if isinstance(value, Quantity) and math.isclose(a, value.amount) and math.isclose(b, value.upper):
            return fact
    return None


def difference_fact(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """Return the fact that exceeds another subject's, about the same noun, by the claimed amount."""
    value = claim.value
    for (fact, a), (_, b) in _amount_pairs(value, facts, names):
        if isinstance(value, Quantity) and math.isclose(a - b, value.amount):
            return fact
    return None


def sum_fact(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """Return the first of two or three subjects' facts about the same noun that add up to the claimed amount."""
    value = claim.value
    amounts = _amounts(value, facts, names)
    for size in (2, 3):
        for group in combinations(amounts, size):
            distinct = len({fact.field for fact, _ in group}) == size
            same_nouns = len({fact_nouns(fact) for fact, _ in group}) == 1
            if (
                distinct
                and same_nouns
                and isinstance(value, Quantity)
                and math.isclose(sum(v for _, v in group), value.amount)
            ):
                return group[0][0]
    return None


def _amount_pairs(value: object, facts: Sequence[Fact], names: Sequence[str]) -> list[tuple[tuple[Fact, float], ...]]:
    amounts = _amounts(value, facts, names)
    return [
        (first, second)
        for first, second in permutations(amounts, 2)
        if first[0].field != second[0].field and fact_nouns(first[0]) == fact_nouns(second[0])
    ]


def _amounts(value: object, facts: Sequence[Fact], names: Sequence[str]) -> list[tuple[Fact, float]]:
    """Return the single amounts of the named subjects that count the claim's nouns best; all if it has no nouns."""
    single = [
        (fact, fact.claim.value.amount)
        for fact in facts
        if fact.field in names and isinstance(fact.claim.value, Quantity) and not fact.claim.value.pair
        and fact.claim.value.nouns
    ]  # fmt: skip
    if not isinstance(value, Quantity) or not value.nouns:
        return single
    best = max((jaccard(value.nouns, fact_nouns(fact)) for fact, _ in single), default=0.0)
    return [entry for entry in single if best and jaccard(value.nouns, fact_nouns(entry[0])) == best]


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return shared words over all words (Jaccard index), 0 to 1."""
    return len(left & right) / len(left | right) if left | right else 0.0


def fact_nouns(fact: Fact) -> frozenset[str]:
    """Return the stems of what a fact counts."""
    return fact.claim.value.nouns if isinstance(fact.claim.value, Quantity) else frozenset()
