"""The page Review: pairs are served blind, found again after a reload, closed and summarized."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.commands.review import review_pairs, write_summary
from tunesmith.errors import RunError
from tunesmith.evaluation.review import QUESTIONS
from ui_runs import finished, strict

from tunesmith.ui import review_page  # isort: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return finished(tmp_path_factory.mktemp("review"))


@pytest.fixture
def open_reviews(run: tuple[Any, Any]) -> Iterator[review_page.OpenReviews]:
    reviews = review_page.OpenReviews()
    yield reviews
    reviews.close(run[1])


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Sends one request like the review page."""
    base, _, token = url.partition("/#")
    headers = {"Authorization": f"Bearer {token}", "Origin": base, "Content-Type": "application/json"}
    sent = urllib.request.Request(base + path, data=json.dumps(body).encode() if body else None, headers=headers)
    with urllib.request.urlopen(sent, timeout=10) as answer:
        return json.load(answer)


def judge(url: str, place: int, preference: str) -> None:
    key = ask(url, f"/api/pairs/{place}")["key"]
    answers = dict.fromkeys(QUESTIONS, "yes")
    body = {"key": key, "left": answers, "right": answers, "preference": preference, "seconds": 2.0}
    ask(url, "/api/judgments", body)


def test_pairs_are_served_found_again_and_summarized(
    run: tuple[Any, Any], open_reviews: review_page.OpenReviews
) -> None:
    served = open_reviews.start(*run, "ann")
    assert open_reviews.start(*run, "ann") is served  # after a reload
    page = strict(review_page.open_reviews_html(open_reviews, run[1], 6))
    (link,) = page.named("a")
    assert link["href"] == served.url
    assert link["rel"] == "noopener"
    assert "ann has judged 0 of 6 pairs" in page.text
    judge(served.url, 0, "left")
    judge(served.url, 1, "right")
    assert "ann has judged 2 of 6 pairs" in strict(review_page.open_reviews_html(open_reviews, run[1], 6)).text
    open_reviews.close(run[1])
    with pytest.raises(OSError, match="refused"):
        ask(served.url, "/api/state")
    closed = strict(review_page.open_reviews_html(open_reviews, run[1], 6))
    assert "2 of 6 pairs (closed)" in closed.text
    assert not closed.named("a")
    write_summary(*run)
    results = strict(review_page.results_html(review_page._read_summary(run[1]), "topic"))
    assert "2 decided pairs" in results.text
    assert "decided pairs" in results.text
    assert {"correct", "format", "clear", "robust", "preferred"} <= set(results.texts)
    again = open_reviews.start(*run, "ann")  # resumes
    assert ask(again.url, "/api/state")["done"] == 2


def test_the_page_does_not_name_models(run: tuple[Any, Any], open_reviews: review_page.OpenReviews) -> None:
    open_reviews.start(*run, "eve")
    pairs, equal = review_pairs(*run)
    markup = (
        review_page._intro_html(len(pairs), equal)
        + review_page._keys_html()
        + review_page.open_reviews_html(open_reviews, run[1], 6)
    )
    page = strict(markup)
    assert "The base says" not in page.text
    assert "letters says so" not in page.text


def test_two_pages_cannot_judge_under_one_name(run: tuple[Any, Any], open_reviews: review_page.OpenReviews) -> None:
    open_reviews.start(*run, "bob")
    with pytest.raises(RunError, match="already judging"):
        review_page.OpenReviews().start(*run, "bob")


@pytest.mark.parametrize("name", ["", "Ann", "a b", "../x", "<b>", "x" * 33])
def test_invalid_names(run: tuple[Any, Any], open_reviews: review_page.OpenReviews, name: str) -> None:
    with pytest.raises(RunError):
        open_reviews.start(*run, name)
    assert open_reviews.served(run[1]) == {}


def test_no_pairs_and_no_judgments(run: tuple[Any, Any], tmp_path: Path) -> None:
    assert "Nothing to judge" in strict(review_page._intro_html(0, 4)).text
    assert "No results yet" in strict(review_page.results_html(None, "topic")).text


def test_results_with_several_reviewers_and_ties() -> None:
    share = {"count": 0, "of": 0, "left_out": 3, "share": None, "low": None, "high": None}
    tuned = {"count": 3, "of": 4, "left_out": 0, "share": 0.75, "low": 0.3, "high": 0.954}
    summary = {
        "verdict": "People <b> preferred", "stale": 2, "left": tuned,
        "sections": {"test": {"pairs": 4, "questions": {"clear": {"base": share, "tuned": tuned}}, "tuned": tuned}},
        "agreement": {"preference": [{"reviewers": ["a", "b"], "items": 4, "equal": 0.5, "kappa": None}]},
    }  # fmt: skip
    page = strict(review_page.results_html(summary, "topic"))
    assert "1 of 4" in page.text  # the complement of tuned
    assert "25 %, 5 to 70 %" in page.text
    assert "a and b agreed in 50 % of 4 pairs." in page.text
    assert "2 judgments of earlier replies" in page.text
