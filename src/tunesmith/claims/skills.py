"""Finds skills by name: the built-in list, the items of the fields, and phrases of the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import Words, split_words, word_list, word_spans, words
from tunesmith.claims.fold import fold_word as folded

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
