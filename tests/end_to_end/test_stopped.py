"""A training that was stopped goes on with the recipe it began with; a command that fails leaves that recipe alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from stopping import at, crash
from tiny import CHATML
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import ResourceError, TrainingDiverged
from tunesmith.runs.run import Run, hash_path
from tunesmith.training.job import read_journal

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stopped(recipe_file: Callable[..., Path], tmp_path: Path) -> Run:
    """A run of toy.yaml in runs/, killed at step 8 of 10; its newest checkpoint is that of step 5."""
    recipe = read_recipe(str(recipe_file()))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=at("step", 8, crash))
    return run


@pytest.mark.parametrize("command", ["train", "run"])
@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("train.learning_rate=0.5", "train.learning_rate"),
        ("train.memory=1MB", "train.memory"),
        ("adapter.layers=[nowhere]", "adapter"),
        ("seed=4", "seed"),
        ("data.split.test=0.3", "data"),
        ("prompt.system=Be brief.", "prompt"),
    ],
)
def test_other_settings_are_refused_and_change_nothing(
    stopped: Run, call: Call, command: str, setting: str, changed: str
) -> None:
    before = contents(stopped)
    code, _, err = call(command, "toy.yaml", "--set", setting)
    assert code == 5 and f"began with other settings or data: {changed} changed. Undo the change" in err
    assert contents(stopped) == before
    code, out, err = call("train", "runs/toy")  # as the run's own recipe says
    assert code == 0 and "resuming after step 5 of 10" in out, err


def contents(run: Run) -> dict[str, str]:
    return {
        path.name: hash_path(path)
        for path in run.path.iterdir()
        if path.name not in ("run.log", ".lock", ".lock.owner")
    }


@pytest.mark.parametrize("command", ["train", "run"])
def test_with_again_they_begin_anew(stopped: Run, call: Call, command: str) -> None:
    code, _, err = call(command, "toy.yaml", "--again", "--set", "train.epochs=1")
    assert code == 0, err
    (aside,) = (stopped / "old").iterdir()
    assert (aside / "checkpoints/step-0000005").is_dir()
    assert [e["step"] for e in read_journal(stopped / "journal.jsonl") if e["kind"] == "start"] == [0]
    assert read_recipe(str(stopped.path)).train.epochs == 1
    before = contents(stopped)
    code, _, err = call("train", "toy.yaml", "--again", "--set", "train.memory=1MB")
    assert code == 6 and "training needs about" in err
    assert contents(stopped) == before  # the finished adapter stands where it stood


def test_a_stop_before_the_first_checkpoint_keeps_the_former_recipe(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    recipe = read_recipe(str(recipe_file()))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    before = (run / "recipe.yaml").read_bytes()
    for module, error in (
        ("tunesmith.models.build.load_model", KeyboardInterrupt),
        ("tunesmith.models.build.load_model", ResourceError("memory is full")),
        ("tunesmith.training.checkpoint.rehearse", ResourceError("the disk is full")),
        ("tunesmith.training.checkpoint.rehearse", KeyboardInterrupt),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, raising(error))
            code, _, _ = call("train", "toy.yaml", "--set", "train.epochs=3")
        assert code == (6 if isinstance(error, ResourceError) else 130)
        assert (run / "recipe.yaml").read_bytes() == before
        assert not (run / "machine.json").exists() and not list((run / "checkpoints").glob("step-*"))


def raising(error: Any) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [TrainingDiverged("the loss is no number"), KeyboardInterrupt, ResourceError("full")])
def test_a_failure_behind_a_checkpoint_keeps_the_recipe_of_that_checkpoint(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call, error: Any
) -> None:
    recipe = read_recipe(str(recipe_file()))
    tunesmith.prepare(recipe, tunesmith.open_run(recipe, tmp_path / "runs"))
    with monkeypatch.context() as patched:
        patched.setattr("tunesmith.training.checkpoint.prune", raising(error))  # behind the first checkpoint
        code, _, _ = call("train", "toy.yaml", "--set", "train.epochs=3")
    assert code == getattr(error, "exit_code", 130)
    assert read_recipe("runs/toy").train.epochs == 3
    code, _, err = call("train", "toy.yaml")
    assert code == 5 and "train.epochs changed" in err and "runs/toy/recipe.yaml" in err
    code, out, err = call("train", "runs/toy")
    assert code == 0 and "resuming after step 5 of 15" in out, err


@pytest.mark.parametrize("setting", ["data.split.test=0.3", "prompt.system=Be brief.", "seed=4"])
def test_rows_that_were_prepared_otherwise_are_not_trained_on(
    recipe_file: Callable[..., Path], tmp_path: Path, call: Call, setting: str
) -> None:
    recipe = read_recipe(str(recipe_file()))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    before = contents(run)
    code, _, err = call("train", "toy.yaml", "--set", setting)
    assert (
        code == 5
        and f"the rows were prepared with other settings: {setting.partition('.')[0].partition('=')[0]}" in err
    )
    assert contents(run) == before
    assert call("prepare", "toy.yaml", "--set", setting)[0] == call("train", "toy.yaml", "--set", setting)[0] == 0


def test_a_failed_preparing_leaves_rows_date_and_template(
    recipe_file: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    (tmp_path / "own.jinja").write_text(CHATML)
    recipe = read_recipe(str(recipe_file(prompt__template="own.jinja")))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    before = {
        name: (run / name).read_bytes()
        for name in (run.read_fingerprints("prepare") or {})["files"]
        if "audit" not in name
    }
    (tmp_path / "own.jinja").write_text(CHATML + " ")
    recipe_text = (run / "recipe.yaml").read_bytes()
    code, _, _ = call("prepare", "toy.yaml", "--set", "prompt.max_tokens=16", "--set", "data.checks=[too_long]")
    assert code == 3
    assert {name: (run / name).read_bytes() for name in before} == before
    assert (run / "recipe.yaml").read_bytes() == recipe_text


def test_checkpoints_of_an_older_version_are_said(stopped: Run, call: Call) -> None:
    for path in (stopped / "checkpoints").glob("step-*"):
        state = json.loads((path / "state.json").read_text())
        del state["inputs"]
        (path / "state.json").write_text(json.dumps(state))
        manifest = json.loads((path / "manifest.json").read_text()) | {"state.json": hash_path(path / "state.json")}
        (path / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = call("train", "toy.yaml")
    assert code == 5 and "the checkpoints were written by an older version. Give --again" in err
