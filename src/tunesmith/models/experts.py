"""The experts of a mixture-of-experts layer: frozen, multiplied only where they are hit, adapted by LoRA.

transformers 5 stacks all experts of a layer in one 3-D parameter (experts x out x in; gpt-oss: experts x in x out).
The update is PEFT's for `target_parameters`: rank r per expert, A of all experts stacked (experts·r x in), B of all
experts side by side, the experts innermost (out x r·experts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.config.recipe import Adapter, Named
from tunesmith.errors import ModelError, RecipeError, TunesmithError
from tunesmith.models.expert_packing import Packed, carried, expert_parameters, packed_parameter, unpack

AT_ONCE = 1 << 25  # elements that are dequantized together


class ExpertShape(NamedTuple):
    """One 3-D parameter: its experts, and the inputs and outputs of each."""

    experts: int
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Elements of the parameter."""
        return self.experts * self.inputs * self.outputs

    def adapter_parameters(self, rank: int) -> int:
        """Elements of its LoRA update with `rank` per expert."""
        return self.experts * rank * (self.inputs + self.outputs)


def expert_shapes(network: nn.Module) -> dict[str, ExpertShape]:
    """The 3-D expert parameters of `network` by name, in order; a model on the meta device serves as well."""
    found: dict[str, ExpertShape] = {}
    for name, module in network.named_modules():
        if isinstance(module, FrozenExperts):
            found |= {f"{name}.{part}": weights.shape for part, weights in module.weights.items()}
            continue
        for part in expert_parameters(module):
            experts, first, second = getattr(module, part).shape
            transposed = bool(getattr(module, "is_transposed", False))
            found[f"{name}.{part}"] = ExpertShape(experts, *((first, second) if transposed else (second, first)))
    return found


def freeze_experts(network: Any, *, packed: bool, where: str = "") -> None:
    """Replaces the experts' modules of `network` by frozen ones.

    `packed`: experts that are still in 16 bits, as an NF4 checkpoint of transformers holds them, are packed now.
    Raises ModelError for experts in a form that is not read; `where` names the model.
    """
    if unread := _unread(network):
        raise ModelError(_UNREAD.format(unread), where=where, next="Choose another base.model")
    for name, module in list(network.named_modules()):
        if not (expert_parameters(module) or carried(module)):
            continue
        for part in expert_parameters(module):
            value = getattr(module, part)
            value.data = value.data.to(network.dtype)  # transformers 5.17 reads MXFP4 in bfloat16, whatever it is told
            if packed:
                setattr(module, part, packed_parameter(value))
        network.set_submodule(name, FrozenExperts(module))


# --- what PEFT can read ------------------------------------------------------------------------------------------

# Names that PEFT takes for experts of a checkpoint from before transformers 5, even where they are other layers'.
RENAMED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def peft_targets(names: Sequence[str], parts: Sequence[str], *, moe: bool) -> tuple[list[str], list[str]]:
    """PEFT's target_modules and target_parameters for the linear layers `names` and the expert parameters `parts`.

    Where the model has experts (`moe`), PEFT 0.21 reads some names of linear layers as its experts (see RENAMED), so
    those layers' weights are named as parameters, which gives the same tensors.
    """
    renamed = {name for name in names if moe and name.rpartition(".")[2] in RENAMED}
    modules = {name.rpartition(".")[2] for name in names if name not in renamed}
    parameters = {_tail(name) + ".weight" for name in renamed} | {_tail(name) for name in parts}
    return sorted(modules), sorted(parameters)


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


_UNREAD = "the experts in {} are stored in a form that is neither packed nor trained here"


def _unread(network: nn.Module) -> str:
    """The first module that holds experts in another form than stacked matrices; empty where there is none."""
    for name, module in network.named_modules():
        own = [value.dim() for value in module.parameters(recurse=False)]
        if "Expert" not in type(module).__name__ or isinstance(module, ExpertWeights | nn.Linear) or carried(module):
            continue
        if max(own, default=0) > 1 and not expert_parameters(module):
            return str(name)
    return ""


def check_experts(
    adapter: Adapter,
    network: nn.Module,
    names: Sequence[str],
    parts: Sequence[str],
    *,
    engine: str = "native",
    spread: str = "auto",
    targets: Sequence[str] = (),
) -> list[TunesmithError]:
    """What a mixture of experts cannot have of these settings; empty for other models.

    `names` and `parts` are the linear layers and the expert parameters of `network` that the adapter covers; `engine`,
    `spread` and `targets` are the recipe's `train.engine`, `train.spread` and the names of its `export.files`.
    """
    if unread := _unread(network):
        return [ModelError(_UNREAD.format(unread), where="base.model", next="Choose another base.model")]
    stacked = expert_shapes(network)
    errors: list[TunesmithError] = [
        *unsupported(
            network, names, parts,
            dropout=adapter.dropout, dora=adapter.dora, start=adapter.start, bias=adapter.bias,
        )
    ]  # fmt: skip
    if stacked and engine != "native":
        errors.append(
            RecipeError(f"engine {engine} trains no mixture of experts", where="train.engine", next="Set it to native")
        )
    if stacked and spread == "fsdp":
        advice = "Set train.spread to ddp"
        errors.append(RecipeError("experts are not divided over processes", where="train.spread", next=advice))
    if parts and "gguf_lora" in targets:
        advice = "Export gguf instead, or set adapter.experts to none"
        errors.append(
            RecipeError("a GGUF adapter cannot hold updates of experts", where="export.files: gguf_lora", next=advice)
        )
    return errors


def unsupported(
    network: nn.Module,
    names: Sequence[str],
    parts: Sequence[str],
    *,
    dropout: float,
    dora: bool,
    start: Named,
    bias: str,
) -> list[ModelError]:
    """What experts cannot have of an adapter over the linear layers `names` and the expert parameters `parts`."""
    moe = bool(expert_shapes(network))
    renamed = sorted({name.rpartition(".")[2] for name in names if moe and name.rpartition(".")[2] in RENAMED})
    errors = []
    for setting, on in (("dora", dora), ("dropout", bool(dropout))):
        if on and (parts or renamed):
            what = "the experts" if parts else f"{', '.join(renamed)} of a mixture of experts"
            usual = "false" if setting == "dora" else "0"
            advice = f"Set adapter.{setting} to {usual}, or name adapter.layers without {'them' if parts else 'these'}"
            errors.append(ModelError(f"PEFT has no {setting} for {what}", where=f"adapter.{setting}", next=advice))
    if parts and start.name != "zero":
        advice = "Set adapter.start to zero, or adapter.experts to none"
        errors.append(ModelError(f"experts cannot start from {start.name}", where="adapter.start", next=advice))
    if parts and bias != "none" and _has_bias(network):
        advice = "Set adapter.bias to none, or adapter.experts to none"
        errors.append(ModelError("the experts' biases are not trained", where="adapter.bias", next=advice))
    return errors


def _has_bias(network: nn.Module) -> bool:
    families = (module.family if isinstance(module, FrozenExperts) else module for module in network.modules())
    return any(getattr(family, "has_bias", False) for family in families)


# --- the frozen experts and their update ----------------------------------------------------------------------------


class ExpertWeights(nn.Module):
    """One 3-D parameter, frozen, with its LoRA update once `add_lora` was called.

    It holds packed codes or a plain `weight` (experts x rows x columns). `lora_A` (experts·r x in) and `lora_B`
    (out x r·experts) are float32.
    """

    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None
    weight: Tensor | None

    def __init__(self, value: Packed | Tensor, shape: Sequence[int], *, transposed: bool, swapped: bool) -> None:
        """`transposed`: a matrix is in x out. `swapped`: A works on its rows, which PEFT reads off `is_transposed`."""
        super().__init__()
        self.experts, self.rows, self.columns = shape
        self.transposed, self.swapped = transposed, swapped
        self.enabled, self.scale, self.rank = True, 1.0, 0
        self.packed_dtype = value.dtype if isinstance(value, Packed) else None
        parts = value._asdict() if isinstance(value, Packed) else {"weight": value}
        for name in ("weight", *Packed._fields[:-1]):
            self.register_buffer(name, parts.get(name))
        for name in ("lora_A", "lora_B"):
            self.register_parameter(name, None)

    @property
    def shape(self) -> ExpertShape:
        """Experts, inputs and outputs, as the update sees them."""
        sides = (self.rows, self.columns) if self.swapped else (self.columns, self.rows)
        return ExpertShape(self.experts, *sides)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        held = self.codes if self.weight is None else self.weight
        return cast(Tensor, held).device

    def add_lora(self, first_a: Tensor, rank: int, scale: float) -> None:
        """Adds an update that starts at zero, its A at `first_a` (experts·rank x in)."""
        self.rank, self.scale = rank, scale
        self.lora_A = nn.Parameter(first_a.to(self.device, torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(self.shape.outputs, rank * self.experts, device=self.device))

    def matrices(self, which: Sequence[int]) -> Tensor:
        """The matrices of the experts `which`, stacked as they are stored, without the update."""
        every = len(which) == self.experts
        index = torch.tensor(which, device=self.device)
        if self.weight is not None:
            return self.weight if every else self.weight[index]
        parts = [cast(Tensor, getattr(self, name)) for name in ("codes", "scales", "nested", "offsets")]
        codes, scales, nested, offsets = parts if every else (part[index] for part in parts)
        books = cast(Tensor, self.book), cast(Tensor, self.scale_book)
        packed = Packed(codes, scales, nested, offsets, *books, cast(torch.dtype, self.packed_dtype))
        return unpack(packed, (len(which), self.rows, self.columns))

    def each(self, which: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Each expert of `which` with its matrix (in x out, a view), some dequantized together."""
        step = 1 if self.weight is not None else max(1, AT_ONCE // (self.rows * self.columns))
        for start in range(0, len(which), step):
            part = which[start : start + step]
            matrices = self.weight[part[0]][None] if self.weight is not None else self.matrices(part)
            for expert, matrix in zip(part, matrices, strict=True):
                yield expert, matrix if self.transposed else matrix.T

    def factors(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (experts x r x in) and B (experts x out x r) in `dtype`."""
        shaped = b.view(len(b), self.rank, self.experts).permute(2, 0, 1)
        return a.view(self.experts, self.rank, -1).to(dtype), shaped.to(dtype, memory_format=torch.contiguous_format)

    def product(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """`x` (rows sorted by expert x in) to rows x out; expert e multiplies the next `counts[e]` rows.

        Rows beyond the counts become zero. The gradient reaches `x`, A and B; no dequantized weight is saved for it.
        """
        a, b = (self.lora_A, self.lora_B) if self.enabled else (None, None)
        return cast(Tensor, _Product.apply(x, a, b, self, counts))  # type: ignore[no-untyped-call]

    def whole(self) -> Tensor:
        """All matrices with the update, differentiable in A and B."""
        base = self.matrices(range(self.experts))
        if self.lora_A is None or self.lora_B is None or not self.enabled:
            return base
        a, b = self.factors(self.lora_A, self.lora_B, base.dtype)
        update = torch.bmm(b, a) * self.scale
        return base + (update.transpose(1, 2) if self.swapped else update)


class _Product(torch.autograd.Function):
    """y = x W + s (x Aᵀ) Bᵀ per expert, saving x, A and B only; without an update, nothing."""

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
        for expert, rows, matrix in _hit(weights, counts):
            part = x[rows]
            if small_a is None or small_b is None:
                torch.mm(part, matrix, out=y[rows])
                continue
            inner = (part @ small_a[expert].T).mul_(weights.scale)
            torch.addmm(inner @ small_b[expert].T, part, matrix, out=y[rows])  # summed in 32 bits, rounded once
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (dy,) = grads
        weights, counts = ctx.weights, ctx.counts
        inputs = weights.rows if weights.transposed else weights.columns
        dx = dy.new_zeros(len(dy), inputs) if ctx.needs_input_grad[0] else None
        saved = ctx.saved_tensors  # once: recomputed activations are given out a single time
        if not saved:
            if dx is not None:
                for _, rows, matrix in _hit(weights, counts):
                    torch.mm(dy[rows], matrix.T, out=dx[rows])
            return dx, None, None, None, None
        x, a, b = saved
        small_a, small_b = weights.factors(a, b, dy.dtype)
        da, db = torch.zeros_like(small_a), torch.zeros_like(small_b)
        for expert, rows, matrix in _hit(weights, counts):
            part, d_part = x[rows], dy[rows]
            d_inner = (d_part @ small_b[expert]).mul_(weights.scale)
            torch.mm(d_inner.T, part, out=da[expert])
            torch.mm(d_part.T, (part @ small_a[expert].T).mul_(weights.scale), out=db[expert])
            if dx is not None:
                torch.addmm(d_inner @ small_a[expert], d_part, matrix.T, out=dx[rows])
        return dx, da.to(a.dtype).view_as(a), db.permute(1, 2, 0).to(b.dtype).reshape(b.shape), None, None


def _hit(weights: ExpertWeights, counts: Sequence[int]) -> Iterator[tuple[int, slice, Tensor]]:
    """The experts that have rows, with those rows and their matrix (in x out)."""
    starts = [sum(counts[:expert]) for expert in range(len(counts))]
    for expert, matrix in weights.each([expert for expert, count in enumerate(counts) if count]):
        yield expert, slice(starts[expert], starts[expert] + counts[expert]), matrix


class FrozenExperts(nn.Module):
    """The experts of one layer, in place of the family's module, whose gate, biases and norms it goes on using.

    Families that follow transformers' interface for experts are multiplied expert by expert; any other family's own
    forward runs over all matrices dequantized, and again before its backward.
    """

    def __init__(self, family: nn.Module) -> None:
        """Takes the expert parameters out of the module `family`."""
        super().__init__()
        loaded = carried(family)
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
        """The expert parameters by their names in the family's module, in its order."""
        return {part: cast(ExpertWeights, getattr(self, part)) for part in self.parts}

    def trainable(self, name: str) -> dict[str, nn.Parameter]:
        """The updates' parameters by PEFT's names, `name` being this module's: the last one's wrapper is outermost."""
        adapted = [weights for weights in self.weights.values() if weights.lora_A is not None]
        found: dict[str, nn.Parameter | None] = {}
        for depth, weights in zip(reversed(range(len(adapted))), adapted, strict=True):
            prefix = name + ".base_layer" * depth
            found |= {f"{prefix}.lora_A": weights.lora_A, f"{prefix}.lora_B": weights.lora_B}
        return cast("dict[str, nn.Parameter]", found)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the family's module computes from the same arguments."""
        if self.by_interface:
            return self._routed(*inputs, *named.values())
        if torch.is_grad_enabled():
            return checkpoint(self._dense, *inputs, use_reentrant=False, **named)
        return self._dense(*inputs, **named)

    def _dense(self, *inputs: Any, **named: Any) -> Any:
        whole = {part: weights.whole() for part, weights in self.weights.items()}
        return torch.func.functional_call(self.family, whole, inputs, named)

    def _routed(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """`hidden` (tokens x width), each token's `chosen` experts and `shares` (tokens x k), to tokens x width."""
        family: Any = self.family
        tokens, width = hidden.shape
        index, order = torch.sort(chosen.reshape(-1), stable=True)
        counts = self._counts(index)
        spread = hidden[:, None].expand(tokens, chosen.shape[1], width).reshape(-1, width)
        first, last = self.parts
        biased = index.clamp(max=len(counts) - 1) if family.has_bias else index
        x = getattr(self, first).product(spread[order], counts)
        x = x + getattr(family, f"{first}_bias")[biased] if family.has_bias else x
        x = family._apply_gate(x) if family.has_gate else family.act_fn(x)
        x = getattr(self, last).product(x, counts)
        x = x + getattr(family, f"{last}_bias")[biased] if family.has_bias else x
        if getattr(family, "has_post_expert_norm", False):
            x = family.post_expert_norm(x)
        x = x * shares.reshape(-1)[order][:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return cast(Tensor, x[back].view(tokens, -1, width).sum(1).to(hidden.dtype))

    def _counts(self, index: Tensor) -> list[int]:
        """Rows of each expert: the only time that the device is waited for."""
        experts = getattr(self, self.parts[0]).experts
        ones = torch.ones_like(index, dtype=torch.int64)
        counted = torch.zeros(experts + 1, dtype=torch.int64, device=index.device).scatter_add_(0, index, ones)
        return cast("list[int]", counted[:experts].tolist())
