"""Which texts are nearly the same: every pair at or above a Jaccard similarity, none guessed and none missed.

A text is the set of its shingles (runs of neighbouring words or characters; Broder 1997). Two sets with a Jaccard
similarity of at least t share one of the |x| - ceil(t |x|) + 1 rarest members of x, so only those are looked up, among
sets of at least t times the size (prefix and length filter: Chaudhuri et al. 2006, Bayardo et al. 2007) whose remaining
members could still suffice (positional filter: Xiao et al. 2008, PPJoin). What is left is counted in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import normalise

WORDS = 3  # a shingle's length in long texts
CHARACTERS = 4  # and in short ones
# One changed word takes away 3 of a text's w - 2 shingles of words: from 29 words on, (w - 5) / (w + 1) >= 0.8.
# Measured on 2,957 real prompts, one word of each changed at random: at 0.8 shingles of 3 words and of 4 characters
# find 8 % and 45 % of those with 8 to 15 words, 15 % and 95 % up to 28 words, 99 % and 100 % from there on, where
# words take a fourteenth of the time (31,482 generated rows).
SHORT = 29  # words
SLACK = 1 - 1e-12  # lowers a bound by more than its rounding error: the exact count decides

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Keep = Callable[[int, Numbers], Flags]  # which of the others may stand in a pair with this one


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts by their places, from 0, and the Jaccard similarity of their shingles, above 0 and at most 1."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class _Sets:
    """Sets of numbers, small sets first, each from its rarest member on; members of one set alone are left out."""

    order: Numbers  # [sets] each one's place in the input
    sizes: Numbers  # [sets] ascending; members left out are counted
    starts: Numbers  # [sets + 1] where each one's members begin
    members: npt.NDArray[np.int32]  # [starts[-1]] 0 is the rarest of all
    kinds: int  # of members


@dataclass(frozen=True)
class _Index:
    """The prefixes of sets, entry by entry, and which earlier sets hold the same member in theirs."""

    bounds: Numbers  # [sets + 1] where each set's entries begin
    left: Numbers  # [entries] members of the entry's set from here on
    low: Numbers  # [entries] where the earlier sets with this member begin in `sets`
    high: Numbers  # [entries] and end
    sets: Numbers  # [entries] by member, then by set
    sets_left: Numbers  # [entries] `left` in the same order


def near_pairs(texts: Sequence[str], *, threshold: float = 0.8) -> list[Pair]:
    """Every two texts that are at least `threshold` alike, first < second, in ascending order.

    Shingles are 3 words; 4 characters where a text has fewer than 29 words (and the other fewer than 29 / `threshold`:
    otherwise the two are not alike). Texts that `normalise` makes equal are copies: each is paired with the first of
    them alone, which stands for them in other pairs; n copies give n - 1 pairs, not n (n - 1) / 2, and the same
    clusters. Empty texts are like nothing. Time and memory go with the pairs: 3,000 texts from one form, each with a
    number of its own, are 4.5 million pairs, 27 s and 0.9 GiB. Raises ValueError unless 0 < threshold <= 1.
    """
    places = _places(texts)
    groups = list(places.values())
    pairs = [Pair(group[0], copy, 1.0) for group in groups for copy in group[1:]]
    for one, other, similarity in _similar(list(places), threshold, _any):
        first, second = sorted((groups[one][0], groups[other][0]))
        pairs.append(Pair(first, second, similarity))
    return sorted(pairs, key=_by_place)


def leaks(train: Sequence[str], held: Sequence[str], *, threshold: float = 0.8) -> list[Pair]:
    """Pairs of a training text (`first`) and a held-out text (`second`) that are at least `threshold` alike.

    Compared as in `near_pairs`. Every text that has a partner stands in a pair: of copies the first is paired with all
    of the partner's copies, the others with the partner's first. Raises ValueError unless 0 < threshold <= 1.
    """
    learnt, kept = _places(train), _places(held)
    texts = list(learnt | kept)
    in_train = np.array([text in learnt for text in texts], dtype=np.bool_)
    in_held = np.array([text in kept for text in texts], dtype=np.bool_)

    def across(one: int, others: Numbers) -> Flags:
        wanted: Flags = (in_train[one] & in_held[others]) | (in_held[one] & in_train[others])
        return wanted

    found = [(text, text, 1.0) for text in texts]
    for one, other, similarity in _similar(texts, threshold, across):
        found += [(texts[one], texts[other], similarity), (texts[other], texts[one], similarity)]
    pairs = []
    for one_text, other_text, similarity in found:
        firsts, seconds = learnt.get(one_text, []), kept.get(other_text, [])
        if firsts and seconds:
            pairs += [Pair(firsts[0], second, similarity) for second in seconds]
            pairs += [Pair(first, seconds[0], similarity) for first in firsts[1:]]
    return sorted(pairs, key=_by_place)


def clusters(count: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """The groups of two or more of `count` texts that pairs connect, members and groups in ascending order.

    Alikeness is not transitive: two texts of a cluster may be less alike than any of its pairs.
    """
    parents = list(range(count))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]  # path halving (Tarjan and van Leeuwen 1984)
            place = parents[place]
        return place

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parents[high] = low
    groups: dict[int, list[int]] = {}
    for place in range(count):
        groups.setdefault(root(place), []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _places(texts: Sequence[str]) -> dict[str, list[int]]:
    """Where each distinct normalised text stands; the empty text nowhere."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        if plain := normalise(text):
            places.setdefault(plain, []).append(place)
    return places


def _by_place(pair: Pair) -> tuple[int, int]:
    return pair.first, pair.second


def _any(one: int, others: Numbers) -> Flags:
    return np.ones_like(others, dtype=np.bool_)


def _similar(texts: Sequence[str], threshold: float, keep: Keep) -> Iterator[tuple[int, int, float]]:
    """The pairs of distinct normalised texts that are at least `threshold` alike and that `keep` lets through."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but must be above 0 and at most 1")
    words = np.array([text.count(" ") + 1 for text in texts], dtype=np.int64)

    def one_is_short(one: int, others: Numbers) -> Flags:
        wanted: Flags = keep(one, others) & (np.minimum(words[one], words[others]) < SHORT)
        return wanted

    passes = ((words >= SHORT, _of_words, keep), (words * threshold < SHORT, _of_characters, one_is_short))
    for chosen, shingles, wanted in passes:
        rows = np.flatnonzero(chosen)
        if len(rows) > 1:
            owners, numbers = shingles([texts[row] for row in rows.tolist()])
            yield from _join(_sets(owners, numbers, rows), threshold, wanted)


def _of_words(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """The shingles of words, as `_shingles`; each text has WORDS words or more."""
    vocabulary: dict[str, int] = {}
    split = (text.split(" ") for text in texts)
    numbers = np.fromiter((vocabulary.setdefault(w, len(vocabulary)) for words in split for w in words), dtype=np.int64)
    return _shingles(numbers, [text.count(" ") + 1 for text in texts], WORDS)


def _of_characters(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """The shingles of characters, as `_shingles`; with spaces around, so that a single character has one too."""
    space = " " * (CHARACTERS // 2)
    spaced = [f"{space}{text}{space}" for text in texts]
    code = "".join(spaced).encode("utf-32-le", "surrogatepass")  # a broken file's half characters are texts as well
    return _shingles(np.frombuffer(code, dtype="<u4").astype(np.int64), [len(text) for text in spaced], CHARACTERS)


def _shingles(tokens: Numbers, lengths: Sequence[int], size: int) -> tuple[Numbers, Numbers]:
    """Every run of `size` tokens within a text: the text's place, and a number that equal runs share and no others.

    `tokens` are all texts' tokens, one text after another, from 0; `lengths` the number of each text's.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    radix = int(tokens.max()) + 1
    numbers, top = tokens, radix
    for place in range(1, size):
        if top * radix >= 2**63:  # number them anew, so that the next product fits: no hash, no collision
            values = _distinct(numbers)
            numbers, top = np.searchsorted(values, numbers), len(values)
        numbers, top = numbers[:-1] * radix + tokens[place:], top * radix
    whole = owners[: len(numbers)] == owners[size - 1 :]
    return owners[: len(numbers)][whole], numbers[whole]


def _sets(owners: Numbers, numbers: Numbers, rows: Numbers) -> _Sets:
    """The shingles as sets; `rows` are the places in the input that the owners 0, 1, ... stand for."""
    values = _distinct(numbers)
    kinds, count = len(values), len(rows)
    owners, kind = np.divmod(_distinct(owners * kinds + np.searchsorted(values, numbers)), kinds)
    holders = np.bincount(kind, minlength=kinds)
    rank = _inverse(np.argsort(holders, kind="stable"))
    sizes = np.bincount(owners, minlength=count)
    order = np.argsort(sizes, kind="stable")
    shared = holders[kind] > 1
    keys = np.sort(_inverse(order)[owners[shared]] * kinds + rank[kind[shared]])
    starts = np.searchsorted(keys, np.arange(count + 1) * kinds)
    return _Sets(rows[order], sizes[order], starts, (keys % kinds).astype(np.int32), kinds)


def _index(sets: _Sets, threshold: float) -> _Index:
    """The entries of the sets' prefixes, and where their partners stand."""
    count = len(sets.sizes)
    lengths = np.diff(sets.starts)
    needed = np.ceil(threshold * sets.sizes * SLACK).astype(np.int64)  # common members, and the partner's least size
    prefixes = np.maximum(lengths - needed + 1, 0)  # |x| - needed + 1 less those left out, which are the rarest
    bounds = np.concatenate(([0], np.cumsum(prefixes)))
    owners = np.repeat(np.arange(count), prefixes)
    places = np.arange(len(owners)) - bounds[owners]
    left = lengths[owners] - places
    keys = sets.members[sets.starts[owners] + places] * np.int64(count)
    by_member = np.argsort(keys + owners)
    smallest = np.searchsorted(sets.sizes, needed)
    low = np.searchsorted((keys + owners)[by_member], keys + smallest[owners])
    return _Index(bounds, left, low, _inverse(by_member), owners[by_member], left[by_member])


def _join(sets: _Sets, threshold: float, keep: Keep) -> Iterator[tuple[int, int, float]]:
    """The pairs of sets that are at least `threshold` alike and that `keep` lets through, by places in the input."""
    index = _index(sets, threshold)
    lengths = np.diff(sets.starts)
    common = threshold / (1 + threshold) * SLACK  # J >= t is the same as |x & y| >= t / (1 + t) (|x| + |y|)
    found = np.concatenate(([0], np.cumsum(index.high - index.low)))[index.bounds]
    marks = np.zeros(sets.kinds, dtype=np.int8)
    for one in np.flatnonzero(np.diff(found)):
        entries = slice(index.bounds[one], index.bounds[one + 1])
        counts = index.high[entries] - index.low[entries]
        at = _ranges(index.low[entries], counts)
        others = index.sets[at]
        reach = np.minimum(np.repeat(index.left[entries], counts), index.sets_left[at])
        others = _distinct(others[reach >= common * (sets.sizes[one] + sets.sizes[others])])
        others = others[keep(sets.order[one], sets.order[others])]
        if not len(others):
            continue
        own = sets.members[sets.starts[one] : sets.starts[one + 1]]
        marks[own] = 1
        held = marks[sets.members[_ranges(sets.starts[others], lengths[others])]]
        marks[own] = 0
        ends = np.cumsum(lengths[others])
        shared = np.add.reduceat(held, ends - lengths[others], dtype=np.int64)  # none is empty: all share a member
        similarity = shared / (sets.sizes[one] + sets.sizes[others] - shared)
        alike = similarity >= threshold
        for other, value in zip(sets.order[others[alike]].tolist(), similarity[alike].tolist(), strict=True):
            yield int(sets.order[one]), other, value


def _distinct(numbers: Numbers) -> Numbers:
    """The distinct values, ascending; numpy 2.4's unique, which hashes, takes nine times as long on a million."""
    values = np.sort(numbers)
    return values[np.concatenate(([True], values[1:] != values[:-1]))[: len(values)]]


def _inverse(order: Numbers) -> Numbers:
    """Where each number stands in a permutation."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _ranges(starts: Numbers, counts: Numbers) -> Numbers:
    """start, start + 1, ... for each start, as many as its count, one after another."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1])
