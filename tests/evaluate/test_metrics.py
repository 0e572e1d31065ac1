"""What each score says of a reply."""

from __future__ import annotations

from typing import Any

import pytest
from rouge_score import rouge_scorer

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.evaluate import metrics
from tunesmith.evaluate.score import Score, View
from tunesmith.find import entries, find
from tunesmith.generate.text import Reply


def view(
    text: str, *, answer: str = "1. Go.\n2. Stay.", stopped: bool = True, loss: float | None = None, **fields: Any
) -> View:
    row = Conversation("r", (Turn("user", "how?"), Turn("assistant", answer)), Origin("f", 1), "g", fields)
    return View(row, Reply(text, stopped, 7), loss)


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
def test_rows_that_expect_nothing_known_are_not_scored(fields: dict[str, str]) -> None:
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
    own = rouge_scorer.RougeScorer(names, use_stemmer=stemmer).score("1. Go.\n2. Stay.", text)
    found = metrics.rouge(view(text), stemmer=stemmer)
    assert found == [Score(name, own[name].fmeasure, "higher") for name in names]


def test_rouge_by_hand() -> None:
    values = {each.name: each.value for each in metrics.rouge(view("the cat", answer="the dog sat"))}
    assert values["rouge1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert values["rouge2"] == 0.0
    assert metrics.rouge(view("the dogs sat", answer="the dog sat"))[0].value == 1.0  # stemmed


def test_a_probe_without_an_answer_has_no_rouge() -> None:
    assert metrics.rouge(view("anything", answer="")) == []


def test_every_metric_says_what_it_means_and_gives_scores() -> None:
    names = entries("tunesmith.evaluate.metrics")
    assert {"expected", "length", "loss", "numbered_steps", "rouge", "stops"} <= set(names)
    for name in names:
        metric = find("tunesmith.evaluate.metrics", name)
        assert len(metric.__doc__ or "") > 15
        text = "1. Go to 3 doors.\n2. I have baked for 5 years."
        scores = metric(view(text, loss=2.0, expect="steps", **{"My Experience": "baker for 5 years"}))
        assert scores and all(isinstance(each, Score) and isinstance(each.value, float) for each in scores)
