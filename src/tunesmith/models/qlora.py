"""Frozen linear layers in NF4 or 16 bits, with trainable LoRA updates.

A layer computes y = x Wᵀ + b + s (x Aᵀ) Bᵀ with s = alpha / rank (Hu et al. 2021, arXiv:2106.09685) or
alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732). W is stored as NF4 with doubly quantized scales
(Dettmers et al. 2023, arXiv:2305.14314). Only dequantization is bitsandbytes': its Linear4bit repacks weights in
evaluation on some CPUs, and then training has no gradient.

DoRA (Liu et al. 2024, arXiv:2402.09353) gives each output a trained magnitude m:
y = m / |W + s B A| (x Wᵀ + s (x Aᵀ) Bᵀ) + b, with the norm over each output's inputs, constant in the backward pass
(section 4.3 of the paper). W is the dequantized weight if it is NF4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class FrozenLinear(nn.Linear):
    """A frozen linear layer with NF4 codes, a dense weight, or both (then the dense one is used).

    It is an `nn.Linear`, so that PEFT can wrap it; `weight` is the dense weight or the packed codes.
    """

    def __init__(self, features_in: int, features_out: int, bias: Tensor | None) -> None:
        """Creates an empty layer; use `from_dense` or `from_nf4`."""
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features = features_in, features_out
        self.state: Any = None
        self.dense: Tensor | None = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def from_dense(cls, weight: Tensor, bias: Tensor | None) -> FrozenLinear:
        """Returns a layer with `weight` (out x in), which is not copied."""
        layer = cls(weight.shape[1], weight.shape[0], bias)
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        return layer

    @classmethod
    def from_nf4(cls, packed: Tensor, state: Any, bias: Tensor | None) -> FrozenLinear:
        """Returns a layer with bitsandbytes' packed codes (uint8) and their QuantState, whose shape is out x in."""
        layer = cls(state.shape[1], state.shape[0], bias)
        layer.weight = nn.Parameter(packed.detach(), requires_grad=False)
        layer.state = state
        return layer

    def matrix(self) -> Tensor:
        """Returns the weight (out x in), dequantized if it is NF4."""
        if self.dense is not None:
            return self.dense
        if self.state is None:
            return self.weight
        from bitsandbytes.functional import dequantize_4bit

        codes = self.weight.view(torch.uint8)  # training/fsdp views them as another dtype
        return cast(Tensor, dequantize_4bit(codes, self.state))

    def keep_dense(self) -> None:
        """Dequantizes once and keeps the result: same numbers, more memory, no dequantization at each use."""
        if self.state is not None and self.dense is None:
            self.dense = self.matrix()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x` (... x in) to ... x out; differentiable in `x`, and in the bias if that is trained."""
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
        """Computes x Wᵀ with another `bias` (out) or none, plus `add` (... x out), added before rounding."""
        return cast(Tensor, _FrozenProduct.apply(x, bias, add, self))  # type: ignore[no-untyped-call]


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ + b + add, saving no dequantized weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, add: Tensor | None, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        if add is None:
            return functional.linear(x, layer.matrix(), bias)
        y = torch.empty_like(add, memory_format=torch.contiguous_format)
        torch.addmm(add.flatten(0, -2), x.flatten(0, -2), layer.matrix().T, out=y.view(-1, y.shape[-1]))
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (dy,) = grads
        dx = dy @ ctx.layer.matrix() if ctx.needs_input_grad[0] else None
        dbias = dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return dx, dbias, dy if ctx.needs_input_grad[2] else None, None


class _LoraProduct(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ, saving x, A and B only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, layer: FrozenLinear, scale: float
    ) -> Tensor:
        ctx.layer, ctx.scale = layer, scale
        ctx.save_for_backward(x, a, b)
        flat = x.reshape(-1, x.shape[-1])
        output = x.new_empty(
            *x.shape[:-1], layer.out_features
        )  # no view: some families change a layer's output in place
        y = output.view(len(flat), layer.out_features)
        torch.mm((flat @ a.to(x.dtype).T).mul_(scale), b.to(x.dtype).T, out=y)
        y.addmm_(flat, layer.matrix().T)  # accumulated in float32 and rounded once, so that a small update is not lost
        if bias is not None:
            y.add_(bias)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, None, None]:
        x, a, b = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        small_a, small_b = a.to(x.dtype), b.to(x.dtype)
        dinner = (dy @ small_b).mul_(ctx.scale)  # rows x rank: the low-rank products come first
        db = (dy.T @ (flat @ small_a.T)).mul_(ctx.scale)
        da = dinner.T @ flat
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ ctx.layer.matrix()).addmm_(dinner, small_a).view_as(x)
        dbias = dy.sum(0) if ctx.needs_input_grad[3] else None
        return dx, da.to(a.dtype), db.to(b.dtype), dbias, None, None


class LoraLinear(nn.Module):
    """A frozen layer with a LoRA update. `lora_A` (rank x in) and `lora_B` (out x rank) are float32.

    Optional are DoRA's `lora_magnitude_vector` (out), a `trained_bias` (out) that replaces the base's, both float32,
    and PiSSA's frozen `start_A` (rank x in) and `start_B` (out x rank), whose product is subtracted.
    """

    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, base: FrozenLinear, rank: int, alpha: float, dropout: float, *, rs: bool = False) -> None:
        """Creates an update of zero. `rs` scales by alpha / sqrt(rank) instead of alpha / rank."""
        super().__init__()
        self.base, self.dropout, self.enabled = base, dropout, True
        self.scale = alpha / math.sqrt(rank) if rs else alpha / rank
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.lora_magnitude_vector: nn.Parameter | None = None
        self.trained_bias: nn.Parameter | None = None
        for name in ("start_A", "start_B"):
            self.register_buffer(name, None, persistent=False)
        self._norms: tuple[tuple[int, int], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The frozen weight (some models read its device or dtype)."""
        return self.base.weight

    def subtract_start(self) -> None:
        """Subtracts the current s B A as a frozen term, so that the layer is W - s B₀ A₀ + s B A (PiSSA)."""
        self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    def train_magnitude(self) -> None:
        """Adds DoRA's magnitude, initialized with the norms of the current weight."""
        self.lora_magnitude_vector = nn.Parameter(self.norms().clone())

    def train_bias(self) -> None:
        """Adds a trainable copy of the base's bias."""
        self.trained_bias = nn.Parameter(self.base.bias.detach().float().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Returns A and B of the whole update: the trained ones, or with PiSSA A over A₀ and B beside -B₀."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.start_A)), torch.cat((self.lora_B, -self.start_B), dim=1)

    def norms(self) -> Tensor:
        """Returns |W + s B A| of each output (float32), without gradient; cached in evaluation."""
        versions = self.lora_A._version, self.lora_B._version
        if self._norms is not None and self._norms[0] == versions:
            return self._norms[1]
        with torch.inference_mode(False), torch.no_grad():  # cached norms may be used in a later backward pass
            a, b = self.factors()
            weight = torch.addmm(self.base.matrix().to(b.dtype), b, a, alpha=self.scale)
            result: Tensor = torch.linalg.vector_norm(weight, dim=1)
        if not self.training:
            self._norms = versions, result
        return result

    def train(self, mode: bool = True) -> LoraLinear:
        """Sets the mode and clears cached norms, because an optimizer may write without changing `_version`."""
        self._norms = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x` (... x in) to ... x out."""
        if not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        bias = self.base.bias if self.trained_bias is None else self.trained_bias.to(x.dtype)
        with_dropout = bool(self.dropout and self.training)
        if self.lora_magnitude_vector is not None:
            return self._decomposed(x, self.lora_magnitude_vector, bias, with_dropout)
        if with_dropout:
            return self._base_product(x, bias, self._update(functional.dropout(x, self.dropout)))
        return self._product(x, bias)

    def _decomposed(self, x: Tensor, magnitude: Tensor, bias: Tensor | None, with_dropout: bool) -> Tensor:
        """Computes DoRA. With dropout only the difference from the base sees the dropped input, as in PEFT."""
        gain = (magnitude / self.norms()).to(x.dtype)
        if not with_dropout:
            y = self._product(x, None) * gain
            return y if bias is None else y + bias
        dropped = functional.dropout(x, self.dropout)
        base = self._base_product(x, bias) - self._base_product(dropped, None)
        return base + self._product(dropped, None) * gain

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        output = _LoraProduct.apply(x, *self.factors(), bias, self.base, self.scale)  # type: ignore[no-untyped-call]
        return cast(Tensor, output)

    def _update(self, x: Tensor) -> Tensor:
        inner = functional.linear(x, self.lora_A.to(x.dtype))
        return functional.linear(inner, self.lora_B.to(x.dtype)) * self.scale

    def _base_product(self, x: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
        """Returns the base's output minus PiSSA's frozen term, plus `add`."""
        if self.start_A is not None and self.start_B is not None:
            inner = functional.linear(x, self.start_A.to(x.dtype))
            start_update = functional.linear(inner, self.start_B.to(x.dtype)) * self.scale
            add = -start_update if add is None else add - start_update
        return self.base.product(x, bias, add)


class TrainedCopy(nn.Module):
    """A module with fully trained parameters: float32 copies, cast to the module's dtype at each use."""

    def __init__(self, base: nn.Module, copies: dict[str, nn.Parameter]) -> None:
        """`copies` are the trained parameters by their names in `base`; see `trainable_copies`."""
        super().__init__()
        self.base, self.copies, self.enabled = base, nn.ParameterDict(copies), True

    def current(self, name: str) -> Tensor | None:
        """Returns the parameter `name` in use: its trained copy in the module's dtype, or the original."""
        parameter = cast("Tensor | None", getattr(self.base, name, None))
        if parameter is None or not self.enabled or name not in self.copies:
            return parameter
        return cast(Tensor, self.copies[name].to(parameter.dtype))

    @property
    def weight(self) -> Tensor | None:
        """The weight in use, read by losses that multiply by the head themselves."""
        return self.current("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias in use."""
        return self.current("bias")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module with the parameters in use."""
        parameters = {name: cast(Tensor, self.current(name)) for name in self.copies}
        return torch.func.functional_call(self.base, parameters, args, kwargs)


def trainable_copies(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Returns trainable float32 copies of `module`'s parameters in `names`, without those that it lacks."""
    parameters = {name: getattr(module, name, None) for name in names}
    return {
        name: nn.Parameter(value.detach().float().clone()) for name, value in parameters.items() if value is not None
    }
