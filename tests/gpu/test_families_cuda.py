"""Families on a CUDA device: experts in 4 bits, text halves, hybrid layers. Run by name: pytest -m gpu tests/gpu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from families import FAMILY, make_family
from tunesmith.config.recipe import read_recipe
from tunesmith.models.build import load_model
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.training.autograd_step import sum_cross_entropy
from tunesmith.training.job import read_journal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
NAMES = [
    "qwen3_moe",
    "gpt_oss",
    "mixtral",
    "gemma3",
    "gemma4",
    "qwen3_5",
    "qwen3_vl",
    "lfm2",
    "granite4_moe",
    "olmo3",
    "glm4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_learns_and_is_compared(recipe_file: Callable[..., Path], tmp_path: Path, name: str) -> None:
    base = make_family(tmp_path / "base", name)
    settings: dict[str, Any] = {"train__precision": "auto", "train__epochs": 3, "evaluate__metrics": ["loss", "stops"]}
    recipe = read_recipe(str(recipe_file(base__model=str(base), **settings)))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    for command in (tunesmith.prepare, tunesmith.train, tunesmith.evaluate):
        command(recipe, run)
    losses = [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == "step"]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.6
    plan = run.read_json("plan.json")
    assert plan["measured"] < plan["peak"] * 1.5 + (256 << 20)


@pytest.mark.parametrize("name", FAMILY)
def test_a_familys_loss_is_the_processors(tmp_path: Path, name: str) -> None:
    weights = fetch_weights(str(make_family(tmp_path / "base", name)))
    draw = torch.Generator().manual_seed(1)
    ids = tuple(int(each) for each in torch.randint(10, 250, (48,), generator=draw))
    batch = pack.collate([Example("r", ids, (False,) * 20 + (True,) * 28, ids[-1])], 0)
    losses = []
    for device in ("cpu", "cuda"):
        model = load_model(weights, bits=4, device=device, precision="float32")
        with torch.no_grad():
            losses.append(sum_cross_entropy(model, batch).item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
