"""The page Compare: streaming columns, scores, filtering of held-out rows; replies stay text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strict_pages import Page
from tunesmith.commands.side_by_side import ReplyGenerator, ReplyModel, evaluated_replies, prompt_turns, reply_models
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, RunError
from ui_runs import HOSTILE, Scripted, finished, letters, strict

from tunesmith.ui import compare_page  # isort: skip

MODELS = (ReplyModel("base", "before"), ReplyModel("tuned", "after"), ReplyModel("q4_k_m", f"a file {HOSTILE}", False))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return finished(tmp_path_factory.mktemp("compare"))


class ScriptedModels(ReplyGenerator):
    """Models that reply with a script; the tuned one fails half-way."""

    def stream(self, name: str, turns: Any, *, max_new_tokens: int) -> Iterator[str]:
        if name == "tuned":
            yield "half "
            raise ModelError(f"it is gone {HOSTILE}")
        yield from Scripted(f"{name} says {HOSTILE} {turns[-1].text}").stream(turns, max_new_tokens=max_new_tokens)


def articles(page: Page) -> list[str]:
    return [str(article["aria-label"]) for article in page.named("article")]


def test_each_model_writes_into_its_own_column_in_turn(run: tuple[Any, Any]) -> None:
    updates = list(compare_page.stream_replies(ScriptedModels(*run), "Hello <b>", None, MODELS, 99, threading.Event()))
    first, last = strict(updates[0][0]), strict(updates[-1][0])
    assert articles(first) == articles(last) == ["base", "tuned", "q4_k_m"]
    assert first.text.count("waiting") == 2
    assert "base says" in last.text
    assert "q4_k_m says" in last.text
    assert last.text.count("<script>alert(1)</script>") >= 4
    assert "Hello <b>" in last.text
    assert "Failed: it is gone" in last.text  # a failure does not stop the others
    assert "NOT VERIFIED" in last.text
    assert updates[-1][1] == "All models have replied."


def test_stop_ends_the_reply_and_asks_no_other_model(run: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_page, "UPDATE_SECONDS", 0.0)
    stop, updates = threading.Event(), []
    for markup, line in compare_page.stream_replies(ScriptedModels(*run), "x", None, MODELS, 99, stop):
        updates.append((markup, line))
        if "base says" in markup:
            stop.set()
    page = strict(updates[-1][0])
    assert updates[-1][1] == "Stopped."
    assert "stopped" in page.text
    assert page.text.count("not asked") == 2
    assert "q4_k_m says" not in page.text


def test_models_that_can_be_asked(run: tuple[Any, Any]) -> None:
    results = reply_models(*run)
    assert [(model.name, model.verified) for model in results] == [
        ("base", None), ("tuned", None), ("q4_k_m", True), ("q8_0", False),
    ]  # fmt: skip
    (run[1] / "export/gguf/letters.q8_0.gguf").rename(run[1] / "export/gguf/gone")
    try:
        assert [model.name for model in reply_models(*run)] == ["base", "tuned", "q4_k_m"]
    finally:
        (run[1] / "export/gguf/gone").rename(run[1] / "export/gguf/letters.q8_0.gguf")
    with pytest.raises(RunError, match="q4_k_m"):
        list(ReplyGenerator(*run).stream("q4_k", (Turn("user", "x"),), max_new_tokens=5))


def test_a_held_out_row_is_asked_with_its_own_prompt(run: tuple[Any, Any], tmp_path: Path) -> None:
    row = evaluated_replies(*run).rows[0].with_system("Be kind.")
    assert prompt_turns(run[0], row.question, row) == row.prompt
    assert prompt_turns(run[0], "other", row) == (Turn("system", "Be kind."), Turn("user", "other"))
    recipe = letters(tmp_path, prompt__system="Be brief.")
    assert prompt_turns(recipe, "own") == (Turn("system", "Be brief."), Turn("user", "own"))


def test_rows_are_filtered_and_shown_with_every_reply(run: tuple[Any, Any]) -> None:
    results = evaluated_replies(*run)
    assert len(results.rows) == len(results.items) == len(results.parts) == 6
    assert [place for _, place in compare_page.row_choices(results, "all")] == list(range(6))
    doubted = [place for _, place in compare_page.row_choices(results, "doubted")]
    assert doubted  # the base says 40 years, which is in no field
    page = strict(compare_page.row_html(results, doubted[0]))
    assert articles(page) == ["base", "tuned", "The row's own answer"]
    assert "Identical: q4_k_m, q8_0" in page.text
    assert "40 years" in page.text
    assert "Statements in doubt" in page.text
    assert page.text.count("<script>alert(1)</script>") >= 3


def test_a_file_that_says_something_else_has_its_own_column(run: tuple[Any, Any]) -> None:
    path = run[1] / "replies/export-q8_0.jsonl"
    before = path.read_text()
    first = json.loads(before.split("\n")[0])
    path.write_text(json.dumps({**first, "text": f"quite other {HOSTILE}"}) + "\n")
    try:
        page = strict(compare_page.row_html(evaluated_replies(*run), 0))
    finally:
        path.write_text(before)
    assert articles(page) == ["base", "tuned", "q8_0", "The row's own answer"]
    assert "quite other" in page.text


def test_worst_rows_come_first_by_loss(tmp_path: Path) -> None:
    results = evaluated_replies(*finished(tmp_path, gain=-1.0, evaluate__primary="loss"))
    places = [place for _, place in compare_page.row_choices(results, "worst")]
    gains = [results.items[place]["gain"] for place in places]
    assert len(places) == 6
    assert gains == sorted(gains)
    assert gains[0] < -0.5
    page = strict(compare_page.scores_html(results))
    assert page.text.index("loss (primary)") < page.text.index("more scores")


def test_a_run_that_was_not_evaluated_says_so() -> None:
    assert "no scores yet" in strict(compare_page.scores_html(None)).text
