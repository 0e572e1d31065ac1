"""Frozen experts of a mixture-of-experts layer with LoRA; only experts that receive tokens are computed.

transformers 5 stacks all experts of a layer in one 3-D parameter (experts x out x in; gpt-oss: experts x in x out).
The update has PEFT's layout for `target_parameters`: rank r per expert, A stacked over experts (experts·r x in), B side
by side with experts innermost (out x r·experts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.config.recipe import Adapter, NamedSetting
from tunesmith.errors import ModelError, RecipeError, TunesmithError
from tunesmith.models.expert_packing import (
    PackedExperts,
    expert_parameters,
    pack_parameter,
    packed_parameters,
    unpack_experts,
)

DEQUANTIZED_ELEMENTS = 1 << 25  # elements dequantized together


class ExpertShape(NamedTuple):
    """The shape of one 3-D parameter: experts, and inputs and outputs of each."""

    experts: int
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """The number of elements."""
        return self.experts * self.inputs * self.outputs

    def adapter_parameters(self, rank: int) -> int:
        """Returns the number of elements of its LoRA update with `rank` per expert."""
        return self.experts * rank * (self.inputs + self.outputs)


def expert_shapes(network: nn.Module) -> dict[str, ExpertShape]:
    """Returns the shapes of `network`'s 3-D expert parameters by name, in order; works on the meta device too."""
    shapes: dict[str, ExpertShape] = {}
    for name, module in network.named_modules():
        if isinstance(module, FrozenExperts):
            shapes |= {f"{name}.{part}": weights.shape for part, weights in module.weights.items()}
            continue
        for part in expert_parameters(module):
            experts, first, second = getattr(module, part).shape
            transposed = bool(getattr(module, "is_transposed", False))
            shapes[f"{name}.{part}"] = ExpertShape(experts, *((first, second) if transposed else (second, first)))
    return shapes


def freeze_experts(network: Any, *, packed: bool, where: str = "") -> None:
    """Replaces the expert modules of `network` with FrozenExperts.

    With `packed`, experts still in 16 bits, as in NF4 checkpoints written by transformers, are quantized. Raises
    ModelError for experts in an unsupported form; `where` names the model in it.
    """
    if unread := _unsupported_experts(network):
        raise ModelError(_UNSUPPORTED.format(unread), where=where, next="Choose another base.model")
    for name, module in list(network.named_modules()):
        if not (expert_parameters(module) or packed_parameters(module)):
            continue
        for part in expert_parameters(module):
            value = getattr(module, part)
            value.data = value.data.to(network.dtype)  # transformers 5.17 always reads MXFP4 as bfloat16
            if packed:
                setattr(module, part, pack_parameter(value))
        network.set_submodule(name, FrozenExperts(module))


# --- limits of PEFT ----------------------------------------------------------------------------------------------

# Names that PEFT treats as experts of checkpoints from before transformers 5, even if other layers have them.
PEFT_EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def peft_targets(names: Sequence[str], parts: Sequence[str], *, moe: bool) -> tuple[list[str], list[str]]:
    """Returns PEFT's target_modules and target_parameters for linear layers `names` and expert parameters `parts`.

    In a model with experts (`moe`), PEFT 0.21 treats some linear layers as experts (see RENAMED), so their weights are
    listed as parameters, which gives the same tensors.
    """
    renamed = {name for name in names if moe and name.rpartition(".")[2] in PEFT_EXPERT_NAMES}
    modules = {name.rpartition(".")[2] for name in names if name not in renamed}
    parameters = {_tail(name) + ".weight" for name in renamed} | {_tail(name) for name in parts}
    return sorted(modules), sorted(parameters)


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


_UNSUPPORTED = "the experts in {} have a layout that is not supported"


def _unsupported_experts(network: nn.Module) -> str:
    """Returns the first module whose experts are not stacked matrices; empty if there is none."""
    for name, module in network.named_modules():
        dims = [value.dim() for value in module.parameters(recurse=False)]
        if (
            "Expert" not in type(module).__name__
            or isinstance(module, ExpertWeights | nn.Linear)
            or packed_parameters(module)
        ):
            continue
        if max(dims, default=0) > 1 and not expert_parameters(module):
            return str(name)
    return ""


def check_experts(
    adapter: Adapter,
    network: nn.Module,
    names: Sequence[str],
    parts: Sequence[str],
    *,
    engine: str = "native",
    parallel: str = "auto",
    targets: Sequence[str] = (),
) -> list[TunesmithError]:
    """Returns an error for each setting that a mixture of experts does not support; empty for other models.

    `names` and `parts` are the linear layers and expert parameters of `network` that the adapter covers; `engine`,
    `parallel` and `targets` are the recipe's `train.engine`, `train.parallel` and the names in its `export.files`.
    """
    if unread := _unsupported_experts(network):
        return [ModelError(_UNSUPPORTED.format(unread), where="base.model", next="Choose another base.model")]
    stacked = expert_shapes(network)
    errors: list[TunesmithError] = [
        *unsupported_settings(
            network, names, parts,
            dropout=adapter.dropout, dora=adapter.dora, start=adapter.start, bias=adapter.bias,
        )
    ]  # fmt: skip
    if stacked and engine != "native":
        errors.append(
            RecipeError(f"{engine} cannot train mixtures of experts", where="train.engine", next="Set it to native")
        )
    if stacked and parallel == "fsdp":
        advice = "Set train.parallel to ddp"
        errors.append(RecipeError("fsdp cannot train mixtures of experts", where="train.parallel", next=advice))
    if parts and "gguf_lora" in targets:
        advice = "Export gguf instead, or set adapter.experts to none"
        errors.append(RecipeError("GGUF adapters do not support experts", where="export.files: gguf_lora", next=advice))
    return errors


def unsupported_settings(
    network: nn.Module,
    names: Sequence[str],
    parts: Sequence[str],
    *,
    dropout: float,
    dora: bool,
    start: NamedSetting,
    bias: str,
) -> list[ModelError]:
    """Returns an error for each setting that an adapter on `names` and the expert parameters `parts` cannot have."""
    moe = bool(expert_shapes(network))
    renamed = sorted(
        {name.rpartition(".")[2] for name in names if moe and name.rpartition(".")[2] in PEFT_EXPERT_NAMES}
    )
    errors = []
    for setting, enabled in (("dora", dora), ("dropout", bool(dropout))):
        if enabled and (parts or renamed):
            target = "the experts" if parts else f"{', '.join(renamed)} of a mixture of experts"
            default = "false" if setting == "dora" else "0"
            advice = (
                f"Set adapter.{setting} to {default}, or name adapter.layers without {'them' if parts else 'these'}"
            )
            errors.append(ModelError(f"PEFT has no {setting} for {target}", where=f"adapter.{setting}", next=advice))
    if parts and start.name != "zero":
        advice = "Set adapter.start to zero, or adapter.experts to none"
        errors.append(ModelError(f"experts do not support start {start.name}", where="adapter.start", next=advice))
    if parts and bias != "none" and _has_bias(network):
        advice = "Set adapter.bias to none, or adapter.experts to none"
        errors.append(ModelError("the experts' biases are not trained", where="adapter.bias", next=advice))
    return errors


def _has_bias(network: nn.Module) -> bool:
    families = (module.family if isinstance(module, FrozenExperts) else module for module in network.modules())
    return any(getattr(family, "has_bias", False) for family in families)


# --- frozen experts and their update -----------------------------------------------------------------------------


class ExpertWeights(nn.Module):
    """A frozen 3-D parameter, with a LoRA update after `add_lora`.

    It holds NF4 codes or a `weight` (experts x rows x columns). `lora_A` (experts·r x in) and `lora_B` (out x
    r·experts) are float32.
    """

    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None
    weight: Tensor | None

    def __init__(self, value: PackedExperts | Tensor, shape: Sequence[int], *, transposed: bool, swapped: bool) -> None:
        """`transposed`: a matrix is in x out. `swapped`: A multiplies its rows, as PEFT does if `is_transposed`."""
        super().__init__()
        self.experts, self.rows, self.columns = shape
        self.transposed, self.multiplies_rows = transposed, swapped
        self.enabled, self.scale, self.rank = True, 1.0, 0
        self.packed_dtype = value.dtype if isinstance(value, PackedExperts) else None
        parts = value._asdict() if isinstance(value, PackedExperts) else {"weight": value}
        for name in ("weight", *PackedExperts._fields[:-1]):
            self.register_buffer(name, parts.get(name))
        for name in ("lora_A", "lora_B"):
            self.register_parameter(name, None)

    @property
    def shape(self) -> ExpertShape:
        """Experts, inputs and outputs of the update."""
        sides = (self.rows, self.columns) if self.multiplies_rows else (self.columns, self.rows)
        return ExpertShape(self.experts, *sides)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        tensor = self.codes if self.weight is None else self.weight
        return cast(Tensor, tensor).device

    def add_lora(self, first_a: Tensor, rank: int, scale: float) -> None:
        """Adds an update with A = `first_a` (experts·rank x in) and B = 0."""
        self.rank, self.scale = rank, scale
        self.lora_A = nn.Parameter(first_a.to(self.device, torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(self.shape.outputs, rank * self.experts, device=self.device))

    def matrices(self, which: Sequence[int]) -> Tensor:
        """Returns the matrices of the experts `which`, stacked, in their stored layout, without the update."""
        all_experts = len(which) == self.experts
        index = torch.tensor(which, device=self.device)
        if self.weight is not None:
            return self.weight if all_experts else self.weight[index]
        parts = [cast(Tensor, getattr(self, name)) for name in ("codes", "scales", "nested", "offsets")]
        codes, scales, nested, offsets = parts if all_experts else (part[index] for part in parts)
        books = cast(Tensor, self.book), cast(Tensor, self.scale_book)
        packed = PackedExperts(codes, scales, nested, offsets, *books, cast(torch.dtype, self.packed_dtype))
        return unpack_experts(packed, (len(which), self.rows, self.columns))

    def each(self, experts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yields each of `experts` with its matrix (in x out, a view); several are dequantized together."""
        step = 1 if self.weight is not None else max(1, DEQUANTIZED_ELEMENTS // (self.rows * self.columns))
        for start in range(0, len(experts), step):
            part = experts[start : start + step]
            matrices = self.weight[part[0]][None] if self.weight is not None else self.matrices(part)
            for expert, matrix in zip(part, matrices, strict=True):
                yield expert, matrix if self.transposed else matrix.T

    def factors(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns A (experts x r x in) and B (experts x out x r) in `dtype`."""
        shaped = b.view(len(b), self.rank, self.experts).permute(2, 0, 1)
        return a.view(self.experts, self.rank, -1).to(dtype), shaped.to(dtype, memory_format=torch.contiguous_format)

    def product(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Maps `x` (rows sorted by expert, x in) to rows x out; expert e multiplies the next `counts[e]` rows.

        Rows beyond the counts become zero. Differentiable in `x`, A and B; no dequantized weight is saved.
        """
        a, b = (self.lora_A, self.lora_B) if self.enabled else (None, None)
        return cast(Tensor, _Product.apply(x, a, b, self, counts))  # type: ignore[no-untyped-call]

    def whole(self) -> Tensor:
        """Returns all matrices with the update, differentiable in A and B."""
        base = self.matrices(range(self.experts))
        if self.lora_A is None or self.lora_B is None or not self.enabled:
            return base
        a, b = self.factors(self.lora_A, self.lora_B, base.dtype)
        update = torch.bmm(b, a) * self.scale
        return base + (update.transpose(1, 2) if self.multiplies_rows else update)


class _Product(torch.autograd.Function):
    """y = x W + s (x Aᵀ) Bᵀ per expert. Saves x, A and B; nothing if there is no update."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor | None, b: Tensor | None, weights: ExpertWeights, counts: Sequence[int]
    ) -> Tensor:
        ctx.weights, ctx.counts = weights, counts
        update = a is not None and b is not None
        ctx.save_for_backward(*((x, a, b) if update else ()))
        outputs = weights.columns if weights.transposed else weights.rows
        y = x.new_zeros(len(x), outputs)
        small_a, small_b = weights.factors(a, b, x.dtype) if a is not None and b is not None else (None, None)
        for expert, rows, matrix in _active_experts(weights, counts):
            part = x[rows]
            if small_a is None or small_b is None:
                torch.mm(part, matrix, out=y[rows])
                continue
            inner = (part @ small_a[expert].T).mul_(weights.scale)
            torch.addmm(inner @ small_b[expert].T, part, matrix, out=y[rows])  # accumulated in float32, rounded once
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (dy,) = grads
        weights, counts = ctx.weights, ctx.counts
        inputs = weights.rows if weights.transposed else weights.columns
        dx = dy.new_zeros(len(dy), inputs) if ctx.needs_input_grad[0] else None
        saved = ctx.saved_tensors  # read once: with checkpointing it can be read only once
        if not saved:
            if dx is not None:
                for _, rows, matrix in _active_experts(weights, counts):
                    torch.mm(dy[rows], matrix.T, out=dx[rows])
            return dx, None, None, None, None
        x, a, b = saved
        small_a, small_b = weights.factors(a, b, dy.dtype)
        da, db = torch.zeros_like(small_a), torch.zeros_like(small_b)
        for expert, rows, matrix in _active_experts(weights, counts):
            part, d_part = x[rows], dy[rows]
            d_inner = (d_part @ small_b[expert]).mul_(weights.scale)
            torch.mm(d_inner.T, part, out=da[expert])
            torch.mm(d_part.T, (part @ small_a[expert].T).mul_(weights.scale), out=db[expert])
            if dx is not None:
                torch.addmm(d_inner @ small_a[expert], d_part, matrix.T, out=dx[rows])
        return dx, da.to(a.dtype).view_as(a), db.permute(1, 2, 0).to(b.dtype).reshape(b.shape), None, None


def _active_experts(weights: ExpertWeights, counts: Sequence[int]) -> Iterator[tuple[int, slice, Tensor]]:
    """Yields each expert that has rows, with those rows and its matrix (in x out)."""
    starts = [sum(counts[:expert]) for expert in range(len(counts))]
    for expert, matrix in weights.each([expert for expert, count in enumerate(counts) if count]):
        yield expert, slice(starts[expert], starts[expert] + counts[expert]), matrix


class FrozenExperts(nn.Module):
    """The frozen experts of one layer. Replaces the family's module and still uses its activation, biases and norms.

    If the module follows transformers' expert interface, experts are computed one by one. Otherwise its own forward
    runs on all dequantized matrices, under activation checkpointing.
    """

    def __init__(self, family: nn.Module) -> None:
        """Moves the expert parameters out of the module `family`."""
        super().__init__()
        loaded = packed_parameters(family)
        self.parts = [*loaded] if loaded else expert_parameters(family)
        self.by_interface = hasattr(family, "_apply_gate") and hasattr(family, "has_bias")
        swapped = bool(getattr(family, "is_transposed", False))
        for part in self.parts:
            value: Any = getattr(family, part)
            packed, shape = loaded.get(part, (value.detach(), tuple(value.shape)))
            delattr(family, part)
            self.add_module(part, ExpertWeights(packed, shape, transposed=swapped, swapped=swapped))
        self.family = family

    @property
    def weights(self) -> dict[str, ExpertWeights]:
        """The expert parameters by name in the family's module, in its order."""
        return {part: cast(ExpertWeights, getattr(self, part)) for part in self.parts}

    def trainable(self, name: str) -> dict[str, nn.Parameter]:
        """Returns the LoRA parameters by PEFT's names for the module `name`; the last wrapper is outermost."""
        adapted = [weights for weights in self.weights.values() if weights.lora_A is not None]
        parameters: dict[str, nn.Parameter | None] = {}
        for depth, weights in zip(reversed(range(len(adapted))), adapted, strict=True):
            prefix = name + ".base_layer" * depth
            parameters |= {f"{prefix}.lora_A": weights.lora_A, f"{prefix}.lora_B": weights.lora_B}
        return cast("dict[str, nn.Parameter]", parameters)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Computes what the family's module computes, from the same arguments."""
        if self.by_interface:
            return self._routed(*inputs, *options.values())
        if torch.is_grad_enabled():
            return checkpoint(self._dense, *inputs, use_reentrant=False, **options)
        return self._dense(*inputs, **options)

    def _dense(self, *inputs: Any, **options: Any) -> Any:
        whole = {part: weights.whole() for part, weights in self.weights.items()}
        return torch.func.functional_call(self.family, whole, inputs, options)

    def _routed(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Maps `hidden` (tokens x width) to tokens x width, given each token's experts and weights (tokens x k)."""
        family: Any = self.family
        tokens, width = hidden.shape
        index, order = torch.sort(top_k_index.reshape(-1), stable=True)
        counts = self._counts(index)
        repeated = hidden[:, None].expand(tokens, top_k_index.shape[1], width).reshape(-1, width)
        first, last = self.parts
        biased = index.clamp(max=len(counts) - 1) if family.has_bias else index
        x = getattr(self, first).product(repeated[order], counts)
        x = x + getattr(family, f"{first}_bias")[biased] if family.has_bias else x
        x = family._apply_gate(x) if family.has_gate else family.act_fn(x)
        x = getattr(self, last).product(x, counts)
        x = x + getattr(family, f"{last}_bias")[biased] if family.has_bias else x
        if getattr(family, "has_post_expert_norm", False):
            x = family.post_expert_norm(x)
        x = x * top_k_weights.reshape(-1)[order][:, None]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return cast(Tensor, x[inverse].view(tokens, -1, width).sum(1).to(hidden.dtype))

    def _counts(self, index: Tensor) -> list[int]:
        """Returns the number of rows of each expert; the only device synchronization."""
        experts = getattr(self, self.parts[0]).experts
        ones = torch.ones_like(index, dtype=torch.int64)
        counted = torch.zeros(experts + 1, dtype=torch.int64, device=index.device).scatter_add_(0, index, ones)
        return cast("list[int]", counted[:experts].tolist())
