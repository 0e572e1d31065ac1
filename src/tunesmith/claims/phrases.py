"""Finds phrases with a meaning that fields express in other words: 'boards' for rebounds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tunesmith.claims.fold import Words, fold, word_spans, words


@dataclass(frozen=True)
class PhraseMatch:
    """A phrase in a text: its span and the folded words of its meaning."""

    start: int
    end: int
    nouns: frozenset[str]


@dataclass(frozen=True)
class Phrases:
    """Folded phrases by first word, longest first, each with the folded words of its meaning."""

    by_first: Mapping[str, tuple[tuple[Words, frozenset[str]], ...]]

    @classmethod
    def from_synonyms(cls, synonyms: Mapping[str, str]) -> Phrases:
        """Index phrases and their meanings."""
        table: dict[str, list[tuple[Words, frozenset[str]]]] = {}
        for phrase, meaning in sorted(synonyms.items(), key=lambda pair: -len(words(pair[0]))):
            if folded := words(phrase):
                table.setdefault(folded[0], []).append((folded, frozenset(words(meaning))))
        return cls({first: tuple(entries) for first, entries in table.items()})

    def find(self, text: str) -> list[PhraseMatch]:
        """Return the phrases of a text from left to right, the longest one at each word."""
        if not self.by_first:
            return []
        parts = [(part, start, end) for word, start, end in word_spans(text) for part in fold(word).split()]
        stream = tuple(part for part, _, _ in parts)
        matches, index = [], 0
        while index < len(parts):
            candidates = (
                entry
                for entry in self.by_first.get(stream[index], ())
                if stream[index : index + len(entry[0])] == entry[0]
            )
            phrase, nouns = next(candidates, ((), frozenset[str]()))
            if phrase:
                matches.append(PhraseMatch(parts[index][1], parts[index + len(phrase) - 1][2], nouns))
            index += len(phrase) or 1
        return matches


@dataclass(frozen=True)
class ReportOptions:
    """How to read a report, as opposed to a letter.

    With `scores`, numbers joined by a hyphen are a score, not a range, and 'second' is a rank. `nouns` are stems of
    what the fields count: 'a steal' is a number if they count steals. With `names`, capitalized names are claims.
    """

    phrases: Phrases
    nouns: Collection[str] = frozenset()
    names: bool = False
    scores: bool = True
