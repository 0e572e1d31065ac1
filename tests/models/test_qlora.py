"""Frozen layers and LoRA products against float64 and PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adapters import grad_of
from tunesmith.errors import ModelError, RunError
from tunesmith.models.adapter import load_adapter_tensors, peft_config, read_adapter, write_adapter
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.qlora import FrozenLinear, LoraLinear
from tunesmith.models.weights import fetch_weights


def nf4_layer(out: int, inner: int, dtype: torch.dtype, bias: bool = False) -> FrozenLinear:
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(out, inner, dtype=dtype)
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return FrozenLinear.from_nf4(packed, state, torch.randn(out, dtype=dtype) if bias else None)


def dequantized(layer: FrozenLinear) -> Tensor:
    """NF4 with double quantization written out in float64 (arXiv:2305.14314, section 3)."""
    state, packed = layer.state, layer.weight.flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten().long()
    scales = state.state2.code.double()[state.absmax.long()]
    scales *= state.state2.absmax.double().repeat_interleave(state.state2.blocksize)[: len(scales)]
    scales += state.offset.double()
    values = state.code.double()[codes][: state.shape.numel()]
    matrix: Tensor = (values * scales.repeat_interleave(state.blocksize)[: len(values)]).view(state.shape)
    return matrix


SHAPES = [(64, 64), (48, 40), (24, 136), (192, 576), (10, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_dequantized_as_defined(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    layer = nf4_layer(*shape, torch.float32)
    error = (layer.matrix().double() - dequantized(layer)).abs().max()
    assert error <= 1e-6 * dequantized(layer).abs().max()


def test_a_dense_copy_is_the_same_to_the_bit() -> None:
    layer = nf4_layer(48, 40, torch.bfloat16)
    before = layer.matrix().clone()
    layer.keep_dense()
    assert torch.equal(layer.matrix(), before)
    assert layer.matrix() is layer.matrix()


def lora(shape: tuple[int, int], dtype: torch.dtype, bias: bool = True) -> LoraLinear:
    layer = LoraLinear(nf4_layer(*shape, dtype, bias), 4, 8.0, 0.0)
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
    return layer


def reference(layer: LoraLinear, x: Tensor, dy: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Returns forward and gradients of torch's autograd in `dtype`."""
    x = x.detach().to(dtype).requires_grad_()
    a = layer.lora_A.detach().to(dtype).requires_grad_()
    b = layer.lora_B.detach().to(dtype).requires_grad_()
    bias = None if layer.base.bias is None else layer.base.bias.to(dtype)
    y = (
        functional.linear(x, layer.base.matrix().to(dtype), bias)
        + functional.linear(functional.linear(x, a), b) * layer.scale
    )
    y.backward(dy.to(dtype))
    return [y.detach(), grad_of(x), grad_of(a), grad_of(b)]


def ours(layer: LoraLinear, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y.detach(), x.grad, layer.lora_A.grad, layer.lora_B.grad]


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dense", [False, True])
def test_gradients_in_float32_against_float64(shape: tuple[int, int], dense: bool) -> None:
    torch.manual_seed(2)
    layer = lora(shape, torch.float32)
    if dense:
        layer.base.keep_dense()
    x, dy = torch.randn(3, 7, shape[1]), torch.randn(3, 7, shape[0])
    for got, expected in zip(ours(layer, x, dy), reference(layer, x, dy, torch.float64), strict=True):
        assert got.shape == expected.shape
        assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_gradients_in_bfloat16_are_as_good_as_autograds(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    layer = lora(shape, torch.bfloat16)
    x = torch.randn(2, 33, shape[1], dtype=torch.bfloat16)
    dy = torch.randn(2, 33, shape[0], dtype=torch.bfloat16)
    exact = reference(layer, x, dy, torch.float64)
    plain = reference(layer, x, dy, torch.bfloat16)
    for got, autograd, expected in zip(ours(layer, x, dy), plain, exact, strict=True):
        assert relative(got, expected) <= 1.25 * relative(autograd, expected) + 1e-4


def test_dropout_path_has_the_plain_gradient_when_nothing_is_dropped() -> None:
    torch.manual_seed(4)
    layer = lora((48, 40), torch.float32)
    x, dy = torch.randn(5, 40), torch.randn(5, 48)
    expected = ours(layer, x, dy)
    layer.dropout = 1e-12
    for got, exact in zip(ours(layer, x, dy), expected, strict=True):
        assert relative(got, exact.double()) < 1e-5


@pytest.fixture
def model(tiny: Callable[..., Path]) -> Model:
    return load_model(fetch_weights(str(tiny("llama"))), bits=4, device="cpu", precision="bfloat16")


def test_evaluation_does_not_remove_the_gradient(model: Model) -> None:
    """bitsandbytes' layer repacks its weight in evaluation on AVX512-BF16 CPUs."""
    add_adapter(model, rank=4, alpha=8, layers="all", dropout=0, seed=1)
    ids = torch.arange(12)[None]

    def gradient() -> list[Tensor]:
        model.network.zero_grad()
        model.network.train()
        model.network(input_ids=ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.trainable().values() if p.grad is not None]

    before = gradient()
    model.network.eval()
    with torch.no_grad():
        model.network(input_ids=ids)
    after = gradient()
    assert len(before) == len(model.trainable())
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_every_linear_layer_but_the_head_is_frozen_in_four_bits(model: Model) -> None:
    assert len(model.frozen()) == 2 * 7
    assert all(layer.state is not None for layer in model.frozen().values())
    assert "lm_head" not in model.frozen()


def test_selected_and_unknown_layers(model: Model) -> None:
    with pytest.raises(ModelError, match=r"'q_projj'.*Did you mean 'q_proj'"):
        add_adapter(model, rank=4, alpha=8, layers=["q_projj"], dropout=0, seed=1)
    add_adapter(model, rank=4, alpha=8, layers=["q_proj", "v_proj"], dropout=0, seed=1)
    assert {name.rsplit(".", 1)[1] for name in model.lora} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "qwen2"])
@pytest.mark.parametrize("bits", [4, 16])
def test_peft_loads_our_adapter_with_the_same_output(
    tiny: Callable[..., Path], tmp_path: Path, family: str, bits: int
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    weights = fetch_weights(str(tiny(family)))
    model = load_model(weights, bits=bits, device="cpu", precision="float32")
    matrices = {name: layer.matrix() for name, layer in model.frozen().items()}
    add_adapter(model, rank=4, alpha=8, layers="all", dropout=0, seed=1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.normal_(std=0.1)
    config = peft_config(model, rank=4, alpha=8, dropout=0.0, names=list(model.lora))
    write_adapter(tmp_path, config, {name: p.data for name, p in model.trainable().items()})

    plain = AutoModelForCausalLM.from_pretrained(weights.folder, dtype=torch.float32)
    for name, matrix in matrices.items():  # the same base numbers
        layer = plain.get_submodule(name)
        layer.weight.data = matrix.T.contiguous() if isinstance(layer, Conv1D) else matrix.clone()
    theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        ours_, expected = model.network(input_ids=ids).logits, theirs(input_ids=ids).logits
        with model.base():
            base = model.network(input_ids=ids).logits
    assert torch.allclose(ours_, expected, atol=2e-4)
    assert (base - expected).abs().max() > 1e-2  # the adapter does something, and off is off

    _, tensors = read_adapter(tmp_path)
    load_adapter_tensors(model, tensors)
    tensors.popitem()
    with pytest.raises(RunError, match="differ at"):
        load_adapter_tensors(model, tensors)
