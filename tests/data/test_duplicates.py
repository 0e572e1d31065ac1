"""The search for near duplicates against every pair counted in full, and what counts as alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import duplicates
from tunesmith.data.conversation import normalize
from tunesmith.data.duplicates import MIN_WORDS, Pair, clusters, leaks, near_pairs

VOCABULARY = ["tin", "can", "lid", "jar", "cap", "pot", "pan", "cup", "mug", "urn", "vat", "keg"]
THRESHOLDS = (0.05, 0.1, 0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0)


def similarity(one: str, other: str, threshold: float) -> float:
    """By the definition, with Python's sets; both texts are normalised."""
    fewer, more = sorted((one.split(" "), other.split(" ")), key=len)
    if len(fewer) < MIN_WORDS:
        if len(more) * threshold >= MIN_WORDS:
            return 0.0
        ones, others = ({f"  {text}  "[at : at + 4] for at in range(len(text) + 1)} for text in (one, other))
        return len(ones & others) / len(ones | others)
    runs, other_runs = ({tuple(words[at : at + 3]) for at in range(len(words) - 2)} for words in (fewer, more))
    return len(runs & other_runs) / len(runs | other_runs)


def all_pairs(texts: Sequence[str], threshold: float) -> list[Pair]:
    plain = [normalize(text) for text in texts]
    pairs = []
    for one, other in combinations(range(len(texts)), 2):
        if not plain[one] or not plain[other]:
            continue
        if plain[one] == plain[other]:
            if plain.index(plain[one]) == one:
                pairs.append(Pair(one, other, 1.0))
        elif plain.index(plain[one]) == one and plain.index(plain[other]) == other:
            value = similarity(plain[one], plain[other], threshold)
            if value >= threshold:
                pairs.append(Pair(one, other, value))
    return pairs


@st.composite
def edited(draw: st.DrawFn) -> str:
    """A text around the border of short and long, made from one of three by replacing up to three words."""
    draws = random.Random(draw(st.integers(0, 2)))
    words = draws.choices(VOCABULARY, k=draw(st.sampled_from((5, 27, 28, 29, 30, 36, 37, 60))))
    for place, word in draw(st.lists(st.tuples(st.integers(0, 59), st.sampled_from(VOCABULARY)), max_size=3)):
        words[place % len(words)] = word
    return " ".join(words)


short = st.lists(st.sampled_from(VOCABULARY[:5]), max_size=6).map(" ".join)
some_texts = st.lists(st.one_of(short, edited(), st.text(max_size=6)), max_size=14)


# --- all pairs -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(texts=some_texts, threshold=st.sampled_from(THRESHOLDS))
def test_pairs_are_exactly_those_of_all_comparisons(texts: list[str], threshold: float) -> None:
    assert near_pairs(texts, threshold=threshold) == all_pairs(texts, threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_a_few_hundred_texts_with_edits(threshold: float) -> None:
    draw = random.Random(7)
    texts = [" ".join(draw.choices(VOCABULARY, k=draw.randint(1, 70))) for _ in range(120)]
    for text in list(texts):
        words = text.split()
        for _ in range(draw.randint(0, 4)):
            words[draw.randrange(len(words))] = draw.choice(VOCABULARY)
        texts.append(" ".join(words))
    expected = all_pairs(texts, threshold)
    assert len(expected) > 50
    assert {pair.similarity < 1 for pair in expected} == {True, False}
    assert near_pairs(texts, threshold=threshold) == expected


@settings(deadline=None)
@given(texts=some_texts, data=st.data())
def test_the_order_of_the_texts_does_not_matter(texts: list[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = near_pairs([texts[place] for place in order], threshold=0.6)

    def named(pairs: list[Pair], names: Sequence[str]) -> list[tuple[list[str], float]]:
        return sorted((sorted(normalize(names[place]) for place in (p.first, p.second)), p.similarity) for p in pairs)

    assert named(shuffled, [texts[place] for place in order]) == named(near_pairs(texts, threshold=0.6), texts)


def test_the_same_call_gives_the_same_list() -> None:
    texts = ["Fill the kettle and wait.", "Fill the kettle, and wait", "fill the kettles and wait", "Go home."] * 3
    pairs = near_pairs(texts, threshold=0.7)
    assert pairs == near_pairs(texts, threshold=0.7)
    assert pairs == sorted(pairs, key=lambda pair: (pair.first, pair.second))
    assert all(pair.first < pair.second for pair in pairs)


# --- what counts as alike ------------------------------------------------------------------------------------


def numbered(count: int, **changed: str) -> str:
    """w0 w1 w2 ..., some of them replaced."""
    return " ".join(changed.get(f"w{number}", f"w{number}") for number in range(count))


@pytest.mark.parametrize(
    ("ones", "others", "value"),
    [
        ("abcdefgh", "abcdefgx", 6 / 12),  # two spaces on each side: 9 shingles each, the last 3 differ
        (numbered(29), numbered(29, w14="other"), 24 / 30),  # 27 shingles of words each, 3 differ
        (numbered(29), numbered(29, w0="other"), 26 / 28),
        (numbered(41), numbered(30), 28 / 39),
        (numbered(37), numbered(31), 29 / 35),  # 29 / 35 * 35 is above 29 in floating point
        (numbered(37), numbered(29), 27 / 35),  # and 27 / 35 / (1 + 27 / 35) * (27 + 35) above 27
    ],
)
def test_the_border_is_in(ones: str, others: str, value: float) -> None:
    assert near_pairs([ones, others], threshold=value) == [Pair(0, 1, value)]
    assert near_pairs([ones, others], threshold=float(np.nextafter(value, 0))) == [Pair(0, 1, value)]
    assert near_pairs([ones, others], threshold=float(np.nextafter(value, 1))) == []
    assert leaks([ones], [others], threshold=value) == [Pair(0, 0, value)]
    assert leaks([ones], [others], threshold=float(np.nextafter(value, 1))) == []


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0000001, float("nan")])
def test_an_impossible_threshold_is_refused(threshold: float) -> None:
    for texts in ([], ["a text", "a text"]):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            near_pairs(texts, threshold=threshold)
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            leaks(texts, texts, threshold=threshold)


def test_one_changed_word_is_found_on_both_sides_of_the_border() -> None:
    for count in (MIN_WORDS - 1, MIN_WORDS, MIN_WORDS + 1):
        assert len(near_pairs([numbered(count), numbered(count, w14="other")])) == 1
    assert near_pairs([numbered(MIN_WORDS - 1), numbered(MIN_WORDS)])[0].similarity > 0.9


def test_a_short_text_is_not_like_one_of_many_more_words() -> None:
    """The same shingles of characters, but 28 words against 37 or 58: 36 x 0.8 and 57 x 0.5 are below 29, these not."""
    assert near_pairs(["ha " * 28, "ha " * 36], threshold=0.8) == [Pair(0, 1, 1.0)]
    assert near_pairs(["ha " * 28, "ha " * 37], threshold=0.8) == []
    assert near_pairs(["ha " * 28, "ha " * 57], threshold=0.5) == [Pair(0, 1, 1.0)]
    assert near_pairs(["ha " * 28, "ha " * 58], threshold=0.5) == []
    assert near_pairs(["ha " * 29, "ha " * 37], threshold=0.8) == [Pair(0, 1, 1.0)]


def test_empty_texts_are_like_nothing() -> None:
    assert near_pairs(["", "", " \n", "\u2003", "a"], threshold=0.01) == []
    assert leaks(["", " "], ["", "\t"], threshold=0.01) == []
    assert near_pairs([]) == leaks([], []) == leaks(["a"], []) == leaks([], ["a"]) == []


def test_a_single_character_is_a_text() -> None:
    assert near_pairs(["A", "b", "a!", "?", "!", "+", "?"], threshold=0.8) == [Pair(0, 2, 1.0), Pair(3, 6, 1.0)]
    assert near_pairs(["What is C?", "What is C++?"]) == []


def test_scripts_without_spaces_and_folded_letters() -> None:
    texts = ["忘记密码后应该怎样重新登录我的账户", "如何取消订单", "忘记密码后应该怎样重新登录我的帐户"]
    assert near_pairs(texts, threshold=0.6) == [Pair(0, 2, 14 / 22)]
    assert near_pairs(["Der Fußgänger", "Der Fussga\u0308nger", "DER FUSSGÄNGER"]) == [Pair(0, 1, 1.0), Pair(0, 2, 1.0)]
    assert len(near_pairs(["🙂🙃😉😊 hello", "🙂🙃😉😋 hello"], threshold=0.4)) == 1
    assert len(near_pairs(["a half \ud800 character", "a half \ud800 characters"], threshold=0.7)) == 1


def test_copies_are_paired_with_the_first_of_them_which_stands_for_all() -> None:
    texts = ["Reset my password now", "reset my password, now!", "Reset my passwords now", "RESET MY PASSWORD NOW"]
    pairs = near_pairs(texts, threshold=0.7)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (0, 3)]
    assert [pair.similarity == 1 for pair in pairs] == [True, False, True]
    assert len(near_pairs(["Yes."] * 3_000)) == 2_999


def test_runs_are_numbered_anew_before_they_overflow() -> None:
    """Tokens of 32 bits: in a run of three the first would be shifted out of a number of 64 bits."""
    tokens = np.array([1, 7, 9, 2, 7, 9, 2**32 - 1, 1, 7, 9], dtype=np.int64)
    owners, numbers = duplicates._shingles(tokens, [7, 3], 3)
    assert owners.tolist() == [0, 0, 0, 0, 0, 1]
    runs = [tuple(tokens[at : at + 3].tolist()) for at in (0, 1, 2, 3, 4, 7)]
    assert [a == b for a, b in product(numbers.tolist(), repeat=2)] == [a == b for a, b in product(runs, repeat=2)]


# --- between two sets ----------------------------------------------------------------------------------------


def test_leaks_of_hand_made_texts() -> None:
    train = ["\nHow do I return a lamp?", "Where is my parcel?", "how do I return a lamp", "Can I pay by card?"]
    held = ["Who are you?", "How do I return a lamp?", "How do I return the lamp?", "How do I return a lamp?"]
    near = similarity("how do i return a lamp", "how do i return the lamp", 0.6)
    assert 0.6 < near < 0.8
    same = [Pair(0, 1, 1.0), Pair(0, 3, 1.0), Pair(2, 1, 1.0)]
    assert leaks(train, held, threshold=0.8) == same
    assert leaks(train, held, threshold=0.6) == sorted(
        [*same, Pair(0, 2, near), Pair(2, 2, near)], key=lambda pair: (pair.first, pair.second)
    )


@settings(deadline=None)
@given(train=some_texts, held=some_texts, threshold=st.sampled_from(THRESHOLDS))
def test_leaks_are_exactly_those_of_all_comparisons(train: list[str], held: list[str], threshold: float) -> None:
    plain, plain_held = [normalize(text) for text in train], [normalize(text) for text in held]
    expected = []
    for (at, one), (held_at, other) in product(enumerate(plain), enumerate(plain_held)):
        first_of_a_side = plain.index(one) == at or plain_held.index(other) == held_at
        if one and other and first_of_a_side:
            value = 1.0 if one == other else similarity(one, other, threshold)
            if value >= threshold:
                expected.append(Pair(at, held_at, value))
    assert leaks(train, held, threshold=threshold) == expected


# --- clusters ------------------------------------------------------------------------------------------------


def test_clusters_of_hand_made_pairs() -> None:
    pairs = [Pair(5, 6, 0.9), Pair(1, 4, 0.9), Pair(6, 8, 0.9), Pair(0, 4, 0.8), Pair(5, 8, 1.0)]
    assert clusters(9, pairs) == [[0, 1, 4], [5, 6, 8]]
    assert clusters(9, []) == clusters(0, []) == []


@given(data=st.data(), count=st.integers(1, 12))
def test_clusters_are_the_connected_parts(data: st.DataObject, count: int) -> None:
    places = st.integers(0, count - 1)
    edges = data.draw(st.lists(st.tuples(places, places).filter(lambda edge: edge[0] != edge[1]), max_size=15))
    pairs = [Pair(min(edge), max(edge), 1.0) for edge in edges]
    reach = np.eye(count, dtype=np.int64)
    for pair in pairs:
        reach[pair.first, pair.second] = reach[pair.second, pair.first] = 1
    connected = np.linalg.matrix_power(reach, count) > 0
    parts = sorted({tuple(np.flatnonzero(row).tolist()) for row in connected})
    assert clusters(count, pairs) == [list(part) for part in parts if len(part) > 1]
    assert clusters(count, data.draw(st.permutations(pairs))) == clusters(count, pairs)
