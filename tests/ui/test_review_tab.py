"""The page Review: a reviewer's pairs are served blind, found again, ended, counted up."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.commands.review import conclude, pairs_of
from tunesmith.errors import RunError
from tunesmith.evaluation.review import QUESTIONS
from ui_runs import finished, strict

from tunesmith.ui import review_page  # isort: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return finished(tmp_path_factory.mktemp("review"))


@pytest.fixture
def house(run: tuple[Any, Any]) -> Iterator[review_page.House]:
    made = review_page.House()
    yield made
    made.end(run[1])


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request as the review's page sends it."""
    base, _, token = url.partition("/#")
    headers = {"Authorization": f"Bearer {token}", "Origin": base, "Content-Type": "application/json"}
    sent = urllib.request.Request(base + path, data=json.dumps(body).encode() if body else None, headers=headers)
    with urllib.request.urlopen(sent, timeout=10) as answer:
        return json.load(answer)


def judge(url: str, place: int, preference: str) -> None:
    key = ask(url, f"/api/pairs/{place}")["key"]
    same = dict.fromkeys(QUESTIONS, "yes")
    body = {"key": key, "left": same, "right": same, "preference": preference, "seconds": 2.0}
    ask(url, "/api/judgements", body)


def test_pairs_are_served_found_again_and_counted_up(run: tuple[Any, Any], house: review_page.House) -> None:
    served = house.begin(*run, "ann")
    assert house.begin(*run, "ann") is served  # a page that was loaded again
    page = strict(review_page.open_now(house, run[1], 6))
    (link,) = page.named("a")
    assert link["href"] == served.url
    assert link["rel"] == "noopener"
    assert "ann has judged 0 of 6 pairs" in page.text
    judge(served.url, 0, "left")
    judge(served.url, 1, "right")
    assert "ann has judged 2 of 6 pairs" in strict(review_page.open_now(house, run[1], 6)).text
    house.end(run[1])
    with pytest.raises(OSError, match="refused"):
        ask(served.url, "/api/state")
    closed = strict(review_page.open_now(house, run[1], 6))
    assert "2 of 6 pairs (not open now)" in closed.text
    assert not closed.named("a")
    conclude(*run)
    shown = strict(review_page.results_of(review_page._summary(run[1]), "topic"))
    assert "2 decided pairs" in shown.text
    assert "95 % interval" in shown.text
    assert {"correct", "format", "clear", "robust", "preferred"} <= set(shown.texts)
    again = house.begin(*run, "ann")  # goes on where it was left
    assert ask(again.url, "/api/state")["done"] == 2


def test_the_page_says_nothing_of_whose_reply_is_whose(run: tuple[Any, Any], house: review_page.House) -> None:
    house.begin(*run, "eve")
    pairs, equal = pairs_of(*run)
    said = review_page._about(len(pairs), equal) + review_page._keys() + review_page.open_now(house, run[1], 6)
    page = strict(said)
    assert "The base says" not in page.text
    assert "letters says so" not in page.text


def test_two_pages_cannot_judge_under_one_name(run: tuple[Any, Any], house: review_page.House) -> None:
    house.begin(*run, "bob")
    with pytest.raises(RunError, match="judging already"):
        review_page.House().begin(*run, "bob")


@pytest.mark.parametrize("name", ["", "Ann", "a b", "../x", "<b>", "x" * 33])
def test_names_that_are_none(run: tuple[Any, Any], house: review_page.House, name: str) -> None:
    with pytest.raises(RunError):
        house.begin(*run, name)
    assert house.of(run[1]) == {}


def test_nothing_to_judge_and_nothing_judged(run: tuple[Any, Any], tmp_path: Path) -> None:
    assert "nothing to judge" in strict(review_page._about(0, 4)).text
    assert "Nothing is counted up yet" in strict(review_page.results_of(None, "topic")).text


def test_results_with_several_reviewers_and_ties() -> None:
    share = {"count": 0, "of": 0, "left_out": 3, "share": None, "low": None, "high": None}
    some = {"count": 3, "of": 4, "left_out": 0, "share": 0.75, "low": 0.3, "high": 0.954}
    found = {
        "verdict": "People <b> preferred", "stale": 2, "left": some,
        "sections": {"test": {"pairs": 4, "questions": {"clear": {"base": share, "tuned": some}}, "tuned": some}},
        "agreement": {"preference": [{"reviewers": ["a", "b"], "items": 4, "equal": 0.5, "kappa": None}]},
    }  # fmt: skip
    page = strict(review_page.results_of(found, "topic"))
    assert "1 of 4" in page.text  # base has what tuned has not
    assert "25 %, 5 to 70 %" in page.text
    assert "a and b preferred the same in 50 % of 4 pairs." in page.text
    assert "2 judgements are of earlier replies" in page.text
