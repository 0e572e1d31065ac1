"""Finds skills: the built-in list, the items of the fields, and phrases after "proficient in" or beside a known skill.

Sentences that state nothing about anybody, such as general remarks, are recognized here too.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from tunesmith.claims.claim import Claim
from tunesmith.claims.words import Words, split_words, word_list, word_spans, words
from tunesmith.claims.words import fold_word as folded

SOFT_SKILL_WORDS = frozenset(
    split_words(
        "communication leadership teamwork collaboration management problem solving organization organizational "
        "organisation interpersonal analytical attention detail team work ability skill experience knowledge degree "
        "creativity adaptability motivation responsibility planning "
        "business customer service project technology research "
        "education training development design support data "
        "software engineering computer science industry field related "
        "similar relevant plus year time company excellent strong good great proven"
    )
)


@dataclass(frozen=True)
class Vocabulary:
    """Folded phrases by first word, longest first, and `exact` names that count only as written.

    `exact_starts` are the first words of the exact names.
    """

    phrases: Mapping[str, tuple[Words, ...]]
    exact: Mapping[str, Words]
    exact_starts: frozenset[str]

    def contains(self, phrase: Words) -> bool:
        """Return whether a folded phrase is in the vocabulary."""
        return phrase in self.phrases.get(phrase[0], ()) or phrase in self.exact.values()

    def find(self, text: str) -> Iterator[Claim]:
        """Yield every known skill of a text, the longest phrase at each word."""
        spans = word_spans(text)
        parts = [(part, start, end) for word, start, end in spans for part in folded(word)]
        stream = [part for part, _, _ in parts]
        position = 0
        while position < len(parts):
            phrases = self.phrases.get(stream[position])
            size = (
                next((len(p) for p in phrases if tuple(stream[position : position + len(p)]) == p), 0) if phrases else 0
            )
            if size:
                start, end = parts[position][1], parts[position + size - 1][2]
                yield Claim("skill", start, end, text[start:end], tuple(stream[position : position + size]))
            position += size or 1
        for index, (word, start, end) in enumerate(spans):
            if word not in self.exact_starts:
                continue
            phrase = text[start : spans[index + 1][2]] if index + 1 < len(spans) else ""
            for name, stop in ((phrase, spans[min(index + 1, len(spans) - 1)][2]), (word, end)):
                if name in self.exact and not _may_be_ordinary(name, text, start):
                    yield Claim("skill", start, stop, name, self.exact[name])
                    break


def _may_be_ordinary(word: str, text: str, start: int) -> bool:
    """Return whether a word may be capitalized only because it starts a sentence: 'Go on', 'Swift delivery'."""
    before = text[:start].rstrip(" ")
    return word in {"Go", "Swift", "Word", "Spring", "Spark", "Rust", "Sketch", "React", "Node", "C", "R"} and (
        not before or before[-1] in ".!?\n"
    )


@lru_cache(maxsize=256)
def load_vocabulary(extra: frozenset[str]) -> Vocabulary:
    """Return the built-in list together with the caller's phrases."""
    built_in = _built_in_vocabulary()
    phrases_by_first = dict(built_in.phrases)
    for phrase in {words(line) for line in extra if not line.startswith("=")} - {()}:
        phrases = phrases_by_first.get(phrase[0], ())
        if phrase not in phrases:
            phrases_by_first[phrase[0]] = tuple(sorted((*phrases, phrase), key=len, reverse=True))
    return replace(built_in, phrases=phrases_by_first)


@lru_cache(maxsize=1)
def _built_in_vocabulary() -> Vocabulary:
    """Return the built-in list alone, cached: folding it takes longer than reading a letter."""
    lines = word_list("skills.txt")
    phrases_by_first: dict[str, list[Words]] = {}
    for phrase in sorted({words(line) for line in lines if not line.startswith("=")} - {()}, key=len, reverse=True):
        phrases_by_first.setdefault(phrase[0], []).append(phrase)
    exact = {line[1:]: words(line) for line in lines if line.startswith("=")}
    exact_starts = frozenset(word for name in exact for word, _, _ in word_spans(name)[:1])
    return Vocabulary({first: tuple(phrases) for first, phrases in phrases_by_first.items()}, exact, exact_starts)


def specific_items(items: Iterable[str]) -> frozenset[str]:
    """Return the items that name something specific: at least one word is not soft, and no digit comes first."""
    specific = []
    for item in items:
        folded = words(item)
        if folded and not all(word in SOFT_SKILL_WORDS for word in folded) and not item[0].isdigit():
            specific.append(item)
    return frozenset(specific)


MAX_WORDS = 4  # 'hearing aid battery change'
_ABILITY_CUE = re.compile(  # the phrase after it is an ability
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
_CUE_WORDS = frozenset(  # first words of _ABILITY_CUE: a set lookup is faster than a match attempt
    split_words(
        "proficient proficiency fluent fluency skilled experienced versed competent adept trained expert practised "
        "practiced confident strong good sure at comfortable familiar knowledge command grasp mastery understanding "
        "experience expertise background foundation samples have i specialise specialised specialize specialized given "
        "take rely my skills can what answer"
    )
)
_ABILITY_CUE_AFTER = re.compile(  # the phrase before it is an ability
    r"\s+(?:is|are) (?:(?:also|certainly|another|one|part|among|some)\s)*(?:of )?"
    r"(?:my\b|how I work\b|familiar\b|second nature\b|what (?:I|colleagues|people)\b)"
)
_JOIN = re.compile(
    r"(?:\s+first)?\s*(?:,|\n)?\s*(?:(?:and enjoy|then|and|or|&|plus|as well as|along with|together with|"
    r"closely followed by)\s+(?:also\s+)?)?"
    r"(?:(?:in|with|of)\s+)?(?:[-*•–]\s+|\d{1,2}[.)]\s+)?"
)
_STOP_WORDS = frozenset(
    split_words(
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
_NO_SKILL_START = frozenset(  # a phrase that starts with one of these says how good or how many, not what
    split_words(
        "various several different new modern similar relevant related other own same large small big complex good "
        "great best better strong solid deep broad wide eager keen able willing ready happy proud passionate "
        "dedicated diligent motivated reliable punctual friendly quick fast hard full high top key main daily early "
        "late long short experience knowledge proficiency understanding expertise handson further possess additional "
        "extensive vast hands advanced proven robust one two three four five six seven eight nine ten"
    )
)
_GENERIC_WORDS = SOFT_SKILL_WORDS | frozenset(
    split_words(
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
_NO_SKILL_END = frozenset(  # a phrase that ends with one of these is about people, places or aims
    split_words(
        "team role experience trend stakeholder audience need goal requirement insight discipline expertise career "
        "position company organization organisation project opportunity client customer colleague people success "
        "knowledge skill ability innovation result growth future"
    )
)
_ADJECTIVE = re.compile(r"^(?:[a-z]+(?:al|ive|ic|ous|able|ible|ary|ful|less)|end|user)$")  # 'front-end'
_PARTICLES = frozenset(
    split_words("out up off down in")
)  # 'setting out' is a trade term; 'building bridges' may mean anything
_SUFFIX = re.compile(
    r"(?:ys(?:is|es|t|e|ing)|ytics?|ytical|at(?:ions?|ing|ed|es?|ors?)|ments?|ings?|ions?|ers?|ors?|ed|es|al|ly|ist|e|y|s)$"
)


@dataclass(frozen=True)
class _Phrase:
    first: int  # index of its first word
    stop: int  # index after its last word
    end: str  # the word or character that follows it


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """Return a folded word without its suffix: 'welding', 'welder' and 'welded' become 'weld'."""
    cut = _SUFFIX.sub("", word)
    cut = cut if len(cut) >= 3 else word
    return cut[:-1] if len(cut) > 3 and cut[-1] == cut[-2] and cut[-1] not in "sl" else cut


def content_stems(phrase: Words) -> frozenset[str]:
    """Return the stems of the words that say what a skill is about, or of all words if none does."""
    content_words = [word for word in phrase if word not in _GENERIC_WORDS and word not in _STOP_WORDS]
    return frozenset(map(stem, content_words or phrase))


def is_specific(phrase: Words) -> bool:
    """Return whether a phrase says what it is about: 'electric cars' does, 'new systems' does not."""
    return any(word not in _GENERIC_WORDS and word not in _STOP_WORDS for word in phrase)


def find_abilities(text: str, known_skills: Sequence[Claim]) -> Iterator[Claim]:
    """Yield phrases stated as abilities: after 'proficient in', before 'is my strength', or beside a known skill."""
    spans = word_spans(text)
    starts = [start for _, start, _ in spans]
    yielded: set[int] = set()
    for word, start, _ in spans:
        if word.lower() in _CUE_WORDS and (match := _ABILITY_CUE.match(text, start)):
            yield from _series_from(text, spans, bisect_left(starts, match.end()), yielded)
    for match in _ABILITY_CUE_AFTER.finditer(text):
        last = bisect_left(starts, match.start()) - 1
        yield from _series_before(text, spans, last, yielded)
    for claim in known_skills:
        first = bisect_left(starts, claim.start)
        join = _JOIN.match(text, claim.end)
        if join and join.end() > claim.end + 1:
            yield from _series_from(text, spans, bisect_left(starts, join.end()), yielded, listed_only=True)
        if first and _is_joined(text[spans[first - 1][2] : claim.start], spans[first - 1][0]):
            last = first - 2 if spans[first - 1][0].lower() in {"and", "or"} else first - 1
            yield from _series_before(text, spans, last, yielded)


def _is_joined(gap: str, word: str) -> bool:
    return gap.strip(" ") == "," or gap.lstrip(" ").startswith("\n") or word.lower() in {"and", "or"}


def _series_from(
    text: str, spans: Sequence[tuple[str, int, int]], index: int, yielded: set[int], listed_only: bool = False
) -> Iterator[Claim]:
    """Yield the abilities of a series that starts at word `index`."""
    while index < len(spans):
        phrase = _phrase_from(text, spans, index)
        if phrase is None or not _is_ability(spans, phrase, strict=listed_only):
            return
        yield from _new_claim(text, spans, phrase, yielded)
        end = spans[phrase.stop - 1][2]
        join = _JOIN.match(text, end)
        if not join or not re.search(r"[,\n]|\b(?:and|or|plus|with|then)\b", join[0]):
            return
        index, listed_only = phrase.stop, True
        while index < len(spans) and spans[index][1] < join.end():
            index += 1


def _series_before(text: str, spans: Sequence[tuple[str, int, int]], last: int, yielded: set[int]) -> Iterator[Claim]:
    """Yield the abilities of a series that ends with word `last`, from right to left."""
    while last >= 0:
        first = last
        while first >= 0 and spans[first][0].lower() not in _STOP_WORDS and last - first < MAX_WORDS:
            gap = text[spans[first][2] : spans[first + 1][1]] if first < last else " "
            if gap not in {" ", "-", "/"}:
                break
            first -= 1
        phrase = _Phrase(first + 1, last + 1, ",")
        infinitive = first >= 0 and spans[first][0] == "to"  # 'able to present and influence change'
        if first + 1 > last or last - first > MAX_WORDS or infinitive or not _is_ability(spans, phrase, strict=True):
            return
        yield from _new_claim(text, spans, phrase, yielded)
        if first < 0:
            return
        word = spans[first][0].lower()
        gap = text[spans[first][2] : spans[first + 1][1]]
        if word in {"and", "or"}:
            last = first - 1
        elif gap.strip(" ") == "," and word not in _STOP_WORDS:
            last = first
        else:
            return


def _phrase_from(text: str, spans: Sequence[tuple[str, int, int]], first: int) -> _Phrase | None:
    stop = first
    while stop < len(spans) and stop - first <= MAX_WORDS:
        word = spans[stop][0].lower()
        gap = text[spans[stop - 1][2] : spans[stop][1]] if stop > first else " "
        if gap not in {" ", "-", "/"}:
            return _Phrase(first, stop, gap.strip(" ")[:1] or "\n")
        if word in _STOP_WORDS:
            return _Phrase(first, stop, word) if stop > first else None
        stop += 1
    return _Phrase(first, stop, ".") if stop == len(spans) and stop - first <= MAX_WORDS else None


def _is_ability(spans: Sequence[tuple[str, int, int]], phrase: _Phrase, strict: bool) -> bool:
    """Return whether a phrase looks like the name of an ability: a few nouns, no verb, no person.

    `strict` is for lists that may hold other things: there a single word must stand alone between commas.
    """
    phrase_words = [word.lower() for word, _, _ in spans[phrase.first : phrase.stop]]
    if (
        not phrase_words
        or len(phrase_words) > MAX_WORDS
        or phrase_words[0] in _NO_SKILL_START
        or phrase_words[0].endswith("ly")
        or phrase.end in {"of", "that"}
    ):
        return False
    if strict and len(phrase_words) > 1 and phrase_words[0].endswith("ed"):
        return False  # 'Python, and implemented models'
    if any(char.isdigit() for word in phrase_words for char in word) or (
        phrase_words[0].endswith("ing") and len(phrase_words) > 1 and phrase_words[1] not in _PARTICLES
    ):
        return False
    if strict and len(phrase_words) == 1 and phrase.end in _STOP_WORDS - {"and", "or", "is", "are", "has", "have"}:
        return False
    return not (_ADJECTIVE.match(phrase_words[-1]) or _NO_SKILL_END & set(words(phrase_words[-1])))


def _new_claim(text: str, spans: Sequence[tuple[str, int, int]], phrase: _Phrase, yielded: set[int]) -> Iterator[Claim]:
    """Yield the phrase as a claim, unless it was yielded before or has generic words only."""
    start, end = spans[phrase.first][1], spans[phrase.stop - 1][2]
    value = words(text[start:end])
    if phrase.first not in yielded and not all(word in _GENERIC_WORDS for word in value):
        yielded.add(phrase.first)
        yield Claim("skill", start, end, text[start:end], value)


_PERSON = re.compile(r"\b(?:I|I['’]\w+|[Mm]y|me|mine|myself|[Ww]e|[Oo]ur|us)\b")
_OPINION = re.compile(
    r"\b(?:to my mind|in my (?:view|opinion|eyes)|I (?:think|believe|find)|"
    r"I(?:['’]d| would) (?:rather (?:have )?|choose|prefer|pick)|if you ask me)\b",
    re.IGNORECASE,
)
_ANYBODY = re.compile(
    r"\s*(?:nobody|no one|everybody|everyone|anybody|anyone|whoever|people|he who|she who)\b", re.IGNORECASE
)
_INNER = re.compile(r"\bas if \w+ were\b|\b(?:what|who|how|why)\b[^,;.]*", re.IGNORECASE)
_PAST = re.compile(  # a participle after 'is' or 'the' is no past tense
    r"(?<!\bis )(?<!\bare )(?<!\bbe )(?<!\bbeen )(?<!\bhas )(?<!\bhave )(?<!\ba )(?<!\ban )(?<!\bthe )(?<!-)\b"
    r"(?:was|were|had|did|rose|grew|fell|made|won|led|ran|built|sold|went|came|took|brought|kept|saw|taught|wrote|"
    r"(?!(?:need|indeed|speed|feed|seed|bleed|proceed|exceed|succeed|hundred|bed|red|shed|wed)\b)\w+ed)\b"
)
_ACTING_VERB = re.compile(
    r"\s(?:tell|show|teach(?:e)?|say|mean|need|make|do(?:e)?|begin|end|take|cost|rest|live|depend|come|go(?:e)?)s?\b"
)
_LIST_LINE = re.compile(r"[ \t]*(?:[-*•–]|\d{1,2}[.)])\s")


def is_general_remark(text: str, position: int) -> bool:
    """Return whether the sentence at a position is a general remark: complete, present tense, about nobody named.

    A list line is none, nor is a sentence in the past tense or with a first person.
    """
    starts = [index + len(mark) for mark in (". ", "! ", "? ", "\n") if (index := text.rfind(mark, 0, position)) >= 0]
    start = max(starts, default=0)
    ends = [index for mark in ".!?\n" if (index := _sentence_end(text, mark, position)) >= 0]
    end = min(ends, default=len(text))
    if end == len(text) or text[end] == "\n" or _LIST_LINE.match(text, start) or not text[start : start + 1].isupper():
        return False
    statement = _OPINION.sub("", text[start:end])
    if _PERSON.search(statement):
        return False
    return bool(_ANYBODY.match(statement)) or not _PAST.search(_INNER.sub("", statement))


def acts_alone(text: str, start: int, end: int) -> bool:
    """Return whether a name opens its sentence as the subject of a verb: 'Statistics tell me what people want'."""
    before = text[:start].rstrip(" ")
    return (not before or before[-1] in ".!?\n") and bool(_ACTING_VERB.match(text, end))


def _sentence_end(text: str, mark: str, position: int) -> int:
    """Return the first `mark` after a position that ends a sentence; the point in '4.5' does not."""
    index = text.find(mark, position)
    while index >= 0 and mark == "." and text[index + 1 : index + 2].isdigit():
        index = text.find(mark, index + 1)
    return index
