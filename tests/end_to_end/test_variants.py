"""Each variant of the adapter through the commands: trained by both engines, stopped and gone on with, read again.

The engines are compared on the same rows from the same start, so their losses differ by rounding alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from stopping import at, crash
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.data.conversation import read_rows
from tunesmith.errors import RecipeError
from tunesmith.models.adapter import load_adapter
from tunesmith.models.build import load_model
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt import pack
from tunesmith.prompt.template import load_template, load_tokenizer
from tunesmith.prompt.tokens import encode
from tunesmith.runs.run import Run, hash_file
from tunesmith.training.autograd_step import sum_cross_entropy
from tunesmith.training.job import read_journal

QUICK = {  # 10 steps; two rows are compared, by loss alone
    "train__schedule": "linear",
    "train__checkpoint_every": 5,
    "train__learning_rate": 3e-3,
    "evaluate__metrics": ["loss"],
    "evaluate__rows": 2,
    "evaluate__max_new_tokens": 2,
}
WHOLE = ["embeddings", "head"]
VARIANTS: dict[str, dict[str, Any]] = {
    "rs": {"adapter__scaling": "rs"},
    "dora": {"adapter__dora": True},
    "dora-16": {"adapter__dora": True, "base__bits": 16},
    "pissa": {"adapter__start": "pissa"},
    "pissa-rs-dora-16": {
        "adapter__start": "pissa",
        "adapter__scaling": "rs",
        "adapter__dora": True,
        "base__bits": 16,
    },
    "loftq": {"adapter__start": "loftq"},
    "lora+": {"adapter__rate_ratio": 4},
    "whole": {"adapter__train_also": WHOLE},
    "head": {"adapter__train_also": ["head"], "family": "untied"},
    "bias-lora+": {"adapter__bias": "lora_only", "adapter__rate_ratio": 4, "family": "gpt2"},
    "all-16": {
        "adapter__start": "pissa",
        "adapter__dora": True,
        "adapter__train_also": WHOLE,
        "adapter__bias": "all",
        "adapter__rate_ratio": 2,
        "base__bits": 16,
        "family": "gpt2",
    },
}
SAID: dict[str, dict[str, Any]] = {  # what adapter_config.json must say, beside PEFT's defaults
    "rs": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora-16": {"use_dora": True},
    "pissa": {"r": 8, "lora_alpha": 16},
    "pissa-rs-dora-16": {"r": 8, "use_rslora": True, "use_dora": True},
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "head": {"modules_to_save": ["lm_head"]},
    "bias-lora+": {"bias": "lora_only"},
    "all-16": {"r": 8, "use_dora": True, "bias": "all", "modules_to_save": ["wte", "lm_head"]},
}
NOT_BY_TRL = ("dora", "pissa")  # over NF4; see test_trl_refuses_what_reads_packed_codes


@pytest.fixture
def recipe_of(recipe_file: Callable[..., Path], tiny: Callable[..., Path]) -> Callable[..., Recipe]:
    """recipe_of(variant, **changes) -> a recipe of a few quick steps."""

    def write(variant: str, **changes: Any) -> Recipe:
        settings = {**QUICK, **VARIANTS[variant], **changes}
        if settings.get("family") == "untied":
            settings |= {"family": "llama", "base__model": str(tiny("llama", tie_word_embeddings=False))}
        if settings.get("family") == "gpt2":  # it has dropout of its own, and the engines draw in another order
            settings["base__model"] = str(tiny("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))
        return read_recipe(str(recipe_file(**settings)))

    return write


def prepared(recipe: Recipe, folder: Path) -> Run:
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    return run


def trained(recipe: Recipe, folder: Path) -> Run:
    run = prepared(recipe, folder)
    tunesmith.train(recipe, run)
    return run


def losses(run: Run, kind: str = "step") -> list[float]:
    return [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == kind]


def loss_of_the_saved(recipe: Recipe, run: Run) -> float:
    """The validation rows' mean loss under the base with the adapter that lies in the run's folder."""
    weights = fetch_weights(recipe.base.model)
    model = load_model(weights, bits=recipe.base.bits, device="cpu", precision="float32")
    load_adapter(model, run / "adapter")
    template = load_template(load_tokenizer(weights.folder), "model", weights.folder)
    batch = pack.collate([encode(row, template) for row in read_rows(run / "data/valid.jsonl")], 0)
    with torch.no_grad():
        return sum_cross_entropy(model, batch).item() / batch.loss_tokens


ALWAYS = ("dora", "pissa", "lora+", "head")  # the others by name: pytest -m slow


@pytest.mark.parametrize(
    "variant", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_each_variant_is_trained_saved_read_back_and_compared(
    recipe_of: Callable[..., Recipe], tmp_path: Path, variant: str
) -> None:
    recipe = recipe_of(variant)
    run = trained(recipe, tmp_path / "native")
    native = losses(run)
    assert len(native) == 10
    assert sum(native[-3:]) / 3 < sum(native[:3]) / 3 - 0.1
    assert loss_of_the_saved(recipe, run) == pytest.approx(min(losses(run, "valid")[1:]), abs=1e-5)
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert {key: config[key] for key in SAID.get(variant, {})} == SAID.get(variant, {})
    tunesmith.evaluate(recipe, run)
    for section in run.read_json("scores.json")["sections"].values():
        assert section["loss"]["tuned"] < section["loss"]["base"]
    if variant in NOT_BY_TRL:
        return
    trl_run = trained(recipe_of(variant, train__engine="trl"), tmp_path / "trl")
    assert losses(trl_run) == pytest.approx(native, abs=1e-3)
    assert (trl_run / "adapter/adapter_config.json").read_text() == (run / "adapter/adapter_config.json").read_text()
    saved = [load_file(folder / "adapter/adapter_model.safetensors") for folder in (run, trl_run)]
    assert saved[0].keys() == saved[1].keys()
    for name, tensor in saved[0].items():
        near = 0.05 if name.endswith(".bias") else 0.01  # a key's bias has no gradient but rounding, which Adam follows
        assert (saved[1][name] - tensor).norm() <= near * tensor.norm() + 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "engine"),
    [("pissa", "native"), ("whole", "native"), ("whole", "trl"), ("pissa-rs-dora-16", "trl")],
)
def test_a_stopped_run_goes_on_to_the_uninterrupted_ones_adapter(
    recipe_of: Callable[..., Recipe], tmp_path: Path, variant: str, engine: str
) -> None:
    recipe = recipe_of(variant, train__engine=engine)
    whole, run = trained(recipe, tmp_path / "whole"), prepared(recipe, tmp_path / "stopped")

    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=at("step", 7, crash))
    tunesmith.train(recipe, run)
    assert [event["step"] for event in read_journal(run / "journal.jsonl") if event["kind"] == "resume"] == [5]
    files = [folder / "adapter/adapter_model.safetensors" for folder in (run, whole)]
    assert hash_file(files[0]) == hash_file(files[1])


@pytest.mark.parametrize(("variant", "where"), [("dora", "adapter.dora"), ("pissa", "adapter.start")])
def test_trl_refuses_what_reads_packed_codes(
    recipe_of: Callable[..., Recipe], tmp_path: Path, variant: str, where: str
) -> None:
    recipe = recipe_of(variant, train__engine="trl")
    run = prepared(recipe, tmp_path)
    with pytest.raises(RecipeError, match=f"cannot do {variant} over NF4.*engine to native, or base.bits to 16") as no:
        tunesmith.train(recipe, run)
    assert no.value.where == where
    assert not (run / "adapter").exists()
