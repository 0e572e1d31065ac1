"""What each score says of a reply."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from tunesmith.config.registry import entries, resolve
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import RecipeError
from tunesmith.evaluation import metrics
from tunesmith.evaluation.score import Score, TrainingAnswers, View
from tunesmith.generation.text_model import Reply


def view(
    text: str,
    *,
    answer: str = "1. Go.\n2. Stay.",
    question: str = "how?",
    stopped: bool = True,
    cut: str = "",
    loss: float | None = None,
    training: tuple[str, ...] = (),
    **fields: Any,
) -> View:
    row = Conversation("r", (Turn("user", question), Turn("assistant", answer)), Origin("f", 1), "g", fields)
    return View(row, Reply(text, stopped, 7, cut), loss, TrainingAnswers(training))


def about(value: float) -> Any:
    """Returns pytest's approximate value, which stands for a number in an expected Score."""
    return pytest.approx(value)


def values(scores: list[Score]) -> dict[str, float]:
    return {score.name: score.value for score in scores}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1. Open.\n2. Tap.", 1),
        ("1. Open.\n2. Tap.\n3. Wait.", 1),
        ("\n1. Open.\n\n\n2. Tap.\n", 1),
        ("  1. Open.\n\t2.   Tap.  ", 1),
        ("1. Open.\r\n2. Tap.", 1),
        ("\n".join(f"{n}. Go" for n in range(1, 13)), 1),
        ("1. 5 eggs\n2. 2. more", 1),
        ("0. Open.\n1. Tap.", 0),
        ("2. Open.\n3. Tap.", 0),
        ("1. Open.\n3. Tap.", 0),
        ("1. Open.\n1. Tap.", 0),
        ("2. Tap.\n1. Open.", 0),
        ("Do this:\n1. Open.\n2. Tap.", 0),
        ("1. Open.\n2. Tap.\nThat is all.", 0),
        ("1. Open.\nthe app\n2. Tap.", 0),
        ("1. Open. 2. Tap.", 0),
        ("1. Open.", 0),
        ("1) Open.\n2) Tap.", 0),
        ("1.Open.\n2.Tap.", 0),
        ("1. Open.\n2.", 0),
        ("- 1. Open.\n- 2. Tap.", 0),
        ("**1. Open.**\n**2. Tap.**", 0),
        ("Open.\nTap.", 0),
        ("", 0),
        (" \n ", 0),
    ],
)
def test_numbered_steps(text: str, value: float) -> None:
    assert metrics.numbered_steps(view(text)) == [Score("numbered_steps", value, "higher")]


def test_a_probe_that_asks_for_no_list_is_not_scored_for_one() -> None:
    assert metrics.numbered_steps(view("1. Open.\n2. Tap.", expect="no_steps")) == []
    assert metrics.numbered_steps(view("1. Open.\n2. Tap.", expect="steps"))[0].value == 1.0


@pytest.mark.parametrize(("least", "value"), [(1, 1.0), (2, 0.0)])
def test_the_fewest_steps_can_be_set(least: int, value: float) -> None:
    assert metrics.numbered_steps(view("1. Open."), least=least)[0].value == value
    assert metrics.numbered_steps(view(""), least=least)[0].value == 0.0


@pytest.mark.parametrize(
    ("expect", "text", "value"),
    [
        ("steps", "1. Open.\n2. Tap.", 1.0),
        ("steps", "Well:\n1. Open.\n2. Tap.", 0.0),
        ("steps", "I cannot help.", 0.0),
        ("no_steps", "I cannot help.", 1.0),
        ("no_steps", "Well:\n  1. Open.", 0.0),
        ("no_steps", "It costs 2. more", 1.0),
        ("no_steps", "", 1.0),
    ],
)
def test_expected(expect: str, text: str, value: float) -> None:
    assert metrics.expected(view(text, expect=expect)) == [Score("expected", value, "higher")]


@pytest.mark.parametrize("fields", [{}, {"expect": "poetry"}])
def test_rows_that_expect_nothing_known_are_not_scored(fields: dict[str, Any]) -> None:
    assert metrics.expected(view("1. Open.", **fields)) == []


@pytest.mark.parametrize(("stopped", "value"), [(True, 1.0), (False, 0.0)])
def test_stops(stopped: bool, value: float) -> None:
    assert metrics.stops(view("x", stopped=stopped)) == [Score("stops", value, "higher")]


@pytest.mark.parametrize(("text", "words"), [("", 0), ("one", 1), ("  1. two\n\nthree  ", 3)])
def test_length_counts_words(text: str, words: float) -> None:
    assert metrics.length(view(text)) == [Score("length", words, "neither")]


def test_loss_is_passed_on_or_left_out() -> None:
    assert metrics.loss(view("x", loss=0.0)) == [Score("loss", 0.0, "lower")]
    assert metrics.loss(view("x", loss=1.25)) == [Score("loss", 1.25, "lower")]
    assert metrics.loss(view("x")) == []


@pytest.mark.parametrize("stemmer", [True, False])
@pytest.mark.parametrize("text", ["1. Go.\n2. Stay.", "2. Staying.\n1. Going home.", "nothing alike", ""])
def test_rouge_is_the_librarys(stemmer: bool, text: str) -> None:
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    expected = rouge_scorer.RougeScorer(names, use_stemmer=stemmer).score("1. Go.\n2. Stay.", text)
    scores = metrics.rouge(view(text), stemmer=stemmer)
    assert scores == [Score(name, expected[name].fmeasure, "higher") for name in names]


def test_rouge_by_hand() -> None:
    scores = values(metrics.rouge(view("the cat", answer="the dog sat")))
    assert scores["rouge1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert scores["rouge2"] == 0.0
    assert metrics.rouge(view("the dogs sat", answer="the dog sat"))[0].value == 1.0  # stemmed


def test_a_probe_without_an_answer_has_no_rouge() -> None:
    assert metrics.rouge(view("anything", answer="")) == []


PIECES = [
    *[
        "running",
        "runs",
        "ran",
        "studies",
        "study",
        "nationally",
        "tea",
        "U.S.",
        "don't",
        "well-known",
        "café",
        "naïve",
    ],
    *["3", "3.50", "1,000", "2024-05-01", "10%", "A", "the", "of", "...", "—", "(yes)", '"no"', "#1", "日本", "tea's"],
    *["\n", "\n\n", " \t", "\r\n", "1. ", "- "],
]


def written(draws: random.Random) -> str:
    return " ".join(draws.choices(PIECES, k=draws.choice((0, 1, 2, 5, 12, 30))))


def pair(draws: random.Random) -> tuple[str, str]:
    """Two texts, the second often the first with some words changed."""
    one = written(draws)
    if draws.random() < 0.4:
        return one, written(draws)
    return one, " ".join(word if draws.random() < 0.8 else draws.choice(PIECES) for word in one.split(" "))


def test_rouge_of_a_thousand_pairs_is_the_librarys() -> None:
    draws = random.Random(11)
    pairs = [pair(draws) for _ in range(1000)]
    assert sum(not answer for answer, _ in pairs) > 20 and sum(not reply for _, reply in pairs) > 20
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    shares = []
    for answer, reply in pairs:
        scores = values(metrics.rouge(view(reply, answer=answer)))
        if not answer:
            assert scores == {}
            continue
        expected = {name: value.fmeasure for name, value in scorer.score(answer, reply).items()}
        assert scores == pytest.approx(expected, abs=1e-12)
        shares.append(tuple(scores.values()))
    assert len({share for row_scores in shares for share in row_scores}) > 200  # not all 0 and 1
    assert sum(row_scores[2] != row_scores[3] for row_scores in shares) > 50  # lines count in Lsum


def test_rouge_1_and_2_by_their_definition() -> None:
    draws = random.Random(12)
    for _ in range(200):
        first, second = (draws.choices("abcd", k=draws.randrange(1, 9)) for _ in range(2))
        scores = values(metrics.rouge(view(" ".join(second), answer=" ".join(first))))
        for n, name in ((1, "rouge1"), (2, "rouge2")):
            grams = [[tuple(row[at : at + n]) for at in range(len(row) - n + 1)] for row in (first, second)]
            both = sum(min(grams[0].count(gram), grams[1].count(gram)) for gram in set(grams[0]))
            f = 2 * both / (len(grams[0]) + len(grams[1])) if both else 0.0
            assert scores[name] == pytest.approx(f, abs=1e-12)


def test_perplexity_is_the_loss_to_be_folded() -> None:
    assert metrics.perplexity(view("x", loss=1.25)) == [Score("perplexity", 1.25, "lower", "exp")]
    assert metrics.perplexity(view("x")) == []


@pytest.mark.parametrize(
    ("text", "answer", "loose", "strict"),
    [
        ("Yes.", "yes", 1, 0),
        ("  YES \n", "yes", 1, 1),
        ("no", "yes", 0, 0),
        ("", "yes", 0, 0),
        ("re-do it", "redo it", 0, 0),  # a sign left out parts words
        ("C++", "C", 0, 0),
        ("!", "?", 0, 0),
        ("Cafe\u0301", "CAFÉ", 1, 1),
    ],
)
def test_exact_match(text: str, answer: str, loose: float, strict: float) -> None:
    assert metrics.exact_match(view(text, answer=answer)) == [Score("exact_match", loose, "higher")]
    assert metrics.exact_match(view(text, answer=answer), punctuation=True) == [Score("exact_match", strict, "higher")]


def test_exact_match_needs_an_answer() -> None:
    assert metrics.exact_match(view("", answer=" ")) == []


@pytest.mark.parametrize(
    ("text", "from_one", "no_gap", "no_preamble", "no_tail", "single"),
    [
        ("1. Open.\n2. Tap.", 1, 1, 1, 1, 1),
        ("2. Open.\n3. Tap.", 0, 1, 1, 1, 1),
        ("1. Open.\n3. Tap.", 1, 0, 1, 1, 1),
        ("1. Open.\n1. Tap.", 1, 0, 1, 1, 1),
        ("Do this:\n1. Open.\n2. Tap.", 1, 1, 0, 1, 1),
        ("1. Open.\n2. Tap.\nGood luck!", 1, 1, 1, 0, 1),
        ("1. Open.\nthe app\n2. Tap.", 1, 1, 1, 0, 1),
        ("1. Open it. Tap it.\n2. Tap it.", 1, 1, 1, 1, 0.5),
        ("1. Open.", 1, 1, 1, 1, 1),
        ("Open.\nTap.", 0, 0, 0, 0, 0),
        ("", 0, 0, 0, 0, 0),
    ],
)
def test_steps(text: str, from_one: float, no_gap: float, no_preamble: float, no_tail: float, single: float) -> None:
    expected = zip(metrics.STEPS, (from_one, no_gap, no_preamble, no_tail, single), strict=True)
    assert metrics.steps(view(text)) == [Score(name, value, "higher") for name, value in expected]


def test_steps_are_not_scored_where_none_are_wanted() -> None:
    assert metrics.steps(view("1. Open.", expect="no_steps")) == []


listed = st.lists(st.sampled_from(["1. Go", "2. Go", "3. Go", "Go", "", "1.", " 2. Stay"]), max_size=5).map("\n".join)


@given(listed)
def test_a_numbered_list_is_one_that_has_all_parts(text: str) -> None:
    parts = metrics.steps(view(text))[:4]  # the share of single actions is no part of it
    whole = metrics.numbered_steps(view(text), least=1)[0].value
    assert whole == float(bool(text.strip()) and all(part.value == 1.0 for part in parts))


@pytest.mark.parametrize(
    ("stopped", "cut", "value"), [(True, "", 0), (True, " \n", 0), (False, "", 1), (True, "and on", 1), (False, "x", 1)]
)
def test_run_on(stopped: bool, cut: str, value: float) -> None:
    assert metrics.run_on(view("x", stopped=stopped, cut=cut)) == [Score("run_on", value, "lower")]


TALK = "Anna: hi\nBot: hello\nAnna: bye\nBot:"


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ("Fine.", {}, 0),
        ("Fine.\nUser: and you?", {}, 1),
        ("Fine.", {"cut": "User: and you?"}, 1),
        ("Fine.\nUser: and you?", {"answer": "A play.\nUser: hi\nBot: hi"}, 0),
        ("Fine.\nHuman: and you?", {"answer": "A play.\nUser: hi\nBot: hi"}, 1),
        ("Fine.\nAnna: well?", {}, 0),
        ("Fine.\nAnna: well?", {"question": TALK}, 1),
        ("Fine.\nBot: well?", {"question": TALK}, 0),
        ("Fine.\nAnna: well?", {"question": TALK, "answer": "She said:\nAnna: no"}, 0),
        ("Fine.\nUser: hi", {"answer": ""}, 1),
        ("", {}, 0),
    ],
)
def test_self_dialogue(text: str, options: dict[str, Any], value: float) -> None:
    assert metrics.self_dialogue(view(text, **options)) == [Score("self_dialogue", value, "lower")]


@pytest.mark.parametrize(
    ("text", "n", "value"),
    [
        ("to be or not to be or not", 4, 1 - 4 / 5),  # 5 runs: the first and the last are the same
        ("a a a a a a", 4, 1 - 1 / 3),
        ("A a a A", 1, 1 - 1 / 4),
        ("one two three four five", 4, 0),
        ("one two three", 4, 0),
        ("", 4, 0),
    ],
)
def test_repetition(text: str, n: Literal[1, 4], value: float) -> None:
    assert metrics.repetition(view(text), n=n) == [Score("repetition", about(value), "lower")]


def test_distinct() -> None:
    scores = metrics.distinct(view("Tea and tea and milk"))
    assert scores == [Score("distinct_1", 3 / 5, "neither"), Score("distinct_2", 3 / 4, "neither")]
    assert values(metrics.distinct(view("tea"))) == {"distinct_1": 1.0}
    assert metrics.distinct(view(" ")) == []


@pytest.mark.parametrize(
    ("text", "options", "value"),
    [
        ('{"a": 1}', {}, 1),
        ('{"a": NaN}', {}, 0),
        ("Sure: {}", {}, 0),
        ("", {}, 0),
        ('```json\n{"a": 1}\n```', {}, 1),
        ('```json\n{"a": 1}\n```', {"fenced": False}, 0),
        ('{"a": 1, "b": null}', {"keys": ["a", "b"]}, 1),
        ('{"a": 1}', {"keys": ["a", "b"]}, 0),
        ('["a"]', {"keys": ["a"]}, 0),
        ('"a"', {"keys": ["a"]}, 0),
        ("null", {}, 1),
        ("null", {"keys": ["a"]}, 0),
    ],
)
def test_valid_json(text: str, options: dict[str, Any], value: float) -> None:
    assert metrics.valid_json(view(text), **options) == [Score("valid_json", value, "higher")]


FACTS: dict[str, Any] = {"My Experience": "baker for 5 years"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("I have 5 years of experience as a baker.", 0.0),
        ("I have 9 years of experience as a baker.", 1 / 2),  # the years are, 'baker' is not
        ("I worked for 9 years.", 0.0),  # unsupported: of work at large the field says nothing
        ("I have a master's degree in physics.", 1.0),
    ],
)
def test_contradicted(text: str, value: float) -> None:
    row: dict[str, Any] = {
        "My Experience": "baker with 5 years of experience",
        "My Education": "bachelor's degree in physics",
    }
    assert metrics.contradicted(view(text, **row)) == [Score("contradicted", about(value), "lower")]


def test_contradicted_and_grounded_need_statements_and_fields() -> None:
    assert metrics.contradicted(view("Hello there.", **FACTS)) == []
    assert metrics.contradicted(view("I have baked for 9 years.")) == []
    assert metrics.grounded(view("I have baked for 9 years.")) == []
    assert values(metrics.grounded(view("I have baked for 5 years.", **FACTS)))["grounded"] == 1.0
    assert values(metrics.grounded(view("I have baked for 9 years.", **FACTS)))["grounded"] == 0.0


SEEN = ("the kettle sings at four", "put the milk in first")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("the kettle sings at four", 1.0),
        ("the kettle sings at five", 4 / 5),
        ("sings at\n four  put the milk", 3 / 6),  # a run lies in one answer
        ("The Kettle Sings", 0.0),  # letter by letter
        ("kettle, sings", 1 / 2),
        ("nothing of it", 0.0),
        ("", 0.0),
    ],
)
def test_memorized(text: str, share: float) -> None:
    assert metrics.memorized(view(text, training=SEEN))[0] == Score("memorized", about(share), "neither")


@pytest.mark.parametrize(("run", "value"), [(4, 1.0), (5, 0.0)])
def test_a_whole_run_is_memorized(run: int, value: float) -> None:
    scores = metrics.memorized(view("well the kettle sings at five", training=SEEN), run=run)
    assert scores[1] == Score("memorized_whole", value, "lower")


def test_memorizing_more_than_the_rows_own_answer_counts() -> None:
    def excess(text: str, answer: str) -> float:
        return values(metrics.memorized(view(text, answer=answer, training=SEEN)))["memorized_excess"]

    assert excess("the kettle sings at five", "nothing of it") == about(4 / 5)
    assert excess("the kettle sings at five", "sings at five") == about(4 / 5 - 2 / 3)
    assert excess("nothing of it", "the kettle sings at") == 0
    probe = values(metrics.memorized(view("the kettle", answer="", training=SEEN)))
    assert set(probe) == {"memorized", "memorized_whole"}


def test_fifty_words_are_a_memorized_whole() -> None:
    words = [f"w{n}" for n in range(60)]
    training = (" ".join(words),)
    assert values(metrics.memorized(view(" ".join(words[5:55]), training=training)))["memorized_whole"] == 1.0
    assert values(metrics.memorized(view(" ".join(words[5:54]), training=training)))["memorized_whole"] == 0.0


def test_memorized_needs_answers_and_a_run() -> None:
    assert metrics.memorized(view("the kettle")) == []
    with pytest.raises(RecipeError, match="'run' must be 1 or more, not 0"):
        metrics.memorized(view("the kettle", training=SEEN), run=0)


def test_likeness() -> None:
    def like(text: str) -> float:
        return metrics.likeness(view(text, training=SEEN))[0].value

    assert like(" ".join(SEEN)) == pytest.approx(1.0)
    assert like("The kettles sing") > like("Quarterly revenue grew") >= 0.0
    assert like("xyz") == like("") == 0.0
    assert metrics.likeness(view("the kettle", training=SEEN))[0].better == "higher"
    assert metrics.likeness(view("the kettle")) == metrics.likeness(view("the kettle", training=("", " "))) == []


WIDE = {"length", "loss", "perplexity"}  # the others are shares of 1
any_text = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(any_text, any_text, st.booleans(), any_text)
def test_every_value_is_finite_and_in_its_range(text: str, answer: str, stopped: bool, second: str) -> None:
    example = view(
        text,
        answer=answer,
        question=second,
        stopped=stopped,
        cut=second,
        loss=2.5,
        training=(answer, second),
        expect="steps",
        notes=second,
    )
    for name in entries("tunesmith.evaluation.metrics"):
        for score in resolve("tunesmith.evaluation.metrics", name)(example):
            low, high = score.limits or (0.0, math.inf if score.name in WIDE else 1.0)
            assert math.isfinite(score.value) and low <= score.value <= high, score


def test_odd_letters_are_no_error() -> None:
    for text in (
        "\ud800",
        "\x00\x1c\u2028\u0085",
        "\u202e" * 50,
        "!" * 20_000,
        "( " * 20_000,
        "1. " * 500,
        "👩‍👩‍👧 " * 3_000,
    ):
        example = view(text, answer=text, loss=1.0, training=(text,), note=text)
        for name in set(entries("tunesmith.evaluation.metrics")) - {"grounded", "contradicted"}:
            assert all(math.isfinite(score.value) for score in resolve("tunesmith.evaluation.metrics", name)(example))


def test_every_metric_says_what_it_means_and_gives_scores() -> None:
    names = entries("tunesmith.evaluation.metrics")
    assert {"expected", "length", "loss", "memorized", "numbered_steps", "rouge", "stops"} <= set(names)
    for name in names:
        metric = resolve("tunesmith.evaluation.metrics", name)
        assert 15 < len((metric.__doc__ or "").split("\n\n")[0]) < 400
        text = "1. Go to 3 doors.\n2. I have baked for 5 years."
        scores = metric(view(text, loss=2.0, training=SEEN, expect="steps", **FACTS))
        assert scores and all(isinstance(score, Score) and isinstance(score.value, float) for score in scores)
        score_names = getattr(metrics, name.upper(), (name,))  # what a recipe may choose as its primary score
        assert [score.name for score in scores] == list(score_names)
