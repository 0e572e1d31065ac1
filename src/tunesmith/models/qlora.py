"""A frozen linear layer in NF4 or in 16 bits, and the trainable LoRA update over it.

The formula is y = x Wᵀ + b + s (x Aᵀ) Bᵀ with s = alpha / rank (Hu et al. 2021, arXiv:2106.09685) or
alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732), W stored as NF4 with doubly quantised scales
(Dettmers et al. 2023, arXiv:2305.14314). Forward and backward are written here and only dequantise with
bitsandbytes: its own Linear4bit repacks weights in evaluation on some processors and then trains without a gradient.

DoRA (Liu et al. 2024, arXiv:2402.09353) gives each output a trained magnitude m:
y = m / |W + s B A| (x Wᵀ + s (x Aᵀ) Bᵀ) + b, the norm over the inputs of an output, taken as a constant in the
backward (section 4.3 there). W is the weight as it is multiplied: dequantised, where it is NF4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained. Holds NF4 codes, a dense weight, or both (then the dense one is used).

    It is an `nn.Linear` so that PEFT wraps it like any other; `weight` is the dense weight, or the packed codes.
    """

    def __init__(self, features_in: int, features_out: int, bias: Tensor | None) -> None:
        """Makes an empty layer; `from_dense` and `from_nf4` fill one."""
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features = features_in, features_out
        self.state: Any = None
        self.dense: Tensor | None = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def from_dense(cls, weight: Tensor, bias: Tensor | None) -> FrozenLinear:
        """A layer over `weight` (out x in), not copied."""
        layer = cls(weight.shape[1], weight.shape[0], bias)
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        return layer

    @classmethod
    def from_nf4(cls, packed: Tensor, state: Any, bias: Tensor | None) -> FrozenLinear:
        """A layer over bitsandbytes' packed codes (uint8) and their QuantState, whose shape is out x in."""
        layer = cls(state.shape[1], state.shape[0], bias)
        layer.weight = nn.Parameter(packed.detach(), requires_grad=False)
        layer.state = state
        return layer

    def matrix(self) -> Tensor:
        """The weight, out x in, in the number type of the products."""
        if self.dense is not None:
            return self.dense
        if self.state is None:
            return self.weight
        from bitsandbytes.functional import dequantize_4bit

        codes = self.weight.view(torch.uint8)  # training/fsdp calls them by another type
        return cast(Tensor, dequantize_4bit(codes, self.state))

    def keep_dense(self) -> None:
        """Dequantises once and keeps the result: the same numbers, more memory, no work at each use."""
        if self.state is not None and self.dense is None:
            self.dense = self.matrix()

    def forward(self, x: Tensor) -> Tensor:
        """`x` (... x in) to ... x out; the gradient reaches `x`, and the bias where that is trained."""
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
        """The same with another `bias` (out) or none, and `add` (... x out) in the sum before it is rounded."""
        return cast(Tensor, _FrozenProduct.apply(x, bias, add, self))  # type: ignore[no-untyped-call]


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ + b + what is added, keeping no dequantised weight for the backward."""

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
        made = x.new_empty(*x.shape[:-1], layer.out_features)  # no view: some families change a layer's output in place
        y = made.view(len(flat), layer.out_features)
        torch.mm((flat @ a.to(x.dtype).T).mul_(scale), b.to(x.dtype).T, out=y)
        y.addmm_(flat, layer.matrix().T)  # summed in 32 bits and rounded once: a small update is not lost
        if bias is not None:
            y.add_(bias)
        return made

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

    Where they were made, `lora_magnitude_vector` (out) is DoRA's and `trained_bias` (out) stands for the base's bias,
    both float32. `start_A` (rank x in) and `start_B` (out x rank) are PiSSA's start, whose product the base gave away.
    """

    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, base: FrozenLinear, rank: int, alpha: float, dropout: float, *, rs: bool = False) -> None:
        """B starts at zero, so the layer starts as its base. `rs` scales by alpha / sqrt(rank), not alpha / rank."""
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
        """The frozen weight (some models look at its device or type)."""
        return self.base.weight

    def take_from_base(self) -> None:
        """From now on the base gives away s B A as they are now: the layer is W - s B₀ A₀ + s B A (PiSSA)."""
        self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    def train_magnitude(self) -> None:
        """Adds DoRA's magnitude, which starts as the norm of the layer as it is."""
        self.lora_magnitude_vector = nn.Parameter(self.norms().clone())

    def train_bias(self) -> None:
        """Trains a copy of the base's bias."""
        self.trained_bias = nn.Parameter(self.base.bias.detach().float().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole update: the trained ones, or (A over A₀) and (B beside -B₀), of twice the rank."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.start_A)), torch.cat((self.lora_B, -self.start_B), dim=1)

    def norms(self) -> Tensor:
        """|W + s B A| of each output, float32 (out), without a gradient; kept in evaluation."""
        versions = self.lora_A._version, self.lora_B._version
        if self._norms is not None and self._norms[0] == versions:
            return self._norms[1]
        with torch.inference_mode(False), torch.no_grad():  # kept ones may later stand in a backward
            a, b = self.factors()
            whole = torch.addmm(self.base.matrix().to(b.dtype), b, a, alpha=self.scale)
            made: Tensor = torch.linalg.vector_norm(whole, dim=1)
        if not self.training:
            self._norms = versions, made
        return made

    def train(self, mode: bool = True) -> LoraLinear:
        """As nn.Module's; forgets the norms, for an optimizer may write without telling torch."""
        self._norms = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (... x in) to ... x out."""
        if not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        bias = self.base.bias if self.trained_bias is None else self.trained_bias.to(x.dtype)
        dropping = bool(self.dropout and self.training)
        if self.lora_magnitude_vector is not None:
            return self._decomposed(x, self.lora_magnitude_vector, bias, dropping)
        if dropping:
            return self._left(x, bias, self._update(functional.dropout(x, self.dropout)))
        return self._product(x, bias)

    def _decomposed(self, x: Tensor, magnitude: Tensor, bias: Tensor | None, dropping: bool) -> Tensor:
        """DoRA. Under dropout only what differs from the base sees the dropped input, as in PEFT."""
        gain = (magnitude / self.norms()).to(x.dtype)
        if not dropping:
            y = self._product(x, None) * gain
            return y if bias is None else y + bias
        dropped = functional.dropout(x, self.dropout)
        return self._left(x, bias) - self._left(dropped, None) + self._product(dropped, None) * gain

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        made = _LoraProduct.apply(x, *self.factors(), bias, self.base, self.scale)  # type: ignore[no-untyped-call]
        return cast(Tensor, made)

    def _update(self, x: Tensor) -> Tensor:
        inner = functional.linear(x, self.lora_A.to(x.dtype))
        return functional.linear(inner, self.lora_B.to(x.dtype)) * self.scale

    def _left(self, x: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
        """The base, less what it gave away, and what is added."""
        if self.start_A is not None and self.start_B is not None:
            inner = functional.linear(x, self.start_A.to(x.dtype))
            away = functional.linear(inner, self.start_B.to(x.dtype)) * self.scale
            add = -away if add is None else add - away
        return self.base.product(x, bias, add)


class Trained(nn.Module):
    """A module of which some parameters are trained whole: float32 copies, cast to the module's type at each use."""

    def __init__(self, base: nn.Module, copies: dict[str, nn.Parameter]) -> None:
        """`copies`: the trained parameters by their names in `base`, in its shapes; see `copy_of`."""
        super().__init__()
        self.base, self.copies, self.enabled = base, nn.ParameterDict(copies), True

    def current(self, name: str) -> Tensor | None:
        """The parameter `name` as it is used now: the copy where it is trained and on, in the module's type."""
        own = cast("Tensor | None", getattr(self.base, name, None))
        if own is None or not self.enabled or name not in self.copies:
            return own
        return cast(Tensor, self.copies[name].to(own.dtype))

    @property
    def weight(self) -> Tensor | None:
        """The weight in use; a loss that multiplies by the head itself reads it here."""
        return self.current("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias in use."""
        return self.current("bias")

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the module makes of the same arguments."""
        now = {name: cast(Tensor, self.current(name)) for name in self.copies}
        return torch.func.functional_call(self.base, now, given, named)


def copy_of(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Trainable float32 copies of those parameters among `names` that `module` has."""
    own = {name: getattr(module, name, None) for name in names}
    return {name: nn.Parameter(value.detach().float().clone()) for name, value in own.items() if value is not None}
