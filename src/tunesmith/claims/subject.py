"""Finds which subject a number belongs to in a report about several, each with its own field.

Also who says a sentence of whom, and whether the text asserts it or denies, wishes or asks.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.claims.claim import CheckedClaim, Claim
from tunesmith.claims.words import Words, contains_phrase, words

_ASIDE = re.compile(  # 'Kim led the way for the Hawks with 20', 'Kim paced the Hawks with 20'
    r"\b(?:for|of|over|against|from|than|led|leads|leading|paced|pacing|carried|carrying)\s+(?:the\s+)?$", re.IGNORECASE
)
_PERSON = r"[Hh]e|[Ss]he|[Hh]is|[Hh]er|[Hh]im"
_ARTICLE = re.compile(r"\b[Tt]he\s$")
_OPEN = re.compile(r"\s*\($")
_SUBJECT_AFTER_ALL = re.compile(r",?\s+who\b|['’]s\b")  # 'a strong game from Kim, who scored 20'


@dataclass(frozen=True)
class Mention:
    """A mention of a subject. `name` is None for a name without a field; an `aside` is part of another's statement."""

    start: int
    end: int
    name: str | None
    aside: bool = False
    pronoun: bool = False


class Names:
    """What a text may call its subjects: the full name, a synonym, or a word that only one of them has (a surname)."""

    def __init__(self, names: Collection[str], synonyms: Mapping[str, str] | None = None) -> None:
        shared = Counter(word for name in names for word in set(name.split()))
        by_phrase = {word: name for name in names for word in name.split() if shared[word] == 1 and word[0].isupper()}
        by_phrase.update({phrase: name for phrase, name in (synonyms or {}).items() if name in names})
        self.by_phrase = by_phrase | {name: name for name in names}
        self._folded = {words(phrase): name for phrase, name in self.by_phrase.items()}
        self._parts = [(words(name), name) for name in names]

    def lookup(self, name: Words) -> str | None:
        """Return the subject that folded words name: in full, in part, by a synonym, or extended ('Kim Lee III')."""
        candidates = (
            full for folded, full in self._parts if contains_phrase(folded, name) or contains_phrase(name, folded)
        )
        return self._folded.get(name) or next(candidates, None)


class Subjects:
    """The mentions of subjects in a text.

    'he' and 'she' refer to the person that opened the sentence, else to the last one before it. Names that are ever
    used with 'the' are no persons: in 'Kim led the Hawks as she scored 20' the 20 are Kim's. Of `unknown_names`, those
    that open a sentence are mentions too, as what follows is stated of them.
    """

    def __init__(self, text: str, names: Names, unknown_names: Iterable[Claim] = ()) -> None:
        self.names = names
        opening = (
            name for name in unknown_names if " " in name.text and name.start - _sentence_start(text, name.start) <= 3
        )
        mentions = [*_mentions(text, names.by_phrase), *(Mention(name.start, name.end, None) for name in opening)]
        self.mentions = sorted(mentions, key=lambda mention: mention.start)
        self._starts = [mention.start for mention in self.mentions]

    def subject_at(self, text: str, position: int) -> Mention | None:
        """Return the subject of a number: the mention before its parenthesis, else the last one that is no aside."""
        index = bisect_left(self._starts, position)
        if index and _OPEN.fullmatch(text[self.mentions[index - 1].end : position]):
            return self.mentions[index - 1]
        return next(self._back(index), None)

    def anchor(self, text: str, position: int) -> Mention | None:
        """Return the mention by name of a number's subject, looking past pronouns."""
        mention = self.subject_at(text, position)
        if mention and mention.pronoun:
            earlier = [
                candidate for candidate in self.mentions if candidate.start < mention.start and not candidate.pronoun
            ]
            return next((candidate for candidate in reversed(earlier) if candidate.name == mention.name), None)
        return mention if mention and mention.name else None

    def earlier(self, text: str, position: int) -> Iterator[str]:
        """Yield the subjects named earlier in the sentence, the last one first."""
        since = bisect_left(self._starts, _sentence_start(text, position))
        return (mention.name for mention in self._back(bisect_left(self._starts, position), since) if mention.name)

    def around(self, start: int, end: int) -> list[str]:
        """Return the subjects of a sentence; if fewer than two, add those before it, then those after it, up to two."""
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, end)
        names = list(dict.fromkeys(mention.name for mention in self.mentions[first:last] if mention.name))
        for mention in reversed(self.mentions[:first]):
            if len(names) >= 2:
                break
            if mention.name and mention.name not in names:
                names.append(mention.name)
        return names if len(names) >= 2 else list(dict.fromkeys([*names, *self._after(last)]))[:2]

    def _after(self, index: int) -> Iterator[str]:
        return (mention.name for mention in self.mentions[index:] if mention.name)

    def _back(self, index: int, since: int = 0) -> Iterator[Mention]:
        return (
            self.mentions[position] for position in range(index - 1, since - 1, -1) if not self.mentions[position].aside
        )


def _mentions(text: str, by_phrase: Mapping[str, str]) -> Iterator[Mention]:
    if not by_phrase:
        return
    longest = sorted(map(re.escape, by_phrase), key=len, reverse=True)
    matches = list(re.finditer(rf"(?<!\w)(?:(?P<name>{'|'.join(longest)})|{_PERSON})(?!\w)", text))
    occurrences = [(match.start(), by_phrase[match[0]]) for match in matches if match["name"]]
    things = {name for start, name in occurrences if _ARTICLE.search(text[max(0, start - 5) : start])}
    people = [(start, name) for start, name in occurrences if name not in things]
    previous = -1
    for match in matches:
        sentence = _sentence_start(text, match.start())
        if match["name"]:
            before = text[max(0, match.start() - 14) : match.start()]
            aside = (
                previous > sentence and bool(_ASIDE.search(before)) and not _SUBJECT_AFTER_ALL.match(text, match.end())
            )
            yield Mention(match.start(), match.end(), by_phrase[match[0]], aside)
        else:
            earlier = [person for person in people if person[0] < match.start()]
            in_sentence = [name for start, name in earlier if start > sentence]
            if earlier:
                name = in_sentence[0] if in_sentence else earlier[-1][1]
                yield Mention(match.start(), match.end(), name, pronoun=True)
        previous = match.start()


def _sentence_start(text: str, position: int) -> int:
    """Return the position before the sentence at a position, -1 at the start of the text."""
    return max(text.rfind(mark, 0, position) for mark in (". ", "\n", "; "))


MIN_GAIN = 2  # supported numbers that the other subject must be ahead of the named one
ALLOW_ONE_MISS_FROM = 4  # with this many numbers, the other subject may miss one

Judge = Callable[[Claim, str], CheckedClaim | None]


def reattribute(
    results: Sequence[CheckedClaim], text: str, subjects: Subjects, names: Sequence[str], judge: Judge
) -> list[CheckedClaim]:
    """Return the results, with each wrong name contradicted and its numbers checked against the right subject.

    A name is wrong if another subject's field supports at least MIN_GAIN more of the numbers stated of it, and all of
    them (all but one if there are ALLOW_ONE_MISS_FROM or more).
    """
    groups: dict[Mention, list[CheckedClaim]] = {}
    for result in results:
        anchor = subjects.anchor(text, result.claim.start)
        if anchor and result.claim.kind in {"number", "percentage"}:
            groups.setdefault(anchor, []).append(result)
    replacements: dict[Claim, CheckedClaim] = {}
    for anchor, group in groups.items():
        own_count = sum(result.verdict == "supported" for result in group)
        name_result = next(
            (result for result in results if result.claim.kind == "name" and _covers(result, anchor)), None
        )
        if name_result is None or len(group) - own_count < MIN_GAIN:
            continue
        best_name, verdicts = _best_subject(group, [name for name in names if name != anchor.name], judge)
        fit_count = sum(result.verdict == "supported" for result in verdicts)
        if fit_count - own_count >= MIN_GAIN and fit_count >= len(group) - (len(group) >= ALLOW_ONE_MISS_FROM):
            replacements.update({result.claim: result for result in verdicts})
            replacements[name_result.claim] = replace(
                name_result, verdict="contradicted", field=best_name, reason=f"{best_name} has these figures"
            )
    return [replacements.get(result.claim, result) for result in results]


def _best_subject(
    results: Sequence[CheckedClaim], names: Sequence[str], judge: Judge
) -> tuple[str, list[CheckedClaim]]:
    """Return the subject whose field supports most of the claims, and the results against it."""
    best: tuple[str, list[CheckedClaim]] = ("", [])
    best_count = 0
    for name in names:
        verdicts = [
            _from_own_field(judge(result.claim, name), name) or replace(result, verdict="unsupported")
            for result in results
        ]
        count = sum(result.verdict == "supported" for result in verdicts)
        if count > best_count:
            best, best_count = (name, verdicts), count
    return best


def _from_own_field(result: CheckedClaim | None, name: str) -> CheckedClaim | None:
    """Return the result, or None if it is supported by the field of another subject."""
    return result if result and (result.verdict != "supported" or result.field == name) else None


def _covers(result: CheckedClaim, mention: Mention) -> bool:
    return result.claim.start <= mention.start < result.claim.end


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
