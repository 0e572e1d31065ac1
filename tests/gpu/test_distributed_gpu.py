"""Two GPUs train one run: the same loss as one GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.config.recipe import read_recipe
from tunesmith.models.adapter import read_adapter
from tunesmith.runs.run import Run
from tunesmith.training.job import read_journal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")]
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
ALIKE = {  # of the losses; a sharded base is trained by autograd, which rounds elsewhere than the fused engine
    ("float32", "ddp"): 1e-5, ("bfloat16", "ddp"): 2e-3,
    ("float32", "fsdp"): 1e-4, ("bfloat16", "fsdp"): 1e-2,
}  # fmt: skip


def prepared(path: Path, runs: Path) -> Run:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, runs)
    tunesmith.prepare(recipe, run)
    return run


def losses(run: Run, kind: str) -> list[float]:
    return [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == kind]


@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_gpus_make_the_loss_of_one(
    recipe_file: Callable[..., Path], tiny: Callable[..., Path], tmp_path: Path, precision: str, spread: str
) -> None:
    changes: dict[str, Any] = {"train__precision": precision, "train__parallel": spread, "train__learning_rate": 1e-3}
    path = recipe_file(base__model=str(tiny("llama", **SHAPE)), **changes)
    one, two = (prepared(path, tmp_path / name) for name in ("one", "two"))
    tunesmith.train(read_recipe(str(path)), one)
    command = [sys.executable, "-m", "tunesmith", "train", str(path), "--runs", str(tmp_path / "two"), "--gpus", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    how = "each with a part" if spread == "fsdp" else "each with all"
    assert f"2 processes train together, {how} of the base" in done.stdout
    for kind in ("step", "valid"):
        assert losses(two, kind) == pytest.approx(losses(one, kind), abs=ALIKE[precision, spread])
    (_, wanted), (_, found) = (read_adapter(run / "adapter") for run in (one, two))
    error = sum(((found[name] - each) ** 2).sum() for name, each in wanted.items())
    most = 0.1 if precision == "bfloat16" else 1e-3 if spread == "ddp" else 1e-2
    assert (error / sum((each**2).sum() for each in wanted.values())) ** 0.5 < most
