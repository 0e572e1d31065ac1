"""Skills known by name: the room's list, the fields' own items, and what the caller adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import Words, listed, located, word_list, words
from tunesmith.claims.fold import parts as folded

SOFT = frozenset(
    listed(
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
    """Folded phrases by their first word, longest first; `exact` ones count only as written, and begin with `opens`."""

    loose: Mapping[str, tuple[Words, ...]]
    exact: Mapping[str, Words]
    opens: frozenset[str]

    def has(self, phrase: Words) -> bool:
        """Whether a folded phrase is one of the vocabulary."""
        return phrase in self.loose.get(phrase[0], ()) or phrase in self.exact.values()

    def find(self, text: str) -> Iterator[Claim]:
        """Every known skill of a text, the longest phrase at each word."""
        found = located(text)
        parts = [(part, start, end) for word, start, end in found for part in folded(word)]
        stream = [part for part, _, _ in parts]
        at = 0
        while at < len(parts):
            some = self.loose.get(stream[at])
            size = next((len(p) for p in some if tuple(stream[at : at + len(p)]) == p), 0) if some else 0
            if size:
                start, end = parts[at][1], parts[at + size - 1][2]
                yield Claim("skill", start, end, text[start:end], tuple(stream[at : at + size]))
            at += size or 1
        for index, (word, start, end) in enumerate(found):
            if word not in self.opens:
                continue
            phrase = text[start : found[index + 1][2]] if index + 1 < len(found) else ""
            for written, stop in ((phrase, found[min(index + 1, len(found) - 1)][2]), (word, end)):
                if written in self.exact and not _verb(written, text, start):
                    yield Claim("skill", start, stop, written, self.exact[written])
                    break


def _verb(written: str, text: str, start: int) -> bool:
    """Whether a capital letter may only mark a sentence's start: 'Go on', 'Swift delivery', 'Word of'."""
    before = text[:start].rstrip(" ")
    return written in {"Go", "Swift", "Word", "Spring", "Spark", "Rust", "Sketch", "React", "Node", "C", "R"} and (
        not before or before[-1] in ".!?\n"
    )


@lru_cache(maxsize=256)
def vocabulary(extra: frozenset[str]) -> Vocabulary:
    """The built-in list and the caller's phrases as one vocabulary."""
    built = _built()
    loose = dict(built.loose)
    for phrase in {words(line) for line in extra if not line.startswith("=")} - {()}:
        known = loose.get(phrase[0], ())
        if phrase not in known:
            loose[phrase[0]] = tuple(sorted((*known, phrase), key=len, reverse=True))
    return replace(built, loose=loose)


@lru_cache(maxsize=1)
def _built() -> Vocabulary:
    """The built-in list alone: folding its phrases takes longer than reading a letter."""
    built = word_list("skills.txt")
    loose: dict[str, list[Words]] = {}
    for phrase in sorted({words(line) for line in built if not line.startswith("=")} - {()}, key=len, reverse=True):
        loose.setdefault(phrase[0], []).append(phrase)
    exact = {line[1:]: words(line) for line in built if line.startswith("=")}
    opens = frozenset(word for written in exact for word, _, _ in located(written)[:1])
    return Vocabulary({first: tuple(many) for first, many in loose.items()}, exact, opens)


def hard(items: Iterable[str]) -> frozenset[str]:
    """Items that name something particular: at least one word that is not soft, no figures in front."""
    kept = []
    for item in items:
        folded = words(item)
        if folded and not all(word in SOFT for word in folded) and not item[0].isdigit():
            kept.append(item)
    return frozenset(kept)
