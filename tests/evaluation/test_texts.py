"""Measures of texts by hand-made examples, and runs of words shared with known texts against a search of every run."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluation import text_measures, train_index
from tunesmith.evaluation.score import TrainingAnswers
from tunesmith.evaluation.train_index import PhraseIndex

# --- equal texts, repetition ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "loose", "strict"),
    [
        ("  Hello,\n World! ", "hello world", "hello, world!"),
        ("STRASSE straße", "strasse strasse", "strasse strasse"),
        ("Cafe\u0301", "café", "café"),
        ("well-known", "well known", "well-known"),
        ("C++ = 3", "c++ = 3", "c++ = 3"),  # signs of reckoning are no punctuation
        ("¿Qué?", "qué", "¿qué?"),
        ("?!", "?!", "?!"),
        (" \u2003", "", ""),
    ],
)
def test_plain(text: str, loose: str, strict: str) -> None:
    assert text_measures.normalize_text(text, punctuation=False) == loose
    assert text_measures.normalize_text(text, punctuation=True) == strict


@pytest.mark.parametrize(
    ("words", "n", "share"),
    [
        ("a b a b a b", 2, 2 / 5),  # ab ba ab ba ab
        ("a b c a", 1, 3 / 4),
        ("a b c", 3, 1.0),
        ("a b", 3, None),
        ("", 1, None),
    ],
)
def test_distinct(words: str, n: int, share: float | None) -> None:
    assert text_measures.distinct_ngrams(words.split(), n) == share


# --- steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        "Tap Save.",
        "Tap Save and Close.",  # a label
        'Tap "Save; then close the app. Done."',
        "Tap “Open and then close”.",
        "Tap Save (top right; then it turns green).",
        "Choose a color and size.",
        "Enter the size and type of the box.",
        "Press and hold the button.",
        "Copy and paste the code.",
        "Open a photo, e.g. of your cat.",
        "Wait approx. 5 minutes.",
        "Call Dr. Brown at No. 7.",
        "Read a story by F. Scott.",
        "Turn the dial to 2.5 bar.",
        "If the lamp stays dark, then call us.",
        "Once it rings, tap Accept.",
        "In the app, tap Cart.",
        "Then tap Save.",
        "And then, tap Save.",
        "Enter the name that you have used since then.",
        "Strengthen the knot.",
        "**Tap Save.**",
        "Wait for it... ",
        "",
    ],
)
def test_one_action(step: str) -> None:
    assert text_measures.is_single(step)


@pytest.mark.parametrize(
    "step",
    [
        "Tap Save. Close the app.",
        "Is it on? Tap Save.",
        "**Tap Save.** Close the app.",
        "Wait for it... Tap Save.",
        "Tap Save; close the app.",
        "Tap Save and then close the app.",
        "Tap Save, then Close.",
        "Tap Save and close the app.",
        "Go to your cart & tap Pay.",
        "Tap Save and also type your name.",
        "Open the app and wait.",
        "Open the app, tap Cart.",
        "Then tap Save, then Close.",
        'Tap "Save". Close the app.',
    ],
)
def test_several_actions(step: str) -> None:
    assert not text_measures.is_single(step)


def test_a_number_of_any_length_and_script_is_no_error() -> None:
    assert text_measures.step_number("12. Go") == 12
    assert text_measures.step_number("9" * 5000 + ". Go") is None  # Python refuses to read more than 4,300 digits
    assert text_measures.step_number("٣. Go") == 3


# --- whose words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "openings"),
    [
        ("Fine.\nUser: and now?", ["User:"]),
        ("Human: hi", ["Human:"]),
        ("Fine.\n\n  **USER:** more", ["USER:"]),
        ("Fine.\n### Instruction:\nSing.\n### Response:", ["### Instruction"]),
        ("Fine.\n###User", ["###User"]),
        ("Fine.<|im_end|>\n<|im_start|>user\nhi", ["<|im_start|>"]),
        ("Fine.\nQ: And tea?\nA: No.", ["Q:"]),
        ("Q: What is tea?\nA: Leaves.", []),
        ("Q: What is tea?\nA: Leaves.\nQ: Why?", ["Q:"]),
        ("Fine.\nAnna: hello", ["Anna"]),
        ("Fine.\nBob: hello", []),
        ("Ask the User: she knows.", []),
        ("user: root", []),  # a settings file
        ("Users: many", []),
        ("## Instructions", []),
        ("Human beings: they err.", []),
        ("", []),
    ],
)
def test_turns_of_the_other_speaker(text: str, openings: list[str]) -> None:
    assert text_measures.other_speaker_turns(text, {"Anna"}) == openings


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        (["Anna: hi", "Anna: well?"], {"Anna"}),
        (["Anna: hi\nBot: hello\nAnna: well?\nBot: fine\nAnna: bye\nBot:"], {"Anna"}),
        (["Topic: tea"], set()),
        (["Note 12:30 is late\nNote 12:40 too"], {"Note 12"}),
        (["1: one\n2: two"], set()),
        ([], set()),
        ([""], set()),
    ],
)
def test_askers(prompts: list[str], names: set[str]) -> None:
    assert text_measures.speaker_names(prompts) == names


# --- JSON -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2.5e3, null, true]}',
        " \n[]\t",
        '"x"',
        "3",
        "1e999",
        "-0",
        "9" * 5000,
        '"\\ud800"',
        '{"a": 1, "a": 2}',
    ],
)
def test_json(text: str) -> None:
    assert text_measures.parse_json(text, fenced=False)


@pytest.mark.parametrize(
    "text",
    [
        "\u00a0[1]",
        '"a\nb"',
        "[" * 100_000,
        "```json\n[1]\n```",
        "",
        "NaN",
        '{"a": NaN}',
        "[Infinity]",
        "[1,]",
        "{'a': 1}",
        "[1] // one",
        "Here: [1]",
        "[1][2]",
        "\ufeff[1]",
        "01",
    ],
)
def test_no_json(text: str) -> None:
    assert text_measures.parse_json(text, fenced=False) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("```json\n[1]\n```", (["1"],)),
        ("```\n{}```", ({},)),
        ("\n```JSON\r\n[]\r\n```\n", ([],)),
        ("[1]", (["1"],)),
        ("```json\n[1]\n", None),
        ("```json\n```", None),
        ("```\n``", None),
        ("Here:\n```\n[1]\n```", None),
        ("```\n[1]\n```\n```\n[2]\n```", None),
    ],
)
def test_fenced_json(text: str, value: tuple[object] | None) -> None:
    assert text_measures.parse_json(text, fenced=True) == value


# --- profiles ---------------------------------------------------------------------------------------------------


def test_profile_by_hand() -> None:
    weights = text_measures.ngram_profile(
        text_measures.word_counts(["tea teas", "TEA a"])
    )  # ' tea' 3, 'tea ' 2, 'teas' 1, 'eas ' 1, ' a ' 1
    counts = {" tea": 3, "tea ": 2, "teas": 1, "eas ": 1, " a ": 1}
    size = math.sqrt(sum(math.log(1 + count) ** 2 for count in counts.values()))
    assert weights == pytest.approx({gram: math.log(1 + count) / size for gram, count in counts.items()})


def test_cosine() -> None:
    first, second = (
        text_measures.ngram_profile(text_measures.word_counts([text])) for text in ("the green tea", "the coffee")
    )
    assert text_measures.cosine(first, first) == pytest.approx(1.0)
    assert text_measures.cosine(first, second) == pytest.approx(
        2 / math.sqrt(8 * 7)
    )  # ' the', 'the ' of 2 + 4 + 2 and 2 + 5 grams
    assert text_measures.cosine(first, text_measures.ngram_profile(text_measures.word_counts(["xyz"]))) == 0.0
    assert text_measures.cosine({}, first) == text_measures.cosine(first, {}) == 0.0


# --- runs -------------------------------------------------------------------------------------------------------


def longest_by_search(words: list[str], texts_known: list[str]) -> int:
    rows = [text.split() for text in texts_known]
    runs = {tuple(row[a:b]) for row in rows for a in range(len(row)) for b in range(a + 1, len(row) + 1)}
    spans = ((a, b) for a in range(len(words)) for b in range(a + 1, len(words) + 1))
    return max((b - a for a, b in spans if tuple(words[a:b]) in runs), default=0)


few = st.lists(st.sampled_from("abc"), max_size=12)


@given(few, st.lists(few.map(" ".join), max_size=5))
def test_runs_are_the_longest(words: list[str], texts_known: list[str]) -> None:
    assert PhraseIndex(texts_known).longest(words) == longest_by_search(words, texts_known)


def test_runs_in_long_texts() -> None:
    draws = random.Random(3)
    rows = [draws.choices("abcdefgh", k=60) for _ in range(20)] + [["a"] * 70]
    words = rows[4][10:45] + ["x"] + rows[7][:20] + ["a"] * 30
    assert PhraseIndex(map(" ".join, rows)).longest(words) == 35
    assert PhraseIndex(map(" ".join, rows)).longest(["a"] * 100) == 70


def test_a_run_does_not_cross_from_one_text_into_the_next() -> None:
    assert PhraseIndex(["one two", "three four", "one two"]).longest(["one", "two", "three", "four"]) == 2


def test_an_index_is_made_once_and_goes_with_its_answers() -> None:
    training = TrainingAnswers(("one two",))
    first = train_index.phrase_index(training)
    assert train_index.phrase_index(training) is first
    assert train_index.phrase_index(TrainingAnswers(("one two",))) is first
    another = TrainingAnswers(("one three",))
    assert train_index.phrase_index(another) is not first
    assert train_index.phrase_index(another).longest(["one", "three"]) == 2
    cells = train_index.phrase_index.__closure__ or ()
    cache = next(cell.cell_contents for cell in cells if hasattr(cell.cell_contents, "keyrefs"))
    before = len(cache)
    del another
    assert len(cache) == before - 1
