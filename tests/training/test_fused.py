"""The fused decoder's loss and gradients, against autograd through transformers' own layers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tunesmith
from tunesmith.config.recipe import read_recipe
from tunesmith.kernels import attention, base_weights, lora_linear, ops
from tunesmith.kernels.attention import SequenceBounds
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.fuse import FlatBatch, FusedDecoder, flat_batch, unfused_reasons
from tunesmith.models.fused_config import FUSED_FAMILIES, fused_layers, layer_attentions, unfused_config
from tunesmith.models.qlora import FrozenLinear, LoraLinear
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.training.autograd_step import sum_cross_entropy
from tunesmith.training.job import read_journal

LENGTHS = (24, 9, 1, 40)  # of the rows; the windows below are shorter than two of them
WINDOW = {"sliding_window": 16, "num_hidden_layers": 3}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONG = {"type": "longrope", "short_factor": [1.0, 1.3, 2.0, 3.0], "long_factor": [1.5, 4.0, 9.0, 30.0]}
LONG_PHI = {"max_position_embeddings": 512, "partial_rotary_factor": 0.5, "rope_scaling": LONG}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FUSED_FAMILIES},
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": ("llama", {"head_dim": 24, "tie_word_embeddings": False}),
    "llama 3.1": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama, linear RoPE scaling": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "qwen 2.5 with YaRN": ("qwen2", {"rope_scaling": {**LLAMA3, "rope_type": "yarn", "factor": 4.0}}),
    "qwen 2 with windows": ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen 2, windows not used": ("qwen2", {**WINDOW, "use_sliding_window": False, "max_window_layers": 1}),
    "qwen 3 with windows": (
        "qwen3",
        {
            **WINDOW, "use_sliding_window": True, "head_dim": 24, "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "mistral with a window": ("mistral", {**WINDOW, "head_dim": 24}),
    "ministral with windows": (
        "ministral", {**WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    ),
    "phi 3 with a window": ("phi3", WINDOW),
    "phi 4 mini": ("phi3", {**LONG_PHI, "original_max_position_embeddings": 24}),
    "phi 3.5": ("phi3", {**LONG_PHI, "original_max_position_embeddings": 23, "tie_word_embeddings": False}),
    "gemma 2 with windows": ("gemma2", WINDOW),
    "gemma 3 with windows": ("gemma3_text", {**WINDOW, "rope_local_base_freq": 100.0, "rope_theta": 5000.0}),
    "gemma 3 4B": (
        "gemma3_text",
        {
            **WINDOW, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "num_key_value_heads": 1,
            "attention_bias": True, "tie_word_embeddings": False, "final_logit_softcapping": 5.0,
        },
    ),
    "gemma 4 with windows": (
        "gemma4_text",
        {**WINDOW, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "global_head_dim": 24},
    ),
    "gemma 4 with values of their own": (
        "gemma4_text", {"attention_k_eq_v": False, "num_global_key_value_heads": None, "sliding_window": 8}
    ),
    "smollm 3 with windows": ("smollm3", {**WINDOW, "use_sliding_window": True, "mlp_bias": True}),
}  # fmt: skip


def examples() -> list[Example]:
    made = []
    for number, length in enumerate(LENGTHS):
        ids = tuple((number * 31 + place * 7) % 250 + 5 for place in range(length))
        made.append(
            Example("r", ids=ids, loss_mask=tuple(place >= min(5, length - 1) for place in range(length)), stop=4)
        )
    return made


def ready(folder: Path, precision: str, bits: int, layers: Any = "all") -> Model:
    model = load_model(fetch_weights(str(folder)), bits=bits, device="cpu", precision=precision)
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


def exactly(model: Model) -> None:
    """Lets the model's own layers compute in float64, where transformers rounds norms to float32."""

    def exact(module: Any, offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
        eps = getattr(module, "variance_epsilon", None) or module.eps
        weight = getattr(module, "weight", torch.ones((), dtype=torch.float64))
        return lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (weight + offset)

    family = model.network.config.model_type
    if family == "gemma2":  # the only one of transformers' implementations that caps the scores in every version
        model.network.set_attn_implementation("eager")
    offset = 1.0 if family in ("gemma", "gemma2", "gemma3_text") else 0.0
    for module in model.network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = exact(module, offset)


def reference(model: Model) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss of the rows, each read alone by the model's own layers, and its gradients."""
    loss = 0.0
    for example in examples():
        batch = pack.collate([example], 0)
        if batch.loss_tokens:
            part = sum_cross_entropy(model, batch)
            part.backward()
            loss += part.item()
    found = {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}
    for parameter in model.trainable().values():
        parameter.grad = None
    return loss, found


def flat(size: pack.PackedShape | None = None) -> FlatBatch:
    made = pack.pack_examples(examples(), 0, size=size)
    longest = max(LENGTHS) if size is None else size.longest
    return flat_batch(made, longest, torch.device("cpu"))


@pytest.mark.parametrize("keep", ["all", "attention", "input"])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_family_against_autograd(tiny: Callable[..., Path], config: str, keep: Any) -> None:
    family, changes = CONFIGS[config]
    folder = tiny(family, **changes)
    assert unfused_config(json.loads((folder / "config.json").read_text())) == []
    model = ready(folder, "float64", 16)
    assert unfused_reasons(model) == []
    assert fused_layers(model.network.config.to_dict()) == layer_attentions(model.network.config)
    exactly(model)
    loss, wanted = reference(model)
    fused = FusedDecoder(model, longest=40, keeps=keep, chunk=16)
    total = fused.step(flat(), torch.tensor(1.0, dtype=torch.float64))
    assert total.item() == pytest.approx(loss, rel=1e-7 if family == "gemma2" else 1e-11)
    assert fused.loss(flat()).item() == pytest.approx(total.item(), rel=1e-12)
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None
        error = (parameter.grad - wanted[name]).norm() / wanted[name].norm()
        assert error < (3e-6 if family == "gemma2" else 2e-7), name  # gradients are float32; as is Gemma 2's softmax


def ragged(heads: int, keys: int, lengths: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((sum(lengths), heads, 8), (sum(lengths), keys, 8), (sum(lengths), keys, 8), (sum(lengths), heads, 8))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("window", [0, 1, 40, 150, attention.SHORT + 2])
@pytest.mark.parametrize("keys", [1, 2, 6])
def test_attention_of_short_and_long_examples(keys: int, window: int) -> None:
    """Lengths of one token, of a whole stripe, of some stripes, and two that are beyond those kept."""
    lengths = (1, 128, 300, attention.SHORT + 5, 700)
    q, k, v, dout = ragged(6, keys, lengths)
    starts = (0, *itertools.accumulate(lengths))
    bounds = SequenceBounds(torch.tensor(starts, dtype=torch.int32), max(lengths), starts)
    rule = attention.AttentionRule(0.3, 0.0, window)
    out, saved = attention.attend(q, k, v, bounds, rule)
    found = attention.attend_back(dout, q, k, v, out, saved, bounds, rule)
    for each in (q, k, v):
        each.requires_grad_()
    wanted = []
    for start, end in itertools.pairwise(starts):
        row, column = torch.meshgrid(torch.arange(end - start), torch.arange(end - start), indexing="ij")
        seen = (column <= row) & (row - column < (window or end))
        query, key, value = (part[start:end].transpose(0, 1) for part in (q, k, v))
        expected = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True
        )
        wanted.append(expected.transpose(0, 1))
    torch.testing.assert_close(out, torch.cat(wanted), rtol=1e-9, atol=1e-12)
    (torch.cat(wanted) * dout).sum().backward()
    for each, gradient in zip((q, k, v), found, strict=True):
        torch.testing.assert_close(gradient, each.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_head_against_autograd(cap: float) -> None:
    """More tokens than stand in 32 bits at one time, two of them padding."""
    generator = torch.Generator().manual_seed(4)
    many = 2 * ops.ROWS + 5
    hidden = torch.randn(many, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 12, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, 50, (many,), generator=generator)
    targets[[3, many - 1]] = ops.IGNORED
    logits = hidden @ weight.T
    wanted = nn.functional.cross_entropy(torch.tanh(logits / cap) * cap if cap else logits, targets, reduction="sum")
    (wanted * 0.25).backward()
    with torch.no_grad():
        found, gradient = ops.loss_and_gradient(hidden, targets, weight, None, cap, torch.tensor(0.25))
        assert ops.loss(hidden, targets, weight, None, cap).item() == pytest.approx(wanted.item(), rel=1e-12)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gemma4_text"])
def test_small_numbers_stay_near(tiny: Callable[..., Path], family: str) -> None:
    """In bfloat16 the gradients lie about as near to float64's as autograd's in bfloat16 do, over several models."""
    far, usual = 0.0, 0.0
    for inner in (96, 112, 144, 160):
        folder = tiny(family, intermediate_size=inner)
        _, wanted = reference(ready(folder, "float64", 16))
        model = ready(folder, "bfloat16", 16)
        _, plain = reference(model)
        FusedDecoder(model, longest=40, chunk=16).step(flat(), torch.tensor(1.0))
        size = sum(float(each.norm() ** 2) for each in wanted.values())
        for name, parameter in model.trainable().items():
            assert parameter.grad is not None
            far += float((parameter.grad.double() - wanted[name]).norm() ** 2) / size
            usual += float((plain[name].double() - wanted[name]).norm() ** 2) / size
    assert far**0.5 < 1.7 * usual**0.5


@pytest.mark.parametrize("way", ["joined", "joined NF4", "packed", "layer", "layer NF4", "layer with dropout"])
def test_a_small_update_is_not_rounded_away(way: str) -> None:
    """Beside outputs of about one an update of 1e-4 is less than half of bfloat16's last bit."""
    from bitsandbytes.functional import quantize_4bit

    source = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, 128, generator=source).bfloat16() for rows in (200, 256))
    weight *= 0.09
    a, b = (torch.randn(shape, generator=source).bfloat16() for shape in ((4, 128), (256, 4)))
    b *= 4e-6
    base = FrozenLinear.from_dense(weight, None)
    if "NF4" in way:
        codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        base = FrozenLinear.from_nf4(codes, state, None)
    if way.startswith("layer"):
        layer = LoraLinear(base, 4, 4, 1e-9 if "dropout" in way else 0.0)
        layer.lora_A.data.copy_(a)
        layer.lora_B.data.copy_(b)
        y = layer(x)
    else:
        frozen: torch.Tensor | base_weights.Nf4 | base_weights.OneDnnWeight = (
            base_weights.nf4_from_states([base.weight.data], [base.state], torch.bfloat16) if base.state else weight
        )
        if way == "packed":
            frozen = base_weights.pack_onednn(weight, 16) if base_weights.can_pack_onednn(weight) else weight
        y, _ = lora_linear.forward(
            x, lora_linear.JoinedLinear(frozen, None, a, None, ((b, slice(0, 256), slice(0, 4)),))
        )
    update = (x.double() @ a.double().T) @ b.double().T
    kept = ((y.double() - x.double() @ base.matrix().double().T) * update).sum() / (update * update).sum()
    assert update.abs().mean() < 1e-3 * y.abs().mean()
    assert kept.item() == pytest.approx(1, abs=0.35)


def refused(family: str, **config: Any) -> str:
    (reason,) = unfused_config({"model_type": family, **config})
    return reason


def test_what_cannot_be_fused_is_said() -> None:
    """Each of these would change the numbers if the fused blocks took no notice of it."""
    assert "gpt2" in refused("gpt2")
    assert "dropout" in refused("llama", attention_dropout=0.1)
    assert "relu" in refused("llama", hidden_act="relu")
    assert "gelu" in refused("gemma3_text", hidden_activation="gelu")
    assert "dynamic" in refused("llama", rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "dynamic" in refused("gemma3_text", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert "use_bidirectional_attention" in refused("gemma3_text", use_bidirectional_attention=True)
    assert "later" in refused("llama", is_causal=False)
    chunked = ["full_attention"] * 31 + ["chunked_attention"]
    assert "chunked_attention" in refused("qwen3", num_hidden_layers=32, layer_types=chunked)
    assert "hidden_size_per_layer_input" in refused("gemma4_text")
    gemma4 = {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True}
    assert "num_kv_shared_layers" in refused("gemma4_text", **gemma4, num_kv_shared_layers=10)
    assert "experts" in refused("gemma4_text", **gemma4, enable_moe_block=True, num_experts=8, top_k_experts=2)
    assert "cannot be parsed" in refused("phi3", rope_scaling={"type": "longrope", "short_factor": [1.0]})
    assert unfused_config({"model_type": "gemma4_text", **gemma4}) == []


def test_the_text_half_of_an_image_text_checkpoint_is_judged() -> None:
    text = {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert unfused_config({"model_type": "gemma3", "text_config": text, "vision_config": {}}) == []
    assert "gelu" in refused("gemma3", text_config={**text, "hidden_activation": "gelu"})
    assert "qwen2_vl" in refused("qwen2_vl", text_config={"model_type": "qwen2_vl_text"})


@pytest.mark.parametrize("family", ["gemma3_text", "gemma4_text"])
def test_a_fine_tune_is_planned_and_fused(recipe_file: Callable[..., Path], tmp_path: Path, family: str) -> None:
    recipe = read_recipe(str(recipe_file(family, train__epochs=1)))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    said: list[str] = []
    made = tunesmith.plan(recipe, run, said.append)
    assert made.forms and made.step_seconds and not any("not fused" in line for line in said)
    tunesmith.train(recipe, run)
    losses = [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == "step"]
    assert losses[-1] < losses[0]
