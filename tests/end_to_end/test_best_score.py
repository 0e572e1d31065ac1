"""The checkpoint that is kept may be chosen by the replies' score; that leaves the training itself as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import read_rows
from tunesmith.errors import RecipeError
from tunesmith.models.adapter import read_adapter
from tunesmith.runs.run import Run
from tunesmith.training import checkpoint
from tunesmith.training.job import read_journal

WISH: dict[str, Any] = {
    "train__evaluate_every": 2,
    "train__epochs": 3,
    "train__learning_rate": 1e-2,
    "train__keep": 50,
    "evaluate__metrics": ["length", "loss"],
    "evaluate__primary": "length",
    "evaluate__max_new_tokens": 24,
}


def trained(path: Path, runs: Path) -> Run:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, runs)
    tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, run)
    return run


@pytest.mark.parametrize("variant", [{}, {"adapter__dora": True}], ids=["fused", "by autograd"])
def test_the_best_reply_score_decides_and_changes_nothing(
    recipe_file: Callable[..., Path], tmp_path: Path, variant: dict[str, Any]
) -> None:
    plain = trained(recipe_file(**WISH, **variant), tmp_path / "loss")
    run = trained(recipe_file(**WISH, **variant, train__best="score", train__best_rows=4), tmp_path / "score")
    losses, gradients = (
        [event["loss"] for event in read_journal(folder / "journal.jsonl") if event["kind"] == "step"]
        for folder in (plain, run)
    )
    assert losses == gradients
    events = [event for event in read_journal(run / "journal.jsonl") if event["kind"] == "valid" and event["step"]]
    assert len({event["score"] for event in events}) > 1
    best = max(events, key=lambda event: (event["score"], -event["loss"]))
    summary = (run.read_fingerprints("train") or {})["summary"]
    assert (summary["best_step"], summary["best_score"]) == (best["step"], best["score"])
    best_state = checkpoint.load(run / "checkpoints", best["step"])
    assert best_state is not None
    _, tensors = read_adapter(run / "adapter")
    first = next(name for name in best_state.tensors if name.endswith("lora_B"))
    saved = next(
        value
        for name, value in tensors.items()
        if first.removeprefix("adapter.").split(".lora_B")[0] in name and "lora_B" in name
    )
    assert (saved == best_state.tensors[first]).all()


def test_samples_are_written_at_each_validation_and_change_nothing(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    plain = trained(recipe_file(**WISH), tmp_path / "plain")
    path = recipe_file(**WISH, train__samples=2)
    run = trained(path, tmp_path / "looked on")
    for kind in ("step", "valid"):
        losses, gradients = (
            [event["loss"] for event in read_journal(folder / "journal.jsonl") if event["kind"] == kind]
            for folder in (plain, run)
        )
        assert losses == gradients
    events = [event for event in read_journal(run / "journal.jsonl") if event["kind"] == "valid"]
    prompts = [tuple(sample["prompt"] for sample in event["samples"]) for event in events]
    assert len(set(prompts)) == 1
    assert len(prompts[0]) == 2
    rows = {row.prompt[-1].text for row in read_rows(run / "data/valid.jsonl")}
    assert rows.issuperset(prompts[0])
    assert len({tuple(sample["reply"] for sample in event["samples"]) for event in events}) > 1  # the model learns
    before = (run / "adapter/adapter_model.safetensors").stat().st_mtime_ns
    tunesmith.train(read_recipe(str(recipe_file(**WISH))), run)  # who looked on is no part of what was made
    assert (run / "adapter/adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_score_that_replies_have_not_is_refused(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    wish = {**WISH, "evaluate__metrics": ["loss"], "evaluate__primary": "loss", "train__best": "score"}
    with pytest.raises(RecipeError, match="is not a score of replies"):
        trained(recipe_file(**wish), tmp_path)


def test_another_engine_cannot(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="engine trl cannot generate replies"):
        trained(recipe_file(**WISH, train__best="score", train__engine="trl"), tmp_path)
    with pytest.raises(RecipeError, match=r"train\.samples: engine trl cannot generate replies.*Set it to 0"):
        trained(recipe_file(**WISH, train__samples=1, train__engine="trl"), tmp_path / "other")
