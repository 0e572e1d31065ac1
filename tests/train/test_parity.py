"""The native engine, TRL's and a plain transformers and PEFT loop: the same loss on the same batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith import verbs
from tunesmith.data.conversation import read_rows
from tunesmith.model.build import add_adapter, load
from tunesmith.model.weights import fetch
from tunesmith.prompt import pack
from tunesmith.prompt.template import load_template, load_tokenizer
from tunesmith.prompt.tokens import encode
from tunesmith.recipe import Recipe, read_recipe
from tunesmith.run import Run
from tunesmith.train.journal import read_journal

SETTINGS = {
    "train__epochs": 4,
    "train__schedule": "linear",
    "train__warmup": 0,
    "train__learning_rate": 3e-3,
    "train__weight_decay": 0.01,
    "train__evaluate_every": 50,
    "data__split": {"by": "rows", "test": 0.1, "valid": 0.34},
}


def trained(recipe: Recipe, folder: Path) -> tuple[Run, list[dict[str, Any]]]:
    run = verbs.open_run(recipe, folder)
    verbs.prepare(recipe, run)
    verbs.train(recipe, run)
    return run, read_journal(run / "journal.jsonl")


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["kind"] == "step"]


def reference_losses(recipe: Recipe, run: Run) -> list[float]:
    """Stock transformers, stock PEFT, torch's AdamW; the dequantised base in plain layers, the same start and order."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    weights = fetch(recipe.base.model)
    own = load(weights, bits=4, device="cpu", precision="float32")
    matrices = {name: layer.matrix() for name, layer in own.frozen().items()}
    add_adapter(own, rank=recipe.adapter.rank, alpha=recipe.adapter.alpha, layers="all", dropout=0, seed=recipe.seed)
    plain = AutoModelForCausalLM.from_pretrained(weights.folder, dtype=torch.float32)
    for name, matrix in matrices.items():
        plain.get_submodule(name).weight.data = matrix.clone()
    config = LoraConfig(r=recipe.adapter.rank, lora_alpha=recipe.adapter.alpha, target_modules=list(matrices))
    network = get_peft_model(plain, config)
    for name, layer in own.lora.items():
        network.base_model.model.get_submodule(name).lora_A["default"].weight.data = layer.lora_A.data.clone()
    tokenizer = load_tokenizer(weights.folder)
    template = load_template(tokenizer, "model", weights.folder)
    examples = [encode(row, template) for row in read_rows(run / "data/train.jsonl")]
    plan = [
        rows
        for epoch in range(recipe.train.epochs)
        for rows in pack.steps(list(map(len, examples)), recipe.train.batch, recipe.seed, epoch)
    ]
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=3e-3, weight_decay=recipe.train.weight_decay
    )
    found = []
    for step, rows in enumerate(plan):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / len(plan))
        batch = pack.collate([examples[row] for row in rows], 0)
        out = network(
            input_ids=torch.tensor(batch.ids),
            attention_mask=torch.tensor(batch.mask),
            labels=torch.tensor(batch.labels),
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(out.loss.item())
    return found


@pytest.mark.parametrize("batch", ["4 rows"])
def test_three_ways_one_loss(recipe_file: Callable[..., Path], tmp_path: Path, batch: str) -> None:
    recipe = read_recipe(str(recipe_file(**SETTINGS, train__batch=batch)))
    run, events = trained(recipe, tmp_path / "native")
    native = losses(events)
    assert len(native) >= 20
    assert native[-1] < native[0] - 0.5  # something was learnt, so the later steps compare trained adapters
    other = read_recipe(str(recipe_file(**SETTINGS, train__batch=batch, train__engine="trl")))
    trl_run, trl_events = trained(other, tmp_path / "trl")
    assert losses(trl_events) == pytest.approx(native, abs=1e-3)
    assert reference_losses(recipe, run) == pytest.approx(native, abs=1e-3)
    valid = [[e["loss"] for e in found if e["kind"] == "valid"] for found in (events, trl_events)]
    assert valid[0][0] == pytest.approx(valid[1][0], abs=1e-3)
    assert {p.name for p in (trl_run / "adapter").iterdir()} == {p.name for p in (run / "adapter").iterdir()}


def test_micro_batches_do_not_change_the_gradient(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = read_recipe(str(recipe_file(train__epochs=1, train__learning_rate=1e-3)))
    _, whole = trained(recipe, tmp_path / "a")
    tight = read_recipe(str(recipe_file(train__epochs=1, train__learning_rate=1e-3, train__memory="953MB")))
    run, parts = trained(tight, tmp_path / "b")
    assert run.read_json("plan.json")["micro_tokens"] < 300  # the budget really splits the step
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
