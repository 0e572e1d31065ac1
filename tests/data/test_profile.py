"""The profile tells in numbers what the rows look like."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from handmade import many, row, talk, words
from tunesmith.data.prepare import BINS, distribution, frequent_ngrams, profile

ENGLISH = "The lamp in the hall is switched on by hand."


def test_profile_counts_words_tokens_and_groups() -> None:
    rows = [
        row(1, "How do I pay?", 'Tap it\'s "Pay".', group="b"),
        row(2, "終 x", "", group="a"),
        row(3, "a b", "c", group="b"),
    ]
    found = profile(rows, words)
    assert found["rows"] == 3
    shown = {name: (s["min"], s["median"], s["max"]) for name, s in found["lengths"].items()}
    assert shown == {
        "prompt_characters": (3, 3, 13),
        "answer_characters": (0, 1, 15),
        "prompt_words": (2, 2, 4),
        "answer_words": (0, 1, 3),
        "tokens": (2, 3, 7),
    }
    assert list(found["groups"].items()) == [("a", 1), ("b", 2)]
    assert "tokens" not in profile(rows)["lengths"]
    json.dumps(found)


def test_profile_counts_copies_fields_exchanges_and_languages() -> None:
    rows = [
        row(1, "How do I pay?", ENGLISH, Name="Tern", Note=""),
        row(2, "how do i pay", ENGLISH.upper(), Name=" "),
        row(3, "Where?", "Die Lampe im Flur wird von Hand eingeschaltet und ist nicht hell.", Name="x", Note=3),
        row(4, "Who?", "Hm."),
        talk(5, "q", "a", "r", "Το φως στον διάδρομο ανάβει με το χέρι κάθε βράδυ."),
    ]
    found = profile(rows)
    assert found["distinct"] == {"prompts": 4, "answers": 4, "pairs": 4}
    assert found["fields"] == {
        "Name": {"filled": 2, "blank": 1, "missing": 2},
        "Note": {"filled": 1, "blank": 1, "missing": 3},
    }
    assert found["exchanges"] == {"1": 4, "2": 1}
    assert found["languages"] == {"en": 2, "de": 1, "too short to tell": 1, "Greek": 1}
    assert found["read"] == {"ngrams": 5, "languages": 5}


def test_spread_is_numpys() -> None:
    numbers = [int(random.Random(n).expovariate(0.01)) for n in range(500)]
    found = distribution(numbers)
    low, middle, high = np.quantile(numbers, [0.05, 0.5, 0.95])
    assert (found["min"], found["max"]) == (min(numbers), max(numbers))
    assert (found["p5"], found["median"], found["p95"]) == pytest.approx((low, middle, high), abs=0.05)
    assert found["mean"] == pytest.approx(sum(numbers) / 500, abs=0.05)
    assert (sum(found["counts"]), len(found["edges"]), len(found["counts"])) == (500, BINS + 1, BINS)
    assert distribution([]) == {}
    assert distribution([7, 7])["counts"] == [2]
    assert len(distribution([1, 2, 4])["counts"]) == 3


def test_profile_reads_rows_once_and_none_are_none() -> None:
    found = profile(iter_once := many(2, 3))
    assert (found["rows"], found["groups"]) == (len(iter_once), {"g0": 3, "g1": 3})
    empty = profile([])
    assert (empty["rows"], empty["lengths"], empty["groups"], empty["prompt_ngrams"]) == (0, {}, {}, [])


def test_half_a_surrogate_pair_is_counted() -> None:
    assert profile([replace(row(1, "half \ud83d", "x"), group="g")])["lengths"]["prompt_characters"]["max"] == 6


def test_frequent_counts_a_text_once() -> None:
    texts = ["Tap the Save button, tap the save button", "TAP the save", "tap THE", "other words here"]
    assert frequent_ngrams(texts, 3, 10) == [("tap the save", 2)]
    assert frequent_ngrams(texts, 2, 10) == [("tap the", 3), ("the save", 2)]
    assert frequent_ngrams(texts, 2, 1) == [("tap the", 3)]
    assert frequent_ngrams([], 3, 10) == []
    assert frequent_ngrams(["1. Open it\n2. Tap it now", "3) open it", "it tap it"], 2, 10) == [
        ("open it", 2),
        ("tap it", 2),
    ]
