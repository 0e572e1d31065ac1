"""The native engine, TRL's and a plain transformers and PEFT loop: the same loss on the same batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.data.conversation import read_rows
from tunesmith.models.build import add_adapter, load_model
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt import pack
from tunesmith.prompt.template import load_template, load_tokenizer
from tunesmith.prompt.tokens import encode
from tunesmith.runs.run import Run
from tunesmith.training.job import read_journal

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
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, run)
    return run, read_journal(run / "journal.jsonl")


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["kind"] == "step"]


def reference_losses(recipe: Recipe, run: Run) -> list[float]:
    """Stock transformers, stock PEFT, torch's AdamW; the dequantised base in plain layers, the same start and order."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    weights = fetch_weights(recipe.base.model)
    own = load_model(weights, bits=4, device="cpu", precision="float32")
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
        for rows in pack.epoch_steps(list(map(len, examples)), recipe.train.batch, recipe.seed, epoch)
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
    assert native[-1] < native[0] - 0.5  # the adapters have changed, so the later steps compare trained adapters
    other = read_recipe(str(recipe_file(**SETTINGS, train__batch=batch, train__engine="trl")))
    trl_run, trl_events = trained(other, tmp_path / "trl")
    assert losses(trl_events) == pytest.approx(native, abs=1e-4)
    assert reference_losses(recipe, run) == pytest.approx(native, abs=1e-3)
    valid = [[e["loss"] for e in found if e["kind"] == "valid"] for found in (events, trl_events)]
    assert valid[0] == pytest.approx(valid[1], abs=1e-4)
    assert {p.name for p in (trl_run / "adapter").iterdir()} == {p.name for p in (run / "adapter").iterdir()}


def test_micro_batches_do_not_change_the_gradient(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = read_recipe(str(recipe_file(train__epochs=1, train__learning_rate=1e-3)))
    _, whole = trained(recipe, tmp_path / "a")
    tight = read_recipe(str(recipe_file(train__epochs=1, train__learning_rate=1e-3, train__memory="1687MB")))
    run, parts = trained(tight, tmp_path / "b")
    assert run.read_json("plan.json")["micro_tokens"] < 300  # the budget really splits the step
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi3"])
def test_the_whole_models_gradient_against_float64(tiny: Callable[..., Path], family: str) -> None:
    """Our float32 gradient of every adapter tensor, judged beside what plain autograd in float32 gets."""
    from torch.nn import functional

    from tunesmith.models.qlora import LoraLinear
    from tunesmith.training.autograd_step import sum_cross_entropy

    model = load_model(fetch_weights(str(tiny(family))), bits=4, device="cpu", precision="float32")
    add_adapter(model, rank=4, alpha=8, layers="all", dropout=0, seed=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    ids = [[index % 250 + 5 for index in range(start, start + 24)] for start in (3, 90)]
    labels = [[-100] * 9 + row[9:] for row in ids]
    sum_cross_entropy(model, pack.Batch(ids, [[1] * 24] * 2, labels)).backward()
    ours = {name: p.grad.double() for name, p in model.trainable().items() if p.grad is not None}
    matrices = {name: (layer.base.matrix(), layer.base.bias) for name, layer in model.lora.items()}

    def plain(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        model.network.zero_grad()
        model.network.to(dtype)
        for name, layer in model.lora.items():
            matrix, bias = (None if part is None else part.to(dtype) for part in matrices[name])

            def forward(x: torch.Tensor, own: LoraLinear = layer, w: Any = matrix, b: Any = bias) -> torch.Tensor:
                return functional.linear(x, w, b) + functional.linear(x @ own.lora_A.T, own.lora_B) * own.scale

            layer.forward = forward  # type: ignore[method-assign]
        logits = model.network(input_ids=torch.tensor(ids)).logits[:, :-1].to(dtype)
        functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(labels)[:, 1:].flatten(), reduction="sum"
        ).backward()
        return {name: p.grad.double().clone() for name, p in model.trainable().items() if p.grad is not None}

    single, exact = plain(torch.float32), plain(torch.float64)
    assert ours.keys() == exact.keys() == model.trainable().keys()
    for name, wanted in exact.items():
        error, other = ((found[name] - wanted).norm() / wanted.norm() for found in (ours, single))
        assert error <= 2 * other + 1e-6, name
        assert error < 1e-4, name
