"""Plans the memory and micro-batch of an autograd fine-tune before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine
from tunesmith.models.shape import ModelShape
from tunesmith.wording import show_bytes

if TYPE_CHECKING:
    from tunesmith.kernels.block import Keep
    from tunesmith.kernels.lora_linear import BaseForm

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # codes, an 8-bit scale per 64, a 32-bit scale per 256 scales
RUNTIME_BYTES = {"cuda": 600 << 20, "cpu": 900 << 20}  # context and libraries without weights, measured
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1}
USUAL_LINEAR_LAYERS = {  # linear layers of attention and MLP
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj",
    "c_attn", "c_proj", "c_fc",
}  # fmt: skip
MEMORY_SHARE = 0.9  # of free memory; the rest covers what the estimate leaves out


@dataclass(frozen=True)
class Plan:
    """A layout that fits: bytes by part, padded tokens of a micro-batch, whether activations are recomputed."""

    budget: int
    parts: dict[str, int]
    micro_tokens: int
    recompute: bool
    dense: bool
    why: str
    forms: tuple[BaseForm, ...] = ()  # of each block's base, if the decoder is fused
    keeps: tuple[Keep, ...] = ()  # saved activations of each block
    chunk: int = 1024
    table: bool = True  # embeddings are on the device; otherwise offloaded to the host
    step_seconds: float | None = None
    total_seconds: float | None = None
    better: str = ""

    @property
    def peak(self) -> int:
        """Returns the predicted peak in bytes."""
        return sum(self.parts.values())

    def describe(self) -> dict[str, Any]:
        """Returns plain values for plan.json."""
        return {**asdict(self), "peak": self.peak}


def plan_autograd(
    shape: ModelShape,
    machine: Machine,
    *,
    bits: int,
    rank: int,
    optimizer: str,
    longest: int,
    step_tokens: int,
    memory: str,
    recompute: str,
    layers: str | Sequence[str] = "all",
    experts: str = "all",
    pissa: bool = False,
    dora: bool = False,
    train_also: Sequence[str] = (),
    shards: int = 1,
) -> Plan:
    """Returns the plan with the largest micro-batch, of at most `step_tokens`, that fits the budget.

    With `recompute` auto, activations are recomputed only if the longest row does not fit otherwise. `longest` is that
    row's length in tokens. `layers`, `experts`, `pissa`, `dora` and `train_also` ("embeddings", "head") describe the
    adapter; trained biases, less than 0.1 % of the parameters, are ignored. Each of `shards` processes holds a part of
    the linear layers. Raises ResourceError if not even one row fits.
    """
    budget = parse_bytes(memory) if memory != "auto" else int(machine.memory_free * MEMORY_SHARE)
    element_bytes = 4 if machine.precision == "float32" else 2
    held_share = 1.0 if shards == 1 else min(1.0, 1 / shards + 2 / shape.layers)  # two layers are gathered at a time
    base = shape.base_bytes(bits, element_bytes)
    layers_bytes = base["linear"] + base.get("experts", 0)
    parameter_bytes = 8 + OPTIMIZER_BYTES.get(optimizer, 8.0)  # float32, gradient, optimizer state
    fixed = {
        "runtime": RUNTIME_BYTES[machine.device],
        "base": int(held_share * layers_bytes) + sum(base.values()) - layers_bytes,
        "adapter": int(shape.adapter(rank, layers, experts) * parameter_bytes),
        **variant_bytes(shape, rank, element_bytes, parameter_bytes, pissa=pissa, dora=dora, train_also=train_also),
    }
    dense_bytes = shape.linear * element_bytes if bits == 4 else 0
    logit_bytes = 18 if "head" in train_also else 10  # per logit: a 16-bit and two 32-bit copies, four with autograd
    logits = min(step_tokens, 1024) * shape.vocabulary * logit_bytes  # one chunk
    available = budget - sum(fixed.values()) - logits
    per_token = 0.0
    for with_recompute in {"auto": (False, True), "yes": (True,), "no": (False,)}[recompute]:
        per_token = token_bytes(shape, element_bytes, with_recompute, dora=dora, longest=longest)
        micro = min(int(max(0, available) / per_token), max(step_tokens, longest))
        if micro < longest:
            continue
        parts = {**fixed, "logits": logits, "activations": int(micro * per_token)}
        dense = machine.device == "cpu" and bits == 4 and shards == 1
        dense = dense and sum(parts.values()) + dense_bytes < budget // 2
        if dense:
            parts["dense copy"] = dense_bytes
        return Plan(
            budget,
            parts,
            micro,
            with_recompute,
            dense,
            "activations are recomputed to fit" if with_recompute else "fits",
        )
    needed = sum(fixed.values()) + logits + int(longest * per_token)
    raise ResourceError(
        f"training needs about {show_bytes(needed)} but the memory budget is {show_bytes(budget)}",
        where=f"train.memory {memory}",
        next="Choose a smaller base.model, base.bits 4, a smaller adapter.rank or prompt.max_tokens",
    )


def variant_bytes(
    shape: ModelShape,
    rank: int,
    element_bytes: int,
    parameter_bytes: float,
    *,
    pissa: bool = False,
    dora: bool = False,
    train_also: Sequence[str] = (),
) -> dict[str, int]:
    """Returns the bytes, by part, that adapter variants add.

    `parameter_bytes` are those of a trained parameter, `element_bytes` of an activation. PiSSA keeps its initial
    factors, and each layer's update of twice the rank until the backward: 4 + 8 bytes an element. DoRA has a magnitude
    per output, and one largest layer's weight and its sum with the update in float32. Fully trained modules add a copy
    cast to the activations' dtype and two temporary gradients.
    """
    parts = {}
    if pissa:
        parts["start"] = 12 * shape.adapter(rank)
    if dora:
        outputs = sum(out for _, _, out in shape.every())
        largest = max(inner * out for _, inner, out in shape.every())
        parts["dora"] = int(outputs * parameter_bytes) + largest * (4 if element_bytes == 4 else 8)
    if train_also:
        count = shape.vocabulary * shape.hidden * (1 if shape.tied else len(set(train_also)))
        parts["trained whole"] = int(
            count * (parameter_bytes + 2 * element_bytes + (element_bytes if element_bytes < 4 else 0))
        )
    return parts


def token_bytes(
    shape: ModelShape, element_bytes: int, recompute: bool, *, dora: bool = False, longest: int = 0
) -> float:
    """Returns the bytes of saved activations for one padded token at `element_bytes` per element.

    Per layer, norms save their input twice in float32, linear layers theirs once, attention its three inputs and its
    output, the gated product its three factors. `dora` saves each linear layer's output before its magnitude.
    `longest` is the longest row in tokens, for families whose attention saves its scores.
    """
    norms = shape.hidden * (2 * 8 + 3 * element_bytes)
    attention = (2 * shape.queries + 2 * shape.keys) * element_bytes * 2
    mlp = shape.intermediate * element_bytes * (2 if shape.family == "gpt2" else 4)
    dora_outputs = element_bytes * sum(out for _, out in shape.linears) if dora else 0
    layer = norms + attention + mlp + dora_outputs
    if shape.eager:
        layer += 4 * element_bytes * longest * shape.queries // max(1, shape.head)  # scores, softmax, dropout
    names = {name for block in shape.blocks for name, _, _ in block}
    if not shape.recurrent and not shape.stacked and names <= USUAL_LINEAR_LAYERS:
        return shape.layers * shape.hidden * element_bytes + 2 * layer if recompute else shape.layers * layer
    layers = [max(layer, unusual) for unusual in _unusual_layer_bytes(shape, element_bytes, dora=dora)]
    return shape.layers * shape.hidden * element_bytes + 2 * max(layers) if recompute else sum(layers)


def _unusual_layer_bytes(shape: ModelShape, element_bytes: int, *, dora: bool) -> Iterator[float]:
    """Yields the bytes of each layer of an unusual family, from the widths of its linear layers and used experts.

    The factors cover what tests/models/test_shape.py measures: 1.6 for latent attention and Gemma 3n's mixing, 2.5
    times that for recurrent mixers, whose states transformers saves in chunks (Granite 4, Qwen 3.5).
    """
    expert_stacks = dict(shape.stacked)
    experts = shape.used * sum(expert.inputs + expert.outputs for expert in expert_stacks.values())
    for index, block in enumerate(shape.blocks):
        widths = sum(inner + out + (out if dora else 0) for _, inner, out in block)
        yield 16 * shape.hidden + element_bytes * (1.6 * (widths + experts) * (2.5 if index in shape.recurrent else 1))


def parse_bytes(text: str) -> int:
    """Returns a size such as '6GB' in bytes (a GB is 10^9, a GiB 2^30). Raises ValueError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(i?)B", text)
    if not match:
        raise ValueError(text)
    power = {"M": 2, "G": 3}[match[2]]
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
