"""Which named thing a number belongs to: in reports about many things each thing has its own field."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import Words, holds, words

_ASIDE = re.compile(  # 'Kim led the way for the Hawks with 20', 'Kim paced the Hawks with 20'
    r"\b(?:for|of|over|against|from|than|led|leads|leading|paced|pacing|carried|carrying)\s+(?:the\s+)?$", re.IGNORECASE
)
_PERSON = r"[Hh]e|[Ss]he|[Hh]is|[Hh]er|[Hh]im"
_ARTICLE = re.compile(r"\b[Tt]he\s$")
_OPEN = re.compile(r"\s*\($")
_TAKEN_UP = re.compile(r",?\s+who\b|['’]s\b")  # 'a strong game from Kim, who scored 20'


@dataclass(frozen=True)
class Mention:
    """Where a text names a subject; None for a name without a field. An `aside` is named in another's statement."""

    start: int
    end: int
    name: str | None
    aside: bool = False
    pronoun: bool = False


class Names:
    """What a text may call its subjects: in full, by a synonym, or by a word that only one of them has (a surname)."""

    def __init__(self, names: Collection[str], synonyms: Mapping[str, str] | None = None) -> None:
        shared = Counter(word for name in names for word in set(name.split()))
        spelled = {word: name for name in names for word in name.split() if shared[word] == 1 and word[0].isupper()}
        spelled.update({phrase: name for phrase, name in (synonyms or {}).items() if name in names})
        self.spelled = spelled | {name: name for name in names}
        self._folded = {words(phrase): name for phrase, name in self.spelled.items()}
        self._parts = [(words(name), name) for name in names]

    def called(self, name: Words) -> str | None:
        """The subject that folded words name: in full, in part, by a synonym, or with an addition ('Kim Lee III')."""
        fitting = (full for folded, full in self._parts if holds(folded, name) or holds(name, folded))
        return self._folded.get(name) or next(fitting, None)


class Subjects:
    """Where a text names its subjects.

    'he' and 'she' name the one that opened the sentence, else the last one before it, of those that never stand with
    'the': in 'Kim led the Hawks as she scored 20' the 20 are Kim's. `strange` are other names, of which those that open
    a sentence are noted: what follows is said of them.
    """

    def __init__(self, text: str, names: Names, strange: Iterable[Claim] = ()) -> None:
        self.names = names
        opening = (each for each in strange if " " in each.text and each.start - _sentence(text, each.start) <= 3)
        found = [*_mentions(text, names.spelled), *(Mention(each.start, each.end, None) for each in opening)]
        self.mentions = sorted(found, key=lambda each: each.start)
        self._starts = [each.start for each in self.mentions]

    def of(self, text: str, place: int) -> Mention | None:
        """The subject of a number: the one in front of its bracket, else the last one that is no aside."""
        index = bisect_left(self._starts, place)
        if index and _OPEN.fullmatch(text[self.mentions[index - 1].end : place]):
            return self.mentions[index - 1]
        return next(self._back(index), None)

    def anchor(self, text: str, place: int) -> Mention | None:
        """Where the subject of a number is named, behind any pronoun."""
        mention = self.of(text, place)
        if mention and mention.pronoun:
            earlier = [each for each in self.mentions if each.start < mention.start and not each.pronoun]
            return next((each for each in reversed(earlier) if each.name == mention.name), None)
        return mention if mention and mention.name else None

    def earlier(self, text: str, place: int) -> Iterator[str]:
        """The subjects of the sentence before a place, the last one first."""
        since = bisect_left(self._starts, _sentence(text, place))
        return (each.name for each in self._back(bisect_left(self._starts, place), since) if each.name)

    def near(self, start: int, end: int) -> list[str]:
        """The subjects of a sentence; with fewer than two, those before it, then behind it, up to two."""
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, end)
        found = list(dict.fromkeys(each.name for each in self.mentions[first:last] if each.name))
        for each in reversed(self.mentions[:first]):
            if len(found) >= 2:
                break
            if each.name and each.name not in found:
                found.append(each.name)
        return found if len(found) >= 2 else list(dict.fromkeys([*found, *self._after(last)]))[:2]

    def _after(self, index: int) -> Iterator[str]:
        return (each.name for each in self.mentions[index:] if each.name)

    def _back(self, index: int, since: int = 0) -> Iterator[Mention]:
        return (self.mentions[at] for at in range(index - 1, since - 1, -1) if not self.mentions[at].aside)


def _mentions(text: str, spelled: Mapping[str, str]) -> Iterator[Mention]:
    if not spelled:
        return
    longest = sorted(map(re.escape, spelled), key=len, reverse=True)
    found = list(re.finditer(rf"(?<!\w)(?:(?P<name>{'|'.join(longest)})|{_PERSON})(?!\w)", text))
    named = [(match.start(), spelled[match[0]]) for match in found if match["name"]]
    things = {name for at, name in named if _ARTICLE.search(text[max(0, at - 5) : at])}
    people = [(at, name) for at, name in named if name not in things]
    last = -1
    for match in found:
        sentence = _sentence(text, match.start())
        if match["name"]:
            before = text[max(0, match.start() - 14) : match.start()]
            aside = last > sentence and bool(_ASIDE.search(before)) and not _TAKEN_UP.match(text, match.end())
            yield Mention(match.start(), match.end(), spelled[match[0]], aside)
        else:
            earlier = [each for each in people if each[0] < match.start()]
            here = [name for at, name in earlier if at > sentence]
            if earlier:
                name = here[0] if here else earlier[-1][1]
                yield Mention(match.start(), match.end(), name, pronoun=True)
        last = match.start()


def _sentence(text: str, place: int) -> int:
    """The character in front of a place's sentence, -1 at the text's start."""
    return max(text.rfind(mark, 0, place) for mark in (". ", "\n", "; "))
