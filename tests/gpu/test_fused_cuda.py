"""The fused decoder's kernels on a GPU: against float64 on the processor, judged beside plain autograd's own error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.fuse import FusedDecoder, flat_batch
from tunesmith.models.fused_config import FUSED_FAMILIES
from tunesmith.models.offload import HostEmbedding
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.training.autograd_step import sum_cross_entropy
from tunesmith.training.fused_step import CapturedGraph

pytestmark = pytest.mark.gpu
LENGTHS = (57, 130, 9, 1, 88)
WINDOW = {"sliding_window": 32, "num_hidden_layers": 3}  # shorter than three of the rows
FACTORS = {
    "type": "longrope",
    "short_factor": [1.0, 1.3, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    "long_factor": [1.5, 4.0, 9.0, 30.0, 40.0, 50.0, 60.0, 70.0],
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FUSED_FAMILIES},
    "mistral with a window": ("mistral", WINDOW),
    "qwen 2 with windows": ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen 3 with windows": ("qwen3", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "gemma 3 with windows": ("gemma3_text", {**WINDOW, "rope_local_base_freq": 100.0, "rope_theta": 5000.0}),
    "gemma 3 with heads of 256": ("gemma3_text", {**WINDOW, "head_dim": 256, "num_key_value_heads": 1}),
    "gemma 4 with windows": ("gemma4_text", {"sliding_window": 32}),
    "smollm 3 with windows": ("smollm3", {**WINDOW, "use_sliding_window": True}),
    "phi 4 mini": (
        "phi3",
        {
            "partial_rotary_factor": 0.5, "rope_scaling": FACTORS,
            "max_position_embeddings": 512, "original_max_position_embeddings": 87,
        },
    ),
}  # fmt: skip
PLAIN = ("gemma2", "gemma4_text")  # capped scores; normed values and a scalar: not by the kernels for GPUs


def examples() -> list[Example]:
    made = []
    for number, length in enumerate(LENGTHS):
        ids = tuple((number * 31 + place * 7 + place * place) % 250 + 5 for place in range(length))
        made.append(Example("r", ids, tuple(place >= min(5, length - 1) for place in range(length)), 4))
    return made


def ready(folder: Path, device: str, precision: str, bits: int) -> Model:
    model = load_model(fetch_weights(str(folder)), bits=bits, device=device, precision=precision)
    _capped(model)
    add_adapter(model, rank=8, alpha=16, layers="all", dropout=0, seed=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, parameter in model.network.named_parameters():
            if "norm" in name:
                parameter += (torch.randn(parameter.shape, generator=generator) * 0.1).to(device)
    return model


def _capped(model: Model) -> None:
    """Only transformers' eager attention caps Gemma 2's scores in every version."""
    if model.network.config.model_type == "gemma2":
        model.network.set_attn_implementation("eager")


def plain(model: Model) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss of the rows, each read alone, and its gradients."""
    loss = 0.0
    for batch in (pack.collate([example], 0) for example in examples()):
        if batch.loss_tokens:
            part = sum_cross_entropy(model, batch)
            part.backward()
            loss += part.item()
    found = {name: p.grad.double().cpu() for name, p in model.trainable().items() if p.grad is not None}
    for parameter in model.trainable().values():
        parameter.grad = None
    return loss, found


def error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The relative error of all gradients as one vector."""
    square = sum(((found[name] - wanted[name]) ** 2).sum().item() for name in wanted)
    return float((square / sum((each**2).sum().item() for each in wanted.values())) ** 0.5)


def exact_twin(model: Model, folder: Path) -> Model:
    """The same model in float64 on the processor, its base the dequantised numbers."""
    twin = load_model(fetch_weights(str(folder)), bits=16, device="cpu", precision="float64")
    _capped(twin)
    bases = {**model.frozen(), **{name: layer.base for name, layer in model.lora.items()}}
    for name, layer in twin.frozen().items():
        layer.weight.data = bases[name].matrix().detach().double().cpu()
    add_adapter(twin, rank=8, alpha=16, layers="all", dropout=0, seed=2)
    for module in twin.network.modules():
        module.to(torch.float64)
    with torch.no_grad():
        for name, parameter in twin.trainable().items():
            parameter.copy_(model.trainable()[name])
        others = dict(model.network.named_parameters())
        for name, parameter in twin.network.named_parameters():
            if "norm" in name or "embed" in name or "lm_head" in name:
                parameter.copy_(others[name])
    return twin


@pytest.mark.parametrize("keep", ["all", "attention", "input"])
@pytest.mark.parametrize("form", ["stored", "dense"])
@pytest.mark.parametrize("config", CONFIGS)
def test_families(tiny: Callable[..., Path], config: str, form: Any, keep: Any) -> None:
    family, changes = CONFIGS[config]
    folder = tiny(family, hidden_size=128, intermediate_size=192, **changes)
    model = ready(folder, "cuda", "bfloat16", 4)
    loss, wanted = plain(exact_twin(model, folder))
    own_loss, own = plain(model)
    fused = FusedDecoder(model, longest=130, forms=form, keeps=keep, chunk=100)
    assert fused.own_kernels == (family not in PLAIN)
    made = pack.pack_examples(examples(), 0, size=pack.PackedShape(384, 8, 300, 130))
    flat = flat_batch(made, 130, model.device)
    total = fused.step(flat, torch.tensor(1.0, device="cuda"))
    found = {name: p.grad.double().cpu() for name, p in model.trainable().items() if p.grad is not None}
    assert error(found, wanted) <= 1.5 * error(own, wanted) + 1e-4
    assert abs(total.item() - loss) <= 1.5 * abs(own_loss - loss) + 2e-3 * loss
    assert fused.loss(flat).item() == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("keep", ["all", "input"])
def test_fp8_is_near(tiny: Callable[..., Path], keep: Any) -> None:
    folder = tiny("llama", hidden_size=128, intermediate_size=192)
    model = ready(folder, "cuda", "bfloat16", 4)
    loss, wanted = plain(exact_twin(model, folder))
    fused = FusedDecoder(model, longest=130, forms="fp8", keeps=keep, chunk=100)
    flat = flat_batch(pack.pack_examples(examples(), 0, size=pack.PackedShape(384, 8, 300, 130)), 130, model.device)
    total = fused.step(flat, torch.tensor(1.0, device="cuda"))
    found = {name: p.grad.double().cpu() for name, p in model.trainable().items() if p.grad is not None}
    assert 1e-4 < error(found, wanted) < 0.2
    assert total.item() == pytest.approx(loss, rel=0.02)


def test_embeddings_on_the_host_change_no_number(tiny: Callable[..., Path]) -> None:
    found = []
    for table in (True, False):
        folder = tiny("llama", hidden_size=128, intermediate_size=192, tie_word_embeddings=False)
        model = ready(folder, "cuda", "bfloat16", 4)
        fused = FusedDecoder(model, longest=130, table=table)
        assert isinstance(model.network.get_input_embeddings(), HostEmbedding) != table
        assert model.device.type == "cuda"
        flat = flat_batch(pack.pack_examples(examples(), 0), 130, model.device)
        total = fused.step(flat, torch.tensor(1.0, device="cuda"))
        found.append((total.item(), fused.grad_a.clone(), plain(model)[0]))
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("config", ["llama", "gemma 3 with windows", "phi 4 mini"])
def test_a_captured_step_is_the_launched_one(tiny: Callable[..., Path], config: str) -> None:
    family, changes = CONFIGS[config]
    model = ready(tiny(family, hidden_size=128, intermediate_size=192, **changes), "cuda", "bfloat16", 4)
    fused = FusedDecoder(model, longest=130)
    size = pack.PackedShape(384, 8, 300, 130)
    share = torch.tensor(0.01, device="cuda")
    summed = torch.zeros((), device="cuda")
    captured = CapturedGraph(fused, size, share, summed, None)
    parts = [examples()[:2], examples()[2:]]
    for _ in range(2):
        fused.zero_gradients()
        summed.zero_()
        for part in parts:
            captured.run(pack.pack_examples(part, 0, size=size))
    replayed, total = fused.grad_a.clone(), summed.item()
    fused.zero_gradients()
    launched = sum(
        fused.step(flat_batch(pack.pack_examples(p, 0, size=size), 130, model.device), share).item() for p in parts
    )
    assert total == pytest.approx(launched, rel=1e-5)
    assert (replayed - fused.grad_a).norm() / replayed.norm() < 1e-3
