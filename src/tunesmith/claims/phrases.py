"""Words that mean what a field calls otherwise: 'boards' for rebounds, 'from the field' for field goals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tunesmith.claims.fold import Words, fold, located, words


@dataclass(frozen=True)
class Said:
    """A phrase in a text: its characters, and the folded words of what it means."""

    start: int
    end: int
    nouns: frozenset[str]


@dataclass(frozen=True)
class Phrases:
    """Folded phrases by their first word, longest first, each with the folded words of its meaning."""

    by_first: Mapping[str, tuple[tuple[Words, frozenset[str]], ...]]

    @classmethod
    def of(cls, synonyms: Mapping[str, str]) -> Phrases:
        """The caller's phrases and what they mean."""
        table: dict[str, list[tuple[Words, frozenset[str]]]] = {}
        for phrase, meaning in sorted(synonyms.items(), key=lambda pair: -len(words(pair[0]))):
            if folded := words(phrase):
                table.setdefault(folded[0], []).append((folded, frozenset(words(meaning))))
        return cls({first: tuple(many) for first, many in table.items()})

    def find(self, text: str) -> list[Said]:
        """Every phrase of a text, the longest at each word, from left to right."""
        if not self.by_first:
            return []
        parts = [(part, start, end) for word, start, end in located(text) for part in fold(word).split()]
        stream = tuple(part for part, _, _ in parts)
        said, at = [], 0
        while at < len(parts):
            fitting = (each for each in self.by_first.get(stream[at], ()) if stream[at : at + len(each[0])] == each[0])
            phrase, nouns = next(fitting, ((), frozenset[str]()))
            if phrase:
                said.append(Said(parts[at][1], parts[at + len(phrase) - 1][2], nouns))
            at += len(phrase) or 1
        return said


@dataclass(frozen=True)
class Report:
    """How a report is read, other than a letter.

    With `scores` figures joined by a hyphen are a score, not a range, and 'second' is a rank. `nouns` are the stems of
    what the fields count: 'a steal' is a number where they count steals. With `names` capitalised names are claims.
    """

    phrases: Phrases
    nouns: Collection[str] = frozenset()
    names: bool = False
    scores: bool = True
