"""Finds near-duplicates exactly: every pair of texts at or above a Jaccard similarity.

A text is the set of its shingles (n-grams of words or characters; Broder 1997). Two sets with a Jaccard similarity of
at least t share one of the |x| - ceil(t |x|) + 1 rarest members of x, so only those are looked up, among sets of at
least t times the size (prefix and length filter: Chaudhuri et al. 2006, Bayardo et al. 2007) whose remaining members
could still suffice (positional filter: Xiao et al. 2008, PPJoin). The remaining pairs are counted in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import normalize

WORDS = 3  # length of a shingle in long texts
CHARACTERS = 4  # length of a shingle in short texts
# One changed word removes 3 of a text's w - 2 shingles of words: from 29 words on, (w - 5) / (w + 1) >= 0.8.
# Measured on 2,957 real prompts with one random word changed in each: at 0.8, shingles of 3 words and of 4 characters
# find 8 % and 45 % of those with 8 to 15 words, 15 % and 95 % up to 28 words, and 99 % and 100 % above, where words
# take a fourteenth of the time (31,482 generated rows).
MIN_WORDS = 29  # words
SLACK = 1 - 1e-12  # lowers a bound by more than its rounding error; the exact count decides

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Keep = Callable[[int, Numbers], Flags]  # (text, other texts) -> which of the others it may be paired with


@dataclass(frozen=True, slots=True)
class Pair:
    """The indices of two texts, from 0, and the Jaccard similarity of their shingles, above 0 and at most 1."""

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class _Sets:
    """Sets of numbers, small sets first, rarest members first; members that only one set has are left out."""

    order: Numbers  # [sets] index of each set in the input
    sizes: Numbers  # [sets] ascending; members left out are counted
    starts: Numbers  # [sets + 1] where the members of each set begin
    members: npt.NDArray[np.int32]  # [starts[-1]] 0 is the rarest
    kinds: int  # number of distinct members


@dataclass(frozen=True)
class _Index:
    """The prefixes of sets as entries, and the earlier sets with the same member in their prefix."""

    bounds: Numbers  # [sets + 1] where the entries of each set begin
    left: Numbers  # [entries] members of the entry's set from here on
    low: Numbers  # [entries] where the earlier sets with this member begin in `sets`
    high: Numbers  # [entries] where they end
    sets: Numbers  # [entries] sorted by member, then by set
    sets_left: Numbers  # [entries] `left` in the same order


def near_pairs(texts: Sequence[str], *, threshold: float = 0.8) -> list[Pair]:
    """All pairs of texts with similarity `threshold` or more, first < second, in ascending order.

    Shingles are 3 words, or 4 characters if a text has fewer than 29 words (and the other fewer than 29 / `threshold`:
    otherwise they cannot be similar). Texts that `normalize` makes equal are copies: each is paired only with the first
    of them, which represents them in other pairs, so n copies give n - 1 pairs, not n (n - 1) / 2, and the same
    clusters. Empty texts have no pairs. Time and memory grow with the pairs: 3,000 texts from one form, each with its
    own number, are 4.5 million pairs, 27 s and 0.9 GiB. Raises ValueError unless 0 < threshold <= 1.
    """
    indices = _indices_by_text(texts)
    groups = list(indices.values())
    pairs = [Pair(group[0], copy, 1.0) for group in groups for copy in group[1:]]
    for first_group, second_group, similarity in _similar_texts(list(indices), threshold, _keep_all):
        first, second = sorted((groups[first_group][0], groups[second_group][0]))
        pairs.append(Pair(first, second, similarity))
    return sorted(pairs, key=_by_index)


def leaks(train: Sequence[str], held_out: Sequence[str], *, threshold: float = 0.8) -> list[Pair]:
    """Pairs of a training text (`first`) and a held-out text (`second`) with similarity `threshold` or more.

    Compared as in `near_pairs`. Every text with a partner is in a pair: the first of several copies is paired with all
    copies of the partner, the others with the partner's first. Raises ValueError unless 0 < threshold <= 1.
    """
    train_indices, held_out_indices = _indices_by_text(train), _indices_by_text(held_out)
    texts = list(train_indices | held_out_indices)
    in_train = np.array([text in train_indices for text in texts], dtype=np.bool_)
    in_held_out = np.array([text in held_out_indices for text in texts], dtype=np.bool_)

    def crosses(index: int, others: Numbers) -> Flags:
        allowed: Flags = (in_train[index] & in_held_out[others]) | (in_held_out[index] & in_train[others])
        return allowed

    similar_texts = [(text, text, 1.0) for text in texts]
    for index_one, index_two, similarity in _similar_texts(texts, threshold, crosses):
        similar_texts += [
            (texts[index_one], texts[index_two], similarity),
            (texts[index_two], texts[index_one], similarity),
        ]
    pairs = []
    for train_text, held_out_text, similarity in similar_texts:
        firsts, seconds = train_indices.get(train_text, []), held_out_indices.get(held_out_text, [])
        if firsts and seconds:
            pairs += [Pair(firsts[0], second, similarity) for second in seconds]
            pairs += [Pair(first, seconds[0], similarity) for first in firsts[1:]]
    return sorted(pairs, key=_by_index)


def clusters(count: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """The groups of two or more of `count` texts that pairs connect, members and groups in ascending order.

    Similarity is not transitive: two texts of a cluster may be less similar than any of its pairs.
    """
    parents = list(range(count))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]  # path halving (Tarjan and van Leeuwen 1984)
            index = parents[index]
        return index

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parents[high] = low
    groups: dict[int, list[int]] = {}
    for index in range(count):
        groups.setdefault(root(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _indices_by_text(texts: Sequence[str]) -> dict[str, list[int]]:
    """The indices of each distinct normalized text, without the empty text."""
    indices: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        if normalized := normalize(text):
            indices.setdefault(normalized, []).append(index)
    return indices


def _by_index(pair: Pair) -> tuple[int, int]:
    return pair.first, pair.second


def _keep_all(index: int, others: Numbers) -> Flags:
    return np.ones_like(others, dtype=np.bool_)


def _similar_texts(texts: Sequence[str], threshold: float, keep: Keep) -> Iterator[tuple[int, int, float]]:
    """The pairs of distinct normalized texts with similarity `threshold` or more that `keep` allows."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but must be above 0 and at most 1")
    words = np.array([text.count(" ") + 1 for text in texts], dtype=np.int64)

    def one_is_short(index: int, others: Numbers) -> Flags:
        allowed: Flags = keep(index, others) & (np.minimum(words[index], words[others]) < MIN_WORDS)
        return allowed

    passes = (
        (words >= MIN_WORDS, _word_shingles, keep),
        (words * threshold < MIN_WORDS, _character_shingles, one_is_short),
    )
    for selected, shingles, allowed in passes:
        rows = np.flatnonzero(selected)
        if len(rows) > 1:
            owners, numbers = shingles([texts[row] for row in rows.tolist()])
            yield from _join(_sets(owners, numbers, rows), threshold, allowed)


def _word_shingles(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """The shingles of words, as `_shingles` returns them; each text has at least WORDS words."""
    vocabulary: dict[str, int] = {}
    split = (text.split(" ") for text in texts)
    numbers = np.fromiter((vocabulary.setdefault(w, len(vocabulary)) for words in split for w in words), dtype=np.int64)
    return _shingles(numbers, [text.count(" ") + 1 for text in texts], WORDS)


def _character_shingles(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """The shingles of characters, as `_shingles` returns them; padded, so that a single character has one too."""
    space = " " * (CHARACTERS // 2)
    spaced = [f"{space}{text}{space}" for text in texts]
    code = "".join(spaced).encode("utf-32-le", "surrogatepass")  # a broken file may contain lone surrogates
    return _shingles(np.frombuffer(code, dtype="<u4").astype(np.int64), [len(text) for text in spaced], CHARACTERS)


def _shingles(tokens: Numbers, lengths: Sequence[int], size: int) -> tuple[Numbers, Numbers]:
    """Every n-gram of `size` tokens within a text: the text's index, and a number that only equal n-grams share.

    `tokens` are the tokens of all texts, concatenated, from 0; `lengths` is the number of tokens of each text.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    radix = int(tokens.max()) + 1
    numbers, top = tokens, radix
    for offset in range(1, size):
        if top * radix >= 2**63:  # renumber, so that the next product fits: no hash, no collision
            values = _unique(numbers)
            numbers, top = np.searchsorted(values, numbers), len(values)
        numbers, top = numbers[:-1] * radix + tokens[offset:], top * radix
    within_text = owners[: len(numbers)] == owners[size - 1 :]
    return owners[: len(numbers)][within_text], numbers[within_text]


def _sets(owners: Numbers, numbers: Numbers, rows: Numbers) -> _Sets:
    """The shingles as sets; `rows` are the input indices of the owners 0, 1, ..."""
    values = _unique(numbers)
    kinds, count = len(values), len(rows)
    owners, kind = np.divmod(_unique(owners * kinds + np.searchsorted(values, numbers)), kinds)
    holders = np.bincount(kind, minlength=kinds)
    rank = _inverse(np.argsort(holders, kind="stable"))
    sizes = np.bincount(owners, minlength=count)
    order = np.argsort(sizes, kind="stable")
    shared = holders[kind] > 1
    keys = np.sort(_inverse(order)[owners[shared]] * kinds + rank[kind[shared]])
    starts = np.searchsorted(keys, np.arange(count + 1) * kinds)
    return _Sets(rows[order], sizes[order], starts, (keys % kinds).astype(np.int32), kinds)


def _index(sets: _Sets, threshold: float) -> _Index:
    """The entries of the sets' prefixes, with the range of their partners."""
    count = len(sets.sizes)
    lengths = np.diff(sets.starts)
    needed = np.ceil(threshold * sets.sizes * SLACK).astype(np.int64)  # common members; minimum partner size
    prefixes = np.maximum(lengths - needed + 1, 0)  # |x| - needed + 1 minus those left out, which are the rarest
    bounds = np.concatenate(([0], np.cumsum(prefixes)))
    owners = np.repeat(np.arange(count), prefixes)
    offsets = np.arange(len(owners)) - bounds[owners]
    remaining = lengths[owners] - offsets
    keys = sets.members[sets.starts[owners] + offsets] * np.int64(count)
    by_member = np.argsort(keys + owners)
    smallest = np.searchsorted(sets.sizes, needed)
    low = np.searchsorted((keys + owners)[by_member], keys + smallest[owners])
    return _Index(bounds, remaining, low, _inverse(by_member), owners[by_member], remaining[by_member])


def _join(sets: _Sets, threshold: float, keep: Keep) -> Iterator[tuple[int, int, float]]:
    """The pairs of sets with similarity `threshold` or more that `keep` allows, by input index."""
    index = _index(sets, threshold)
    lengths = np.diff(sets.starts)
    common = threshold / (1 + threshold) * SLACK  # J >= t if and only if |x & y| >= t / (1 + t) (|x| + |y|)
    candidate_counts = np.concatenate(([0], np.cumsum(index.high - index.low)))[index.bounds]
    in_first = np.zeros(sets.kinds, dtype=np.int8)
    for index_one in np.flatnonzero(np.diff(candidate_counts)):
        entries = slice(index.bounds[index_one], index.bounds[index_one + 1])
        counts = index.high[entries] - index.low[entries]
        positions = _ranges(index.low[entries], counts)
        others = index.sets[positions]
        remaining = np.minimum(np.repeat(index.left[entries], counts), index.sets_left[positions])
        others = _unique(others[remaining >= common * (sets.sizes[index_one] + sets.sizes[others])])
        others = others[keep(sets.order[index_one], sets.order[others])]
        if not len(others):
            continue
        own_members = sets.members[sets.starts[index_one] : sets.starts[index_one + 1]]
        in_first[own_members] = 1
        is_shared = in_first[sets.members[_ranges(sets.starts[others], lengths[others])]]
        in_first[own_members] = 0
        ends = np.cumsum(lengths[others])
        shared = np.add.reduceat(is_shared, ends - lengths[others], dtype=np.int64)  # none is empty: all share a member
        similarity = shared / (sets.sizes[index_one] + sets.sizes[others] - shared)
        is_similar = similarity >= threshold
        for partner, value in zip(
            sets.order[others[is_similar]].tolist(), similarity[is_similar].tolist(), strict=True
        ):
            yield int(sets.order[index_one]), partner, value


def _unique(numbers: Numbers) -> Numbers:
    """The distinct values, ascending; numpy 2.4's unique, which hashes, takes nine times as long for a million."""
    values = np.sort(numbers)
    return values[np.concatenate(([True], values[1:] != values[:-1]))[: len(values)]]


def _inverse(order: Numbers) -> Numbers:
    """The inverse of a permutation."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def _ranges(starts: Numbers, counts: Numbers) -> Numbers:
    """Concatenates start, start + 1, ... with `counts` numbers for each start."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1])
