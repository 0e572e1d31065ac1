"""What only a CUDA device can show. Run by name: pytest -m gpu tests/gpu."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from stopping import at, interrupt
from tiny import FAMILIES
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import Paused, ResourceError
from tunesmith.models.fuse import FusedDecoder
from tunesmith.runs.run import Run
from tunesmith.training.job import read_journal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def prepared(path: Path, folder: Path) -> tuple[Recipe, Run]:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    return recipe, run


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == "step"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_bfloat16(recipe_file: Callable[..., Path], tmp_path: Path, family: str) -> None:
    recipe, run = prepared(recipe_file(family, train__precision="auto", train__epochs=3), tmp_path)
    tunesmith.train(recipe, run)
    tunesmith.evaluate(recipe, run)
    assert run.read_json("machine.json")["precision"] == "bfloat16"
    found = losses(run)
    assert sum(found[-3:]) < sum(found[:3]) - 0.9
    assert run.read_json("scores.json")["sections"]["all"]["loss"]["verdict"] == "better"


@pytest.mark.parametrize("way", [{}, {"adapter__dropout": 0.1}, {"train__engine": "trl"}], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_optimizers_and_going_on(
    recipe_file: Callable[..., Path], tmp_path: Path, optimizer: str, way: dict[str, Any]
) -> None:
    """With rank 64 the tiny model's matrices are large enough for 8-bit states."""
    path = recipe_file(train__optimizer=optimizer, train__epochs=3, adapter__rank=64, **way)
    recipe, whole = prepared(path, tmp_path / "whole")
    tunesmith.train(recipe, whole)
    _, run = prepared(path, tmp_path / "stopped")

    with pytest.raises(Paused):
        tunesmith.train(recipe, run, watch=at("step", 6, interrupt))
    tunesmith.train(recipe, run)
    assert losses(run) == pytest.approx(losses(whole), abs=1e-4)
    assert losses(run)[-1] < losses(run)[0] - 0.5


def test_a_resumed_paged_optimizer_is_paged_again() -> None:
    from tunesmith.training import checkpoint
    from tunesmith.training.optimizers import paged_adamw_8bit

    def made() -> Any:
        torch.manual_seed(0)
        part = torch.nn.Parameter(torch.randn(512, 512, device="cuda"))  # pages from 100,000 elements on
        optimizer = paged_adamw_8bit([part], 1e-2, 0.0)
        part.grad = torch.randn(512, 512, device="cuda")
        optimizer.step()
        return part, optimizer

    (_part, whole), (_other_part, other) = made(), made()
    tensors, plain = checkpoint.pack_optimizer(whole)
    checkpoint.unpack_optimizer(other, {name: tensor.cpu() for name, tensor in tensors.items()}, plain)
    (state,) = other.state.values()
    (wanted,) = whole.state.values()
    for key in ("state1", "state2"):
        assert state[key].is_paged and wanted[key].is_paged
        assert torch.equal(state[key].cpu(), wanted[key].cpu())
    other.step()


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_float16_with_loss_scaling(recipe_file: Callable[..., Path], tmp_path: Path, engine: str) -> None:
    recipe, run = prepared(recipe_file(train__precision="float16", train__epochs=3, train__engine=engine), tmp_path)
    tunesmith.train(recipe, run)
    assert losses(run)[-1] < losses(run)[0] - 0.5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_engines_agree(recipe_file: Callable[..., Path], tmp_path: Path, precision: str) -> None:
    found = []
    for engine in ("native", "trl"):
        path = recipe_file(train__precision=precision, train__engine=engine, train__learning_rate=1e-3)
        recipe, run = prepared(path, tmp_path / engine)
        tunesmith.train(recipe, run)
        found.append(losses(run))
    assert found[1] == pytest.approx(found[0], abs=1e-3 if precision == "float32" else 0.02)


def test_trl_keeps_to_one_gpu_and_shrinks_its_micro_batches(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    recipe, whole = prepared(recipe_file(train__engine="trl", train__epochs=1), tmp_path / "whole")
    tunesmith.train(recipe, whole)
    _, run = prepared(recipe_file(train__engine="trl", train__epochs=1), tmp_path / "tight")
    real = SFTTrainer.compute_loss

    def greedy(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        assert self.args.n_gpu == 1
        if inputs["input_ids"].numel() > 200:
            torch.empty(1 << 44, device="cuda")  # a real out-of-memory error of the real allocator
        return real(self, model, inputs, *rest, **more)

    monkeypatch.setattr(SFTTrainer, "compute_loss", greedy)
    tunesmith.train(recipe, run)
    assert losses(run) == pytest.approx(losses(whole), abs=1e-4)
    notes = [e["text"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "note"]
    assert notes and all(note.startswith("out of memory: micro-batches now hold") for note in notes)


def test_cuda_and_processor_agree_in_float32(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = prepared(recipe_file(train__learning_rate=1e-3), tmp_path / "cuda")
    tunesmith.train(recipe, run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, other = prepared(recipe_file(train__learning_rate=1e-3), tmp_path / "cpu")
    tunesmith.train(recipe, other)
    assert losses(run) == pytest.approx(losses(other), abs=2e-3)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(
    recipe_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = prepared(recipe_file(train__epochs=1), tmp_path / "whole")
    tunesmith.train(recipe, whole)
    _, run = prepared(recipe_file(train__epochs=1), tmp_path / "tight")
    real, limit = FusedDecoder.step, 200

    def greedy(self: Any, flat: Any, share: Any) -> Any:
        if len(flat.ids) > limit:
            torch.empty(1 << 44, device="cuda")  # a real out-of-memory error of the real allocator
        return real(self, flat, share)

    monkeypatch.setattr(FusedDecoder, "step", greedy)
    tunesmith.train(recipe, run)
    assert losses(run) == pytest.approx(losses(whole), abs=1e-4)
    notes = [e["text"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "note"]
    assert notes and all(note.startswith("out of memory: micro-batches now hold") for note in notes)
    limit = 3
    _, hopeless = prepared(recipe_file(train__epochs=1), tmp_path / "hopeless")
    with pytest.raises(ResourceError, match="does not fit into the GPU's memory"):
        tunesmith.train(recipe, hopeless)


@pytest.mark.parametrize("recompute", ["no", "yes"])
def test_planned_memory_beside_measured(recipe_file: Callable[..., Path], tmp_path: Path, recompute: str) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }
    from tiny import make_model

    folder = make_model(tmp_path / "wide", "llama", **shape)
    path = recipe_file(
        base__model=str(folder),
        train__precision="bfloat16",
        train__recompute=recompute,
        train__batch="32 rows",
        train__epochs=1,
    )
    recipe, run = prepared(path, tmp_path / "runs")
    gc.collect()
    left = torch.cuda.memory_allocated()  # by other tests in this process
    tunesmith.train(recipe, run)
    plan = run.read_json("plan.json")
    planned, measured = plan["peak"], plan["measured"] - left
    print(f"recompute {recompute}: planned {planned >> 20} MiB, measured {measured >> 20} MiB, {left >> 20} before")
    assert 0.8 * planned < measured < 1.1 * planned  # a sixth of so little is what is kept for workspaces
