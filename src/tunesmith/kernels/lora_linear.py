"""Frozen linear layers with LoRA, forward and backward: y = x Wᵀ + c + (x Aᵀ) (s B)ᵀ.

Layers with the same input (query, key, value; gate and up) are joined into one product: weights and A are stacked, B
is block-diagonal. Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import base_weights
from tunesmith.kernels.base_weights import Fp8, Nf4, OneDnnWeight

BaseForm = Literal["stored", "dense", "fp8"]  # NF4 dequantized at each use, dequantized once, FP8 products


class JoinedLinear(NamedTuple):
    """Linear layers with the same input. `base` is dense (out x in), NF4, FP8 or, without a backward, oneDNN-packed.

    `a` (ranks x in) is in the compute dtype, None if nothing is trained. `pieces` are each layer's scaled B with its
    outputs and ranks. `b` (out x ranks) holds them on its diagonal for the GPU kernels; a dense base may then contain
    it behind its rows.
    """

    base: Tensor | Nf4 | Fp8 | OneDnnWeight
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None
    pieces: tuple[tuple[Tensor, slice, slice], ...] = ()


class GradientTarget(NamedTuple):
    """Gradient buffers of one joined layer: of A (ranks x in), and of each B with its outputs and ranks.

    `scale` is the adapter's; the joined `b` contains it, so the gradients must too.
    """

    a: Tensor | None
    b: tuple[tuple[Tensor, slice, slice], ...]
    scale: float


def matrix(joined: JoinedLinear) -> Tensor:
    """Returns the dense weight, out x in."""
    base = joined.base
    if isinstance(base, Nf4):
        return base_weights.nf4_matrix(base)
    if not isinstance(base, Tensor):
        raise AssertionError("an 8-bit or packed weight has no dense form")
    return base if joined.a is None else base[:, : joined.a.shape[1]]


def forward(x: Tensor, joined: JoinedLinear) -> tuple[Tensor, Tensor | None]:
    """Returns y (tokens x out) for `x` (tokens x in), and x Aᵀ (tokens x ranks) for the backward.

    The product is added to the update, which sums in 32 bits and rounds once. The other way round, an update of less
    than half of the rounded product's last bit would be lost (dev/LOG.md).
    """
    base = joined.base
    inner = None if joined.a is None else x @ joined.a.T
    update = None if inner is None else _update(inner, joined)
    if isinstance(base, Fp8):
        y = base_weights.fp8_product(x, base.forward, base.forward_scale)
        y = y if update is None else y.add_(update)
        return y if joined.bias is None else y + joined.bias, inner
    if isinstance(base, OneDnnWeight):
        return base_weights.onednn_linear(x, base, joined.bias, update), inner
    if update is None:
        return functional.linear(x, matrix(joined), joined.bias), inner
    y = update.addmm_(x, matrix(joined).T)
    return y if joined.bias is None else y.add_(joined.bias), inner


def _update(inner: Tensor, joined: JoinedLinear) -> Tensor:
    """x Aᵀ (s B)ᵀ, tokens x out."""
    outs = sum(outputs.stop - outputs.start for _, outputs, _ in joined.pieces)
    height = _out_features(joined.base)
    update = inner.new_empty(len(inner), height) if outs == height else inner.new_zeros(len(inner), height)
    for b, outputs, ranks in joined.pieces:
        torch.mm(inner[:, ranks], b.T, out=update[:, outputs])
    return update


def _out_features(base: Tensor | Nf4 | Fp8 | OneDnnWeight) -> int:
    if isinstance(base, OneDnnWeight):
        return base.out
    if isinstance(base, Nf4):
        return base.height
    return (base.forward if isinstance(base, Fp8) else base).shape[0]


def backward(dy: Tensor, x: Tensor, inner: Tensor | None, joined: JoinedLinear, target: GradientTarget) -> Tensor:
    """Returns the gradient of `x` and adds the adapter's to `target`."""
    dx, dinner = input_gradient(dy, joined)
    accumulate_gradients(target, dy, x, inner, dinner)
    return dx


def input_gradient(dy: Tensor, joined: JoinedLinear) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients of x and of x Aᵀ."""
    base, a = joined.base, joined.a
    dx = (
        base_weights.fp8_product(dy, base.backward, base.backward_scale)
        if isinstance(base, Fp8)
        else dy @ matrix(joined)
    )
    if a is None:
        return dx, None
    dinner = torch.empty(len(dy), len(a), dtype=dy.dtype, device=dy.device)
    for b, outputs, ranks in joined.pieces:
        torch.mm(dy[:, outputs], b, out=dinner[:, ranks])
    return dx.addmm_(dinner, a), dinner


def accumulate_gradients(
    target: GradientTarget, dy: Tensor, x: Tensor | None, inner: Tensor | None, dinner: Tensor | None
) -> None:
    """Adds dinnerᵀ x to A's gradient and s dyᵀ inner to each B's, in the gradients' dtype."""
    if target.a is None or x is None or inner is None or dinner is None:
        return
    _add_product(target.a, dinner.T, x, 1.0)
    for gradient, outputs, ranks in target.b:
        _add_product(gradient, dy[:, outputs].T, inner[:, ranks], target.scale)


def _add_product(total: Tensor, lhs: Tensor, rhs: Tensor, alpha: float) -> None:
    if lhs.dtype == total.dtype:
        total.addmm_(lhs, rhs, alpha=alpha)
    elif lhs.is_cuda:
        torch.addmm(total, lhs, rhs, out_dtype=total.dtype, alpha=alpha, out=total)
    else:
        total.add_(lhs @ rhs, alpha=alpha)
