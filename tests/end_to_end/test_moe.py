"""A mixture of experts from rows to merged weights: trained, stopped and resumed, evaluated, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tunesmith
from moe import make_moe
from stopping import at, crash
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import RecipeError
from tunesmith.runs.run import Run, hash_file
from tunesmith.training.job import read_journal

QUICK: dict[str, Any] = {
    "train__schedule": "linear",
    "train__warmup": 0,
    "train__checkpoint_every": 5,
    "train__learning_rate": 3e-3,
    "evaluate__metrics": ["loss"],
    "evaluate__rows": 2,
    "evaluate__max_new_tokens": 2,
}


def prepared(recipe: Recipe, folder: Path) -> Run:
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    return run


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == "step"]


@pytest.mark.parametrize("family", ["qwen3_moe", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_experts_learn_and_a_stopped_run_resumes_to_the_same_bytes(
    recipe_file: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    base = make_moe(tmp_path / "base", family)
    recipe = read_recipe(str(recipe_file(base__model=str(base), **QUICK)))
    whole, run = prepared(recipe, tmp_path / "whole"), prepared(recipe, tmp_path / "stopped")
    tunesmith.train(recipe, whole)

    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=at("step", 7, crash))
    tunesmith.train(recipe, run)
    files = [folder / "adapter/adapter_model.safetensors" for folder in (run, whole)]
    assert hash_file(files[0]) == hash_file(files[1])
    adapter = load_file(files[0])
    stacked = [name for name in adapter if ".experts." in name and "lora_B" in name]
    assert len(stacked) == 4 and all(adapter[name].abs().max() > 0 for name in stacked)
    curve = losses(whole)
    assert sum(curve[-3:]) < sum(curve[:3]) - 0.3
    tunesmith.evaluate(recipe, whole)
    for section in whole.read_json("scores.json")["sections"].values():
        assert section["loss"]["tuned"] < section["loss"]["base"]


def test_engine_trl_is_refused(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    base = make_moe(tmp_path / "base", "qwen3_moe")
    recipe = read_recipe(str(recipe_file(base__model=str(base), **QUICK, train__engine="trl")))
    run = prepared(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"mixtures? of experts.*Set it to native") as caught:
        tunesmith.train(recipe, run)
    assert caught.value.where == "train.engine" and not (run / "adapter").exists()
