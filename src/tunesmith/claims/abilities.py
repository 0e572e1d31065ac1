"""Skills in the writer's own words: what a letter calls an ability, or lists beside a known skill."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import Words, listed, located, words
from tunesmith.claims.skills import SOFT

LONGEST = 4  # words of a skill: 'hearing aid battery change'
_ABLE = re.compile(  # a phrase behind it is an ability
    r"(?:(?:proficien(?:t|cy)|fluen(?:t|cy)|skilled|experienced|versed|competent|adept|trained|expert|practi[sc]ed|confident|"
    r"strong|good|sure of myself|at home|at ease|comfortable|familiar) (?:in|at|with)|"
    r"(?:knowledge|command|grasp|mastery|understanding|experience|expertise|background|foundation|samples) "
    r"(?:of|in|with)|"
    r"(?:have|I) (?:also )?master(?:ed)?|speciali[sz]ed? in|given work in|take care over|rely on is|my way around|"
    r"I know|I (?:also )?(?:bring|offer)|"
    r"my(?: \w+){0,3} (?:skills?|strengths?|skill ?set|toolkit|kit|repertoire|competenc\w+|work|duties|days?)"
    r"(?: (?:is|are|includes?|covers?|comprises?|spans?|consists? of)|:)|skills (?:are|include|cover)|"
    r"(?:can do|what I do|I do)[^.;:]{0,25}(?: comes? down to|:)|answer is)\s+(?=[\w(])",
    re.IGNORECASE,
)
_FIRST = frozenset(  # the first words of what _ABLE matches: a set is looked up faster than a pattern is tried
    listed(
        "proficient proficiency fluent fluency skilled experienced versed competent adept trained expert practised "
        "practiced confident strong good sure at comfortable familiar knowledge command grasp mastery understanding "
        "experience expertise background foundation samples have i specialise specialised specialize specialized given "
        "take rely my skills can what answer"
    )
)
_STRENGTH = re.compile(  # a phrase in front of it is an ability
    r"\s+(?:is|are) (?:(?:also|certainly|another|one|part|among|some)\s)*(?:of )?"
    r"(?:my\b|how I work\b|familiar\b|second nature\b|what (?:I|colleagues|people)\b)"
)
_JOIN = re.compile(
    r"(?:\s+first)?\s*(?:,|\n)?\s*(?:(?:and enjoy|then|and|or|&|plus|as well as|along with|together with|"
    r"closely followed by)\s+(?:also\s+)?)?"
    r"(?:(?:in|with|of)\s+)?(?:[-*•–]\s+|\d{1,2}[.)]\s+)?"
)
_STOP = frozenset(
    listed(
        "a an the of in on at to for from with by and or nor but as is are was were be been being have has had do "
        "does did that which who whom where when while what how why if than then so i my me mine myself yours ours we "
        "our us you your he she they their it its this these those there here not no also too both either each every "
        "all any some such very more most much many can could will would may might shall should must let because "
        "since until before after during into over under through about around within without across along together "
        "first second third last bring offer know use used using enjoy include includes including cover covers knows "
        "love like need needs make makes made come comes came get gets got take takes took give gives gave keep keeps "
        "kept go goes went well always often never ever still yet already just only even quite really highly "
        "especially particularly please thank thanks hope look worked working allows allowed enables helps "
        "ensures drives provides combined coupled gained developed honed"
    )
)
_OPENING = frozenset(  # words with which a phrase says how good or how many, not what
    listed(
        "various several different new modern similar relevant related other own same large small big complex good "
        "great best better strong solid deep broad wide eager keen able willing ready happy proud passionate "
        "dedicated diligent motivated reliable punctual friendly quick fast hard full high top key main daily early "
        "late long short experience knowledge proficiency understanding expertise handson further possess additional "
        "extensive vast hands advanced proven robust one two three four five six seven eight nine ten"
    )
)
_WEAK = SOFT | frozenset(
    listed(
        "analysis analyse system method methodology practice process tool technique technology application solution "
        "environment product principle standard care control check report record paper plan task duty area thing way "
        "people person team colleague customer client concept field industry sector business company market role job "
        "position trade place detail language program programming best framework platform function operation "
        "operational professional problem challenge quality world class effort strategy initiative goal need "
        "requirement result success decision making growth mindset approach background knowledge ability proficiency "
        "career study course cross functional learning developing designing building implementing deploying managing "
        "analyzing analysing creating working using leading improving ensuring providing supporting collaborating "
        "communicating delivering handling maintaining writing processing capability insight implementation model "
        "modeling modelling algorithm structure possess"
    )
)
_NO_SKILL = frozenset(  # a phrase that ends in one tells of people, places and aims
    listed(
        "team role experience trend stakeholder audience need goal requirement insight discipline expertise career "
        "position company organization organisation project opportunity client customer colleague people success "
        "knowledge skill ability innovation result growth future"
    )
)
_ADJECTIVE = re.compile(r"^(?:[a-z]+(?:al|ive|ic|ous|able|ible|ary|ful|less)|end|user)$")  # 'front-end'
_PARTICLES = frozenset(
    listed("out up off down in")
)  # 'setting out' is a trade's word, 'building bridges' may be anything
_ENDING = re.compile(
    r"(?:ys(?:is|es|t|e|ing)|ytics?|ytical|at(?:ions?|ing|ed|es?|ors?)|ments?|ings?|ions?|ers?|ors?|ed|es|al|ly|ist|e|y|s)$"
)


@dataclass(frozen=True)
class _Phrase:
    first: int  # index of its first word
    stop: int  # and of the one behind its last
    end: str  # the word or sign that ended it


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """A folded word without its ending: 'welding', 'welder' and 'welded' are 'weld'."""
    cut = _ENDING.sub("", word)
    cut = cut if len(cut) >= 3 else word
    return cut[:-1] if len(cut) > 3 and cut[-1] == cut[-2] and cut[-1] not in "sl" else cut


def content(phrase: Words) -> frozenset[str]:
    """The stems of the words that say what a skill is about; of all words where none does."""
    telling = [word for word in phrase if word not in _WEAK and word not in _STOP]
    return frozenset(map(stem, telling or phrase))


def tells(phrase: Words) -> bool:
    """Whether a phrase has a word that says what it is about: 'electric cars', no 'new systems'."""
    return any(word not in _WEAK and word not in _STOP for word in phrase)


def abilities(text: str, known: Sequence[Claim]) -> Iterator[Claim]:
    """Phrases given as abilities: behind 'proficient in', before 'is my strength', beside a `known` skill."""
    found = located(text)
    starts = [start for _, start, _ in found]
    seen: set[int] = set()
    for word, start, _ in found:
        if word.lower() in _FIRST and (match := _ABLE.match(text, start)):
            yield from _series(text, found, bisect_left(starts, match.end()), seen)
    for match in _STRENGTH.finditer(text):
        last = bisect_left(starts, match.start()) - 1
        yield from _before(text, found, last, seen)
    for claim in known:
        first = bisect_left(starts, claim.start)
        join = _JOIN.match(text, claim.end)
        if join and join.end() > claim.end + 1:
            yield from _series(text, found, bisect_left(starts, join.end()), seen, listed_only=True)
        if first and _joined(text[found[first - 1][2] : claim.start], found[first - 1][0]):
            last = first - 2 if found[first - 1][0].lower() in {"and", "or"} else first - 1
            yield from _before(text, found, last, seen)


def _joined(gap: str, word: str) -> bool:
    return gap.strip(" ") == "," or gap.lstrip(" ").startswith("\n") or word.lower() in {"and", "or"}


def _series(
    text: str, found: Sequence[tuple[str, int, int]], at: int, seen: set[int], listed_only: bool = False
) -> Iterator[Claim]:
    """The phrases of a series from word `at` on."""
    while at < len(found):
        phrase = _right(text, found, at)
        if phrase is None or not _names(found, phrase, strict=listed_only):
            return
        claim = _claim(text, found, phrase)
        if (
            phrase.first not in seen
            and isinstance(claim.value, tuple)
            and not all(each in _WEAK for each in claim.value)
        ):
            seen.add(phrase.first)
            yield claim
        end = found[phrase.stop - 1][2]
        join = _JOIN.match(text, end)
        if not join or not re.search(r"[,\n]|\b(?:and|or|plus|with|then)\b", join[0]):
            return
        at, listed_only = phrase.stop, True
        while at < len(found) and found[at][1] < join.end():
            at += 1


def _before(text: str, found: Sequence[tuple[str, int, int]], last: int, seen: set[int]) -> Iterator[Claim]:
    """The phrases of a series that ends with word `last`, backwards."""
    while last >= 0:
        first = last
        while first >= 0 and found[first][0].lower() not in _STOP and last - first < LONGEST:
            gap = text[found[first][2] : found[first + 1][1]] if first < last else " "
            if gap not in {" ", "-", "/"}:
                break
            first -= 1
        phrase = _Phrase(first + 1, last + 1, ",")
        infinitive = first >= 0 and found[first][0] == "to"  # 'able to present and influence change'
        if first + 1 > last or last - first > LONGEST or infinitive or not _names(found, phrase, strict=True):
            return
        claim = _claim(text, found, phrase)
        if (
            phrase.first not in seen
            and isinstance(claim.value, tuple)
            and not all(each in _WEAK for each in claim.value)
        ):
            seen.add(phrase.first)
            yield claim
        if first < 0:
            return
        word = found[first][0].lower()
        gap = text[found[first][2] : found[first + 1][1]]
        if word in {"and", "or"}:
            last = first - 1
        elif gap.strip(" ") == "," and word not in _STOP:
            last = first
        else:
            return


def _right(text: str, found: Sequence[tuple[str, int, int]], at: int) -> _Phrase | None:
    stop = at
    while stop < len(found) and stop - at <= LONGEST:
        word = found[stop][0].lower()
        gap = text[found[stop - 1][2] : found[stop][1]] if stop > at else " "
        if gap not in {" ", "-", "/"}:
            return _Phrase(at, stop, gap.strip(" ")[:1] or "\n")
        if word in _STOP:
            return _Phrase(at, stop, word) if stop > at else None
        stop += 1
    return _Phrase(at, stop, ".") if stop == len(found) and stop - at <= LONGEST else None


def _names(found: Sequence[tuple[str, int, int]], phrase: _Phrase, strict: bool) -> bool:
    """Whether a phrase has the shape of an ability's name: a few nouns, no verb, no person.

    In a `strict` place, a list of other things, a single word must stand alone between its commas.
    """
    said = [word.lower() for word, _, _ in found[phrase.first : phrase.stop]]
    if not said or len(said) > LONGEST or said[0] in _OPENING or said[0].endswith("ly") or phrase.end in {"of", "that"}:
        return False
    if strict and len(said) > 1 and said[0].endswith("ed"):
        return False  # 'Python, and implemented models'
    if any(mark.isdigit() for word in said for mark in word) or (
        said[0].endswith("ing") and len(said) > 1 and said[1] not in _PARTICLES
    ):
        return False
    if strict and len(said) == 1 and phrase.end in _STOP - {"and", "or", "is", "are", "has", "have"}:
        return False
    return not (_ADJECTIVE.match(said[-1]) or _NO_SKILL & set(words(said[-1])))


def _claim(text: str, found: Sequence[tuple[str, int, int]], phrase: _Phrase) -> Claim:
    start, end = found[phrase.first][1], found[phrase.stop - 1][2]
    return Claim("skill", start, end, text[start:end], words(text[start:end]))
