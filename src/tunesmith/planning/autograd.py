"""What a fine-tune needs, by arithmetic, before anything is loaded; and the micro-batch that fits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import ResourceError
from tunesmith.hardware import Machine
from tunesmith.kernels.block import Keep
from tunesmith.kernels.lora_linear import BaseForm
from tunesmith.models.shape import ModelShape

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # codes, one 8-bit scale for 64, one 32-bit scale for 256 scales
RUNTIME = {"cuda": 600 << 20, "cpu": 900 << 20}  # context and libraries before any weight, as measured
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1}
USUAL = {  # linear layers of attention and a gated product
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj",
    "c_attn", "c_proj", "c_fc",
}  # fmt: skip
SHARE = 0.9  # of the free memory; the rest is for what the arithmetic leaves out


@dataclass(frozen=True)
class Plan:
    """What fits: bytes by part, padded tokens of a micro-batch, whether activations are recomputed."""

    budget: int
    parts: dict[str, int]
    micro_tokens: int
    recompute: bool
    dense: bool
    why: str
    forms: tuple[BaseForm, ...] = ()  # of each block's base, where the decoder is fused
    keeps: tuple[Keep, ...] = ()  # of each block's forward
    chunk: int = 1024
    table: bool = True  # the embeddings are on the card; otherwise they wait on the host
    step_seconds: float | None = None
    total_seconds: float | None = None
    better: str = ""

    @property
    def peak(self) -> int:
        """Predicted peak in bytes."""
        return sum(self.parts.values())

    def describe(self) -> dict[str, Any]:
        """Plain values for plan.json."""
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
    """The largest micro-batch, of at most `step_tokens`, that fits the budget.

    `recompute` auto recomputes activations only when not even the longest row fits otherwise.

    `longest` is the longest row in tokens; `layers`, `experts`, `pissa` (a start that is taken off the base), `dora`
    and `train_also` ("embeddings", "head") are the adapter's; trained biases are left out, less than 0.1 % of a model's
    parameters.
    Of `shards` processes each holds a part of the linear layers. Raises ResourceError when not even one row fits.
    """
    budget = parse_bytes(memory) if memory != "auto" else int(machine.memory_free * SHARE)
    number = 4 if machine.precision == "float32" else 2
    held = 1.0 if shards == 1 else min(1.0, 1 / shards + 2 / shape.layers)  # two layers are whole at a time
    base = shape.base_bytes(bits, number)
    inner = base["linear"] + base.get("experts", 0)
    trained = 8 + OPTIMIZER_BYTES.get(optimizer, 8.0)  # bytes of a parameter: float32, its gradient, its state
    fixed = {
        "runtime": RUNTIME[machine.device],
        "base": int(held * inner) + sum(base.values()) - inner,
        "adapter": int(shape.adapter(rank, layers, experts) * trained),
        **variant_bytes(shape, rank, number, trained, pissa=pissa, dora=dora, train_also=train_also),
    }
    dense_bytes = shape.linear * number if bits == 4 else 0
    copies = 18 if "head" in train_also else 10  # bytes a logit: 16-bit and two 32-bit copies, four by autograd
    logits = min(step_tokens, 1024) * shape.vocabulary * copies  # one chunk
    room = budget - sum(fixed.values()) - logits
    token = 0.0
    for again in {"auto": (False, True), "yes": (True,), "no": (False,)}[recompute]:
        token = token_bytes(shape, number, again, dora=dora, longest=longest)
        micro = min(int(max(0, room) / token), max(step_tokens, longest))
        if micro < longest:
            continue
        parts = {**fixed, "logits": logits, "activations": int(micro * token)}
        dense = machine.device == "cpu" and bits == 4 and shards == 1
        dense = dense and sum(parts.values()) + dense_bytes < budget // 2
        if dense:
            parts["dense copy"] = dense_bytes
        return Plan(budget, parts, micro, again, dense, "activations are recomputed to fit" if again else "fits")
    need = sum(fixed.values()) + logits + int(longest * token)
    raise ResourceError(
        f"training needs about {show_bytes(need)} and {show_bytes(budget)} may be used",
        where=f"train.memory {memory}",
        next="Choose a smaller base.model, base.bits 4, a smaller adapter.rank or prompt.max_tokens",
    )


def variant_bytes(
    shape: ModelShape,
    rank: int,
    number: int,
    trained: float,
    *,
    pissa: bool = False,
    dora: bool = False,
    train_also: Sequence[str] = (),
) -> dict[str, int]:
    """Bytes, by part, that an adapter's variants add; `trained` are those of a parameter, `number` of an activation.

    PiSSA keeps its start, and of each layer the update of twice the rank until the backward: 4 + 8 bytes an element.
    DoRA has a magnitude for each output, and once the largest layer's weight and its sum with the update in float32.
    What is trained whole has, beside itself, a copy cast to the activations' type and two gradients on their way.
    """
    parts = {}
    if pissa:
        parts["start"] = 12 * shape.adapter(rank)
    if dora:
        outputs = sum(out for _, _, out in shape.every())
        largest = max(inner * out for _, inner, out in shape.every())
        parts["dora"] = int(outputs * trained) + largest * (4 if number == 4 else 8)
    if train_also:
        count = shape.vocabulary * shape.hidden * (1 if shape.tied else len(set(train_also)))
        parts["trained whole"] = int(count * (trained + 2 * number + (number if number < 4 else 0)))
    return parts


def token_bytes(shape: ModelShape, number: int, recompute: bool, *, dora: bool = False, longest: int = 0) -> float:
    """Bytes of saved activations for one padded token: `number` bytes an element.

    Per layer: norms keep their input twice in 32 bits, the linear layers theirs once, attention its three inputs
    and output, the gated product its three factors. `dora` keeps each linear layer's output before its gain. `longest`
    is the longest row in tokens, for families whose attention keeps its scores.
    """
    wide = shape.hidden * (2 * 8 + 3 * number)
    attention = (2 * shape.queries + 2 * shape.keys) * number * 2
    inner = shape.intermediate * number * (2 if shape.family == "gpt2" else 4)
    gained = number * sum(out for _, out in shape.linears) if dora else 0
    layer = wide + attention + inner + gained
    if shape.eager:
        layer += 4 * number * longest * shape.queries // max(1, shape.head)  # scores, their softmax, what is dropped
    names = {name for block in shape.blocks for name, _, _ in block}
    if not shape.recurrent and not shape.stacked and names <= USUAL:
        return shape.layers * shape.hidden * number + 2 * layer if recompute else shape.layers * layer
    layers = [max(layer, each) for each in _other_layers(shape, number, dora=dora)]
    return shape.layers * shape.hidden * number + 2 * max(layers) if recompute else sum(layers)


def _other_layers(shape: ModelShape, number: int, *, dora: bool) -> Iterator[float]:
    """The same for each layer of a family that differs: what its linear layers and its token's experts take and give.

    The factors cover what tests/models/test_shape.py finds: 1.6 for latent attention and Gemma 3n's mixing, 2.5 times
    that for a mixer with a state, which transformers' own functions keep in chunks (Granite 4, Qwen 3.5).
    """
    parts = dict(shape.stacked)
    experts = shape.used * sum(each.inputs + each.outputs for each in parts.values())
    for index, block in enumerate(shape.blocks):
        passed = sum(inner + out + (out if dora else 0) for _, inner, out in block)
        yield 16 * shape.hidden + number * (1.6 * (passed + experts) * (2.5 if index in shape.recurrent else 1))


def parse_bytes(text: str) -> int:
    """'6GB' as bytes (a GB is 10^9, a GiB 2^30)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(i?)B", text)
    if not match:
        raise ValueError(text)
    power = {"M": 2, "G": 3}[match[2]]
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def show_bytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
