"""Checkpoints stored in NF4: loading in the training dtype, training with and without fused blocks, exporting."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

import tunesmith
from adapters import BASIC, IDS, grad_of
from gguf_models import make_convertible
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import ModelError
from tunesmith.kernels import base_weights
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.fuse import FusedDecoder, flat_batch
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt.pack import pack_examples
from tunesmith.prompt.tokens import Example
from tunesmith.training.job import read_journal

TYPES = ["float32", "bfloat16", "float16"]
NOISE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}  # of a loss of 5.6 nats


@pytest.fixture(scope="module")
def stored(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """stored(double) -> the folder of a tiny llama, quantized by bitsandbytes for products in bfloat16."""
    folders: dict[str, Path] = {}

    def get(*, double: bool = True, skip: tuple[str, ...] = ()) -> Path:
        key = f"{double} {skip}"
        if key not in folders:
            wish = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
                bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=[*skip, "lm_head"] if skip else None,
            )  # fmt: skip
            network = AutoModelForCausalLM.from_pretrained(tiny_base, quantization_config=wish, dtype=torch.bfloat16)
            folders[key] = tmp_path_factory.mktemp("stored")
            network.save_pretrained(folders[key])
            AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folders[key])
        return folders[key]

    return get


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("base"))


def adapted(folder: Path, precision: str) -> Model:
    model = load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision=precision)
    add_adapter(model, **BASIC)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def by_autograd(model: Model) -> tuple[float, dict[str, Tensor]]:
    loss = model.network(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: grad_of(parameter).clone() for name, parameter in model.trainable().items()}


def matrices(folder: Path) -> dict[str, Tensor]:
    """Returns the dequantized weights in float64, by definition: each code's value times its block's scale."""
    from bitsandbytes.functional import dequantize_blockwise

    result = {}
    for name, layer in (
        load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision="float32").frozen().items()
    ):
        state, codes = layer.state, layer.weight.reshape(-1).long()
        numbers = state.code.double()[torch.stack([codes >> 4, codes & 15], 1).reshape(-1)]
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        result[name] = (numbers.view(-1, state.blocksize) * scales.double()[:, None]).view(state.shape)
    return result


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("precision", TYPES)
def test_everything_has_the_dtype_of_the_products(stored: Callable[..., Path], precision: str, double: bool) -> None:
    model = load_model(fetch_weights(str(stored(double=double))), bits=4, device="cpu", precision=precision)
    wanted, exact = getattr(torch, precision), matrices(stored(double=double))
    for name, layer in model.frozen().items():
        assert layer.weight.dtype == torch.uint8 and layer.matrix().dtype == wanted
        torch.testing.assert_close(layer.matrix().double(), exact[name], rtol=8e-3, atol=1e-6)
    others = [p for p in model.network.parameters() if p.dtype != torch.uint8]
    assert others and {p.dtype for p in others} == {wanted}


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("precision", TYPES)
def test_forward_and_backward(stored: Callable[..., Path], precision: str, double: bool) -> None:
    loss, gradients = by_autograd(adapted(stored(double=double), precision))
    exact, expected = by_autograd(adapted(stored(double=double), "float32"))
    assert loss == pytest.approx(exact, abs=NOISE[precision])
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32 and torch.isfinite(gradient).all()
        assert torch.dist(gradient, expected[name]) < 0.05 * expected[name].norm() + 1e-6, name


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("form", ["stored", "dense"])
def test_fused(stored: Callable[..., Path], precision: str, double: bool, form: Any) -> None:
    model = adapted(stored(double=double), precision)
    exact, _ = by_autograd(adapted(stored(double=double), "float32"))
    fused = FusedDecoder(model, longest=24, forms=(form,) * 2)
    examples = [Example(str(at), tuple(ids), (True,) * len(ids), ids[-1]) for at, ids in enumerate(IDS.tolist())]
    fused.refresh()
    batch = flat_batch(pack_examples(examples, 0), 24, torch.device("cpu"))
    with torch.no_grad():
        loss = fused.loss(batch).item() / len(batch.chosen)
    assert loss == pytest.approx(exact, abs=NOISE[precision])


def test_layers_that_stayed_in_16_bits(stored: Callable[..., Path]) -> None:
    """Checkpoints often leave some layers unquantized; a joined product then has codes and plain weights."""
    folder = stored(skip=("k_proj", "down_proj"))
    exact, _ = by_autograd(adapted(folder, "float32"))
    model = adapted(folder, "float32")
    assert {name.rsplit(".", 1)[-1] for name, layer in model.lora.items() if layer.base.state is None} == {
        "k_proj", "down_proj",
    }  # fmt: skip
    fused = FusedDecoder(model, longest=24, forms=("stored",) * 2)
    examples = [Example(str(at), tuple(ids), (True,) * len(ids), ids[-1]) for at, ids in enumerate(IDS.tolist())]
    fused.refresh()
    batch = flat_batch(pack_examples(examples, 0), 24, torch.device("cpu"))
    with torch.no_grad():
        assert fused.loss(batch).item() / len(batch.chosen) == pytest.approx(exact, abs=1e-5)


def test_layers_quantized_in_two_ways_are_not_joined(stored: Callable[..., Path]) -> None:
    first, second = (
        load_model(fetch_weights(str(stored(double=d))), bits=4, device="cpu", precision="float32")
        for d in (True, False)
    )
    states = [next(iter(model.frozen().values())).state for model in (first, second)]
    assert base_weights.same_nf4_layout(states[:1] * 2) and not base_weights.same_nf4_layout(states)


@pytest.mark.parametrize("dropout", [0.0, 0.01], ids=["fused", "autograd"])
def test_a_run(stored: Callable[..., Path], recipe_file: Callable[..., Path], tmp_path: Path, dropout: float) -> None:
    """A run is trained, evaluated and merged; losses in bfloat16 equal those in float32 within rounding noise."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        recipe = read_recipe(
            str(
                recipe_file(
                    base__model=str(stored()), train__precision=precision, adapter__dropout=dropout, train__epochs=1,
                    evaluate__rows=2, evaluate__max_new_tokens=4, export__files=["merged"],
                )
            )
        )  # fmt: skip
        run = tunesmith.open_run(recipe, tmp_path / precision)
        tunesmith.prepare(recipe, run)
        plan = tunesmith.plan(recipe, run)
        assert bool(plan.forms) == (dropout == 0.0) and plan.step_seconds and plan.total_seconds
        tunesmith.train(recipe, run)
        losses[precision] = [e["loss"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "step"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.05)
    tunesmith.evaluate(recipe, run)
    tunesmith.export(recipe, run)
    folder = next(path.parent for path in (run / "export").rglob("*.safetensors"))
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert "quantization_config" not in merged.config.to_dict()
    assert merged.model.layers[0].self_attn.q_proj.weight.shape == (64, 64)


@pytest.mark.slow
def test_a_run_to_a_verified_gguf(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    base, folder = make_convertible(tmp_path / "base"), tmp_path / "stored"
    wish = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(base, quantization_config=wish, dtype=torch.float16).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    recipe = read_recipe(
        str(
            recipe_file(
                base__model=str(folder), train__epochs=8, evaluate__rows=2, evaluate__max_new_tokens=4,
                export__files=[{"gguf": {"types": ["f16"]}}],
            )
        )
    )  # fmt: skip
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    for verb in (tunesmith.prepare, tunesmith.train, tunesmith.evaluate, tunesmith.export):
        verb(recipe, run)
    (entry,) = run.read_json("export.json")["files"]
    assert entry["problems"] == []


def test_16_bits_of_a_4_bit_checkpoint_are_refused_before_work(
    stored: Callable[..., Path], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = read_recipe(str(recipe_file(base__model=str(stored()), base__bits=16)))
    with pytest.raises(ModelError, match=r"stored in 4 bits \(nf4\).*Set base\.bits to 4"):
        tunesmith.prepare(recipe, tunesmith.open_run(recipe, tmp_path / "runs"))
