"""Checkpoints: whole or not at all, exact, verified."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import Paused, RecipeError, ResourceError, RunError, TrainingDiverged
from tunesmith.runs.run import Run, hash_file
from tunesmith.training import checkpoint
from tunesmith.training.job import read_journal


def tensors() -> dict[str, torch.Tensor]:
    return {"adapter.a": torch.randn(3, 4), "random.cpu": torch.get_rng_state()}


def test_round_trip_is_exact_and_newest_comes_first(tmp_path: Path) -> None:
    made = tensors()
    checkpoint.save(tmp_path, 9, {"adapter.a": torch.zeros(1)}, {})
    checkpoint.save(tmp_path, 10, made, {"progress": {"seconds": 0.1 + 0.2}})
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (10, [])
    assert found.state["progress"]["seconds"] == 0.1 + 0.2
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in made.items())


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, harm: str) -> None:
    checkpoint.save(tmp_path, 1, tensors(), {})
    path = checkpoint.save(tmp_path, 2, tensors(), {}) / name
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data = data[: len(data) // 2] if harm == "cut" else data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]
        path.write_bytes(bytes(data))
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (1, [2])


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        checkpoint.save(tmp_path, step, {"a": torch.zeros(1)}, {})
    checkpoint.prune(tmp_path, 2, best=1)
    assert checkpoint.steps(tmp_path) == [5, 4, 1]


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_optimizer_state_survives(kind: str) -> None:
    from tunesmith.training import optimizers

    def run(reload_at: int) -> torch.Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(64, 128))
        optimizer = getattr(optimizers, kind)([weight], 1e-2, 0.1)
        for step in range(6):
            weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(step))
            optimizer.step()
            if step == reload_at:
                packed, plain = checkpoint.pack_optimizer(optimizer)
                packed = {name: tensor.clone() for name, tensor in packed.items()}
                optimizer = getattr(optimizers, kind)([weight], 1e-2, 0.1)
                checkpoint.unpack_optimizer(optimizer, packed, json.loads(json.dumps(plain)))
        return weight.detach()

    assert torch.equal(run(reload_at=2), run(reload_at=99))


def test_paged_optimizer_needs_a_gpu() -> None:
    from tunesmith.training import optimizers

    with pytest.raises(RecipeError, match="needs a CUDA device"):
        optimizers.paged_adamw_8bit([torch.nn.Parameter(torch.zeros(2))], 1e-3, 0.0)


def prepared(path: Path, folder: Path) -> tuple[Recipe, Run]:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    return recipe, run


class Stop:
    """Ends a training at one step, in a way that a test chooses."""

    def __init__(self, step: int, action: Callable[[], Any]) -> None:
        self.step, self.action = step, action

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == self.step:
            self.action()


def adapter_hash(run: Run) -> str:
    return hash_file(run / "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_ctrl_c_keeps_everything_and_the_same_command_goes_on(
    recipe_file: Callable[..., Path], tmp_path: Path, optimizer: str
) -> None:
    import signal

    settings = {"train__optimizer": optimizer, "adapter__dropout": 0.1, "train__epochs": 1}
    recipe, whole = prepared(recipe_file(**settings), tmp_path / "whole")
    tunesmith.train(recipe, whole)
    _, run = prepared(recipe_file(**settings), tmp_path / "stopped")
    with pytest.raises(Paused, match=r"stopped after step 3 of 5; everything is kept.*same command again"):
        tunesmith.train(recipe, run, watch=Stop(3, lambda: signal.raise_signal(signal.SIGINT)))
    assert not (run / "adapter").exists()
    tunesmith.train(recipe, run)
    assert adapter_hash(run) == adapter_hash(whole)
    steps = [e["step"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "step"]
    assert steps == [1, 2, 3, 4, 5]
    same = [[e["loss"] for e in read_journal(r / "journal.jsonl") if e["kind"] == "step"] for r in (run, whole)]
    assert same[0] == same[1]


def test_a_damaged_newest_checkpoint_costs_steps_not_the_run(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"train__evaluate_every": 2, "train__keep": 3}
    recipe, whole = prepared(recipe_file(**settings), tmp_path / "whole")
    tunesmith.train(recipe, whole)
    _, run = prepared(recipe_file(**settings), tmp_path / "harmed")

    def crash() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=Stop(5, crash))
    newest = run / "checkpoints" / "step-0000004" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    tunesmith.train(recipe, run)
    assert adapter_hash(run) == adapter_hash(whole)
    notes = [e["text"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "note"]
    assert notes == ["checkpoint 4 is damaged and was skipped"]


def test_another_recipe_does_not_go_on_from_foreign_checkpoints(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    def crash() -> None:
        raise KeyboardInterrupt

    recipe, run = prepared(recipe_file(train__evaluate_every=2), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=Stop(3, crash))
    other, _ = prepared(recipe_file(train__evaluate_every=2, train__learning_rate=5e-3), tmp_path)
    with pytest.raises(RunError, match=r"began with other settings or data: train\.learning_rate changed\."):
        tunesmith.train(other, run)
    tunesmith.train(other, run, again=True)
    assert (run / "adapter").exists()


def test_a_finished_adapter_is_not_overwritten(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe, run = prepared(recipe_file(train__epochs=1), tmp_path)
    said: list[str] = []
    tunesmith.train(recipe, run)
    before = adapter_hash(run)
    tunesmith.train(recipe, run, said.append)
    assert said == [f"train: up to date, {run / 'adapter'} is kept"]
    other, _ = prepared(recipe_file(train__epochs=2), tmp_path)
    with pytest.raises(RunError, match=r"train\.epochs changed.*--again"):
        tunesmith.train(other, run)
    assert adapter_hash(run) == before
    tunesmith.train(other, run, again=True)
    kept = list((run / "old").glob("*/adapter/adapter_model.safetensors"))
    assert [hash_file(path) for path in kept] == [before]


def test_a_full_disk_keeps_the_last_checkpoint(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import safetensors.torch

    recipe, whole = prepared(recipe_file(train__evaluate_every=2), tmp_path / "whole")
    tunesmith.train(recipe, whole)
    _, run = prepared(recipe_file(train__evaluate_every=2), tmp_path / "full")
    real = safetensors.torch.save_file

    def full(tensors: Any, path: Any, **rest: Any) -> None:
        if "0000004" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **rest)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ResourceError, match=r"disk is full; finished work is kept.*to resume"):
        tunesmith.train(recipe, run)
    assert checkpoint.steps(run / "checkpoints") == [2]
    assert not list((run / "checkpoints").glob(".*"))
    monkeypatch.undo()
    tunesmith.train(recipe, run)
    assert adapter_hash(run) == adapter_hash(whole)


def test_a_loss_that_is_no_number_ends_the_run_and_is_never_kept(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.models.fuse import FusedDecoder

    recipe, run = prepared(recipe_file(train__evaluate_every=2), tmp_path)
    real = FusedDecoder.step
    calls = iter(range(1000))

    def step(self: Any, flat: Any, share: Any) -> Any:
        bad = next(calls) == 4
        total = real(self, flat, share * float("nan") if bad else share)
        return total * float("nan") if bad else total

    monkeypatch.setattr(FusedDecoder, "step", step)
    with pytest.raises(TrainingDiverged, match=r"the loss is nan .* at step 5.*learning_rate"):
        tunesmith.train(recipe, run)
    assert checkpoint.steps(run / "checkpoints") == [4, 2]
    assert all(e["loss"] == e["loss"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "step")


def test_early_stopping_keeps_the_best(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe, run = prepared(
        recipe_file(train__epochs=30, train__learning_rate=0.05, train__patience=2, train__evaluate_every=3), tmp_path
    )
    tunesmith.train(recipe, run)
    events = read_journal(run / "journal.jsonl")
    valid = {e["step"]: e["loss"] for e in events if e["kind"] == "valid" and e["step"]}
    end = next(e for e in events if e["kind"] == "end")
    assert end["steps"] < 150
    assert end["best_step"] == min(valid, key=lambda step: valid[step]) < end["steps"]
    best = checkpoint.load(run / "checkpoints", end["best_step"])
    from tunesmith.models.adapter import read_adapter

    assert best is not None
    _, kept = read_adapter(run / "adapter")
    assert all(torch.equal(best.tensors[f"adapter.{name}"], tensor) for name, tensor in kept.items())


def test_slow_steps_are_saved_by_the_clock(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.training.engines import native

    monkeypatch.setattr(native, "SAVE_SECONDS", 0.0)
    recipe, run = prepared(recipe_file(train__evaluate_every=100, train__keep=100), tmp_path)
    tunesmith.train(recipe, run)
    assert checkpoint.steps(run / "checkpoints") == list(range(10, 0, -1))
