"""The fused decoder's loss and gradients, against autograd through transformers' own layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.model.build import Model, add_adapter, load
from tunesmith.model.fuse import Flat, Fused, reasons
from tunesmith.model.weights import fetch
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.train.captured import to_device
from tunesmith.train.loss import summed_loss

FUSED = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"]
LENGTHS = (24, 9, 1, 40)


def examples() -> list[Example]:
    made = []
    for number, length in enumerate(LENGTHS):
        ids = tuple((number * 31 + place * 7) % 250 + 5 for place in range(length))
        made.append(Example("r", ids=ids, learnt=tuple(place >= min(5, length - 1) for place in range(length)), stop=4))
    return made


def ready(folder: Path, precision: str, bits: int, layers: Any = "all") -> Model:
    model = load(fetch(str(folder)), bits=bits, device="cpu", precision=precision)
    for layer in model.frozen().values():
        if layer.bias is not None:
            layer.bias.data.normal_(std=0.1)
    add_adapter(model, rank=4, alpha=8, layers=layers, dropout=0, seed=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for name, parameter in model.network.named_parameters():
            if "norm" in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def reference(model: Model) -> tuple[float, dict[str, torch.Tensor]]:
    loss = summed_loss(model, pack.collate(examples(), 0))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}
    for parameter in model.trainable().values():
        parameter.grad = None
    return loss.item(), found


def flat(size: pack.Size | None = None) -> Flat:
    made = pack.packed(examples(), 0, size=size)
    longest = max(LENGTHS) if size is None else size.longest
    return to_device(made, longest, torch.device("cpu"))


@pytest.mark.parametrize("keep", ["all", "attention", "input"])
@pytest.mark.parametrize("family", FUSED)
def test_every_family_against_autograd(tiny: Callable[..., Path], family: str, keep: Any) -> None:
    changes = {"attention_bias": True} if family == "llama" else {}
    model = ready(tiny(family, **changes), "float64", 16)
    assert reasons(model) == []
    loss, wanted = reference(model)
    fused = Fused(model, longest=40, keeps=keep, chunk=16)
    total = fused.step(flat(), torch.tensor(1.0, dtype=torch.float64))
    assert total.item() == pytest.approx(loss, rel=1e-7)
    assert fused.loss(flat()).item() == pytest.approx(loss, rel=1e-7)
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None
        error = (parameter.grad - wanted[name]).norm() / wanted[name].norm()
        assert error < 3e-6, name  # the reference makes its norms and sums in float32
