"""The comparison through the commands: stopped and gone on with, rows perturbed, a judge on a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from chat_server import serve
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.runs.run import Run

WISH: dict[str, Any] = {
    "train__epochs": 1,
    "evaluate__metrics": [
        "numbered_steps",
        "steps",
        "run_on",
        "repetition",
        "memorized",
        "likeness",
        "perplexity",
        "length",
    ],
    "evaluate__primary": "length",
    "evaluate__rows": 12,
    "evaluate__batch": 16,
}


class Stop(Exception):
    """What Ctrl-C does to an evaluation."""


def trained(path: Path, runs: Path) -> tuple[Recipe, Run]:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, runs)
    tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, run)
    return recipe, run


def scores(run: Run) -> Any:
    return json.loads((run / "scores.json").read_text())


def test_an_evaluation_that_stopped_goes_on(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file(**WISH, evaluate__robustness=["typos", "upper"], evaluate__robustness_rows=4)
    recipe, run = trained(path, tmp_path / "stopped")
    progress: list[tuple[str, int, int]] = []

    def tell(which: str, count: int, of: int) -> None:
        progress.append((which, count, of))
        if len(progress) in (5, 16):
            raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            tunesmith.evaluate(recipe, run, on_progress=tell)
        assert not (run / "scores.json").exists()
    tunesmith.evaluate(recipe, run, on_progress=tell)
    kinds = {which: of for which, _, of in progress}
    assert set(kinds) == {"base", "tuned", "base-perturbed", "tuned-perturbed"}
    assert len(progress) == sum(kinds.values())  # no reply was written twice, the two that were stopped at included
    assert not list((run / "replies").glob("*.part"))
    _, whole = trained(path, tmp_path / "whole")
    tunesmith.evaluate(recipe, whole)
    assert scores(run) == scores(whole)
    tables = scores(run)["robustness"]
    assert set(tables) == {"typos", "upper"} and all(table["rows"] >= 1 for table in tables.values())
    tunesmith.report(recipe, run)


def test_a_judge_is_asked_once_and_only_when_named(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    def longer(body: dict[str, Any]) -> str:
        text = "\n".join(message["content"] for message in body["messages"])
        nonce = re.search(r"\[([0-9a-f]+) REPLY A begins\]", text)
        assert nonce is not None
        sizes = [len(text.split(f"REPLY {which} begins]")[1].split("REPLY")[0]) for which in "AB"]
        better = "A" if sizes[0] > sizes[1] else "B" if sizes[1] > sizes[0] else "tie"
        return json.dumps({"check": nonce[1], "better": better})

    recipe, run = trained(recipe_file(**WISH), tmp_path / "runs")
    tunesmith.evaluate(recipe, run)
    assert not (run / "judge.json").exists()
    with serve(longer) as server:
        path = recipe_file(**WISH, evaluate__judge={"url": server.url, "model": "judge", "rows": 6})
        judged = read_recipe(str(path))
        before = (run / "scores.json").read_bytes()
        tunesmith.evaluate(judged, run)
        judge_json, requests = json.loads((run / "judge.json").read_text()), len(server.told)
        tunesmith.evaluate(judged, run)
    assert (run / "scores.json").read_bytes() == before  # a judge is no reason to write the replies again
    assert requests == len(server.told) and 0 < requests <= 12
    assert judge_json["pairs"] == 6 and judge_json["missing"] == 0
    assert judge_json["wins"] + judge_json["ties"] + judge_json["losses"] == 6
