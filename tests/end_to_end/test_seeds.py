"""A recipe trained with several seeds: the same rows, one base, a verdict over trainings; stopped and asked again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunesmith
from strict_pages import Page
from tunesmith.commands.seeds import train_seeds
from tunesmith.commands.shared import SPLIT_PARTS
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import RecipeError, RunError
from tunesmith.evaluation.sentences import ONE_TRAINING
from tunesmith.reporting.runs_page import compare_run_folders
from tunesmith.runs.run import Run, hash_path
from tunesmith.training.job import read_journal

QUICK: dict[str, Any] = {
    "train__epochs": 1,
    "train__checkpoint_every": 1,
    "evaluate__metrics": ["loss", "stops"],
    "evaluate__primary": "loss",
    "evaluate__max_new_tokens": 3,
    "evaluate__robustness": ["upper"],
    "evaluate__robustness_rows": 2,
    "evaluate__retention": 15,
}
TRAININGS = (".", "seeds/2", "seeds/3")


@pytest.mark.slow
def test_a_recipe_is_trained_with_three_seeds(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = read_recipe(str(recipe_file(**QUICK)))
    runs, log_lines = tmp_path / "runs", list[str]()
    run = tunesmith.run(recipe, runs=runs)
    assert ONE_TRAINING in Page((run / "report.html").read_text()).text or (
        run.read_json("scores.json")["helped"] == "too few to tell"
    )
    first = hash_path(run / "adapter")
    assert not (run / "seeds").exists()

    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    with run.lock(), pytest.raises(KeyboardInterrupt):
        train_seeds(recipe, run, 3, watch=stop)
    assert not (run / "seeds.json").exists()

    answered: Counter[str] = Counter()
    with run.lock():
        train_seeds(
            recipe, run, 3, log_lines.append, on_progress=lambda which, count, total: answered.update([which])
        )  # fmt: skip
    assert [e["step"] for e in read_journal(run / "seeds/2/journal.jsonl") if e["kind"] == "resume"] == [1]
    assert answered and not any(which.startswith("base") for which in answered)  # the base answered once
    trained = {folder: Run(run / folder) for folder in TRAININGS}
    assert hash_path(run / "adapter") == first
    assert len({hash_path(part / "adapter") for part in trained.values()}) == 3
    for part in SPLIT_PARTS:
        assert len({(one / f"data/{part}.jsonl").read_bytes() for one in trained.values()}) == 1
    for which in ("base", "base-perturbed", "base-abilities"):
        texts = [(one / f"replies/{which}.jsonl") for one in trained.values()]
        assert len({tuple(json.loads(line)["text"] for line in text.read_text().splitlines()) for text in texts}) == 1
    beside = compare_run_folders([run / "seeds/2", run / "seeds/3"])
    assert [key for key, _ in beside.recipe] == ["train.seed"]

    seeds = run.read_json("seeds.json")
    assert seeds["trainings"] == [
        {"run": folder, "seed": recipe.seed + number} for number, folder in enumerate(TRAININGS)
    ]
    assert set(seeds["sections"]) <= {"all", "test", "unseen"}
    for title, section in seeds["sections"].items():
        for name, score in section.items():
            values = [one.read_json("scores.json")["sections"][title][name]["tuned"] for one in trained.values()]
            assert score["trainings"] == pytest.approx(values) and score["tuned"] == pytest.approx(np.mean(values))
    assert "trained 3 times" in seeds["verdict"] and log_lines[-1] == f"seeds: {seeds['verdict']}"

    before = {folder: hash_path(one / ".fingerprints") for folder, one in trained.items() if folder != "."}
    tunesmith.run(recipe, log=log_lines.append, seeds=3, runs=runs)
    assert {folder: hash_path(one / ".fingerprints") for folder, one in trained.items() if folder != "."} == before
    assert "training 3 of 3: train: up to date" in " ".join(log_lines) and "seeds: up to date" in log_lines
    page = Page((run / "report.html").read_text()).text
    assert page.index(seeds["verdict"]) < page.index(run.read_json("scores.json")["verdict"])
    assert f"Seed {recipe.seed + 2}" in page and "The recipe was trained 3 times." in page
    assert not (run / "seeds/2/export").exists() and not (run / "seeds/2/report.html").exists()

    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 3e-3})})
    with pytest.raises(RunError, match=r"learning_rate changed.*--again"):
        tunesmith.run(changed, seeds=2, runs=runs)
    tunesmith.run(changed, seeds=2, again=True, runs=runs)
    assert (run / "seeds/2/old").is_dir() and [t["run"] for t in run.read_json("seeds.json")["trainings"]] == [
        ".",
        "seeds/2",
    ]
    assert read_recipe(str(run / "seeds/2")).train.learning_rate == 3e-3

    with Run(run / "seeds/2").lock(), pytest.raises(RunError, match="is using this run"):
        tunesmith.run(changed, seeds=2, runs=runs)

    (run / "scores.json").write_text("{}")  # evaluated again: the verdict over trainings is older
    other = changed.model_copy(update={"evaluate": changed.evaluate.model_copy(update={"max_new_tokens": 2})})
    tunesmith.run(other, runs=runs)
    assert "trained 2 times" not in Page((run / "report.html").read_text()).text


def test_a_number_of_trainings_is_one_or_more(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="0 is not a number of trainings"):
        tunesmith.run(read_recipe(str(recipe_file())), seeds=0, runs=tmp_path / "runs")
