"""A frozen linear layer in NF4 or in 16 bits, and the trainable LoRA update over it.

The formula is y = x Wᵀ + b + s (x Aᵀ) Bᵀ with s = alpha / rank (Hu et al. 2021, arXiv:2106.09685), W stored as
NF4 with doubly quantised scales (Dettmers et al. 2023, arXiv:2305.14314). Forward and backward are written here
and only dequantise with bitsandbytes: its own Linear4bit repacks weights in evaluation on some processors and
then trains without a gradient.
"""

from __future__ import annotations

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

        return cast(Tensor, dequantize_4bit(self.weight, self.state))

    def keep_dense(self) -> None:
        """Dequantises once and keeps the result: the same numbers, more memory, no work at each use."""
        if self.state is not None and self.dense is None:
            self.dense = self.matrix()

    def forward(self, x: Tensor) -> Tensor:
        """`x` (... x in) to ... x out; the gradient reaches `x` only."""
        if self.state is None or self.dense is not None:
            return functional.linear(x, self.matrix(), self.bias)
        return cast(Tensor, _FrozenProduct.apply(x, self))  # type: ignore[no-untyped-call]


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ + b that keeps no dequantised weight for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.matrix(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.matrix(), None


class _LoraProduct(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ, saving x, A and B only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: FrozenLinear, scale: float) -> Tensor:
        ctx.layer, ctx.scale = layer, scale
        ctx.save_for_backward(x, a, b)
        flat = x.reshape(-1, x.shape[-1])
        y = functional.linear(flat, layer.matrix(), layer.bias)
        y.addmm_(flat @ a.to(x.dtype).T, b.to(x.dtype).T, alpha=scale)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
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
        return dx, da.to(a.dtype), db.to(b.dtype), None, None


class LoraLinear(nn.Module):
    """A frozen layer with a LoRA update. `lora_A` (rank x in) and `lora_B` (out x rank) are float32."""

    def __init__(self, base: FrozenLinear, rank: int, alpha: float, dropout: float) -> None:
        """B starts at zero, so the layer starts as its base."""
        super().__init__()
        self.base, self.scale, self.dropout, self.enabled = base, alpha / rank, dropout, True
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def weight(self) -> Tensor:
        """The frozen weight (some models look at its device or type)."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """`x` (... x in) to ... x out."""
        if not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        if self.dropout and self.training:
            update = functional.linear(functional.dropout(x, self.dropout), self.lora_A.to(x.dtype))
            return self.base(x) + functional.linear(update, self.lora_B.to(x.dtype)) * self.scale  # type: ignore[no-any-return]
        made = _LoraProduct.apply(x, self.lora_A, self.lora_B, self.base, self.scale)  # type: ignore[no-untyped-call]
        return cast(Tensor, made)
