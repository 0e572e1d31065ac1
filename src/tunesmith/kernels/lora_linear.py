"""The frozen product with its LoRA update, forward and backward: y = x Wᵀ + c + (x Aᵀ) (s B)ᵀ.

Linear layers with the same input (query, key, value; gate and up) are one product: their weights stacked, their A
stacked, their B on a block diagonal. Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import fp8, nf4, onednn
from tunesmith.kernels.fp8 import Fp8
from tunesmith.kernels.nf4 import Nf4
from tunesmith.kernels.onednn import OneDnnWeight

BaseForm = Literal["stored", "dense", "fp8"]  # codes dequantised at each use, dequantised once, 8-bit products


class JoinedLinear(NamedTuple):
    """Layers with the same input. `base` is dense (out x in), NF4 or FP8; packed where nothing goes backward.

    `a` (ranks x in) is in the products' number type, None where nothing is trained. `pieces` are each layer's B
    (scaled) with its outputs and ranks; `b` (out x ranks) has them as blocks on its diagonal, where a card's kernels
    want that, and a dense base may then have it behind its rows.
    """

    base: Tensor | Nf4 | Fp8 | OneDnnWeight
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None
    pieces: tuple[tuple[Tensor, slice, slice], ...] = ()


class GradientTarget(NamedTuple):
    """Where the gradients of one joined product go: of A (ranks x in), and of each B with its outputs and ranks.

    `scale` is the adapter's, which the joined `b` contains and the gradients must contain too.
    """

    a: Tensor | None
    b: tuple[tuple[Tensor, slice, slice], ...]
    scale: float


def matrix(joined: JoinedLinear) -> Tensor:
    """The dense weight, out x in."""
    base = joined.base
    if isinstance(base, Nf4):
        return nf4.matrix(base)
    if not isinstance(base, Tensor):
        raise AssertionError("an 8-bit or packed weight has no dense form")
    return base if joined.a is None else base[:, : joined.a.shape[1]]


def forward(x: Tensor, joined: JoinedLinear) -> tuple[Tensor, Tensor | None]:
    """`x` (tokens x in) to y (tokens x out), and x Aᵀ (tokens x ranks) for the backward.

    The update is made first and the product added to it, which sums in 32 bits and rounds once: added to a product that
    is rounded already, an update of less than half its last bit would be lost (dev/LOG.md).
    """
    base = joined.base
    inner = None if joined.a is None else x @ joined.a.T
    update = None if inner is None else _update(inner, joined)
    if isinstance(base, Fp8):
        y = fp8.product(x, base.forward, base.forward_scale)
        y = y if update is None else y.add_(update)
        return y if joined.bias is None else y + joined.bias, inner
    if isinstance(base, OneDnnWeight):
        return onednn.linear(x, base, joined.bias, update), inner
    if update is None:
        return functional.linear(x, matrix(joined), joined.bias), inner
    y = update.addmm_(x, matrix(joined).T)
    return y if joined.bias is None else y.add_(joined.bias), inner


def _update(inner: Tensor, joined: JoinedLinear) -> Tensor:
    """x Aᵀ (s B)ᵀ, tokens x out."""
    outs = sum(outputs.stop - outputs.start for _, outputs, _ in joined.pieces)
    height = _height(joined.base)
    made = inner.new_empty(len(inner), height) if outs == height else inner.new_zeros(len(inner), height)
    for b, outputs, ranks in joined.pieces:
        torch.mm(inner[:, ranks], b.T, out=made[:, outputs])
    return made


def _height(base: Tensor | Nf4 | Fp8 | OneDnnWeight) -> int:
    if isinstance(base, OneDnnWeight):
        return base.out
    if isinstance(base, Nf4):
        return base.height
    return (base.forward if isinstance(base, Fp8) else base).shape[0]


def backward(dy: Tensor, x: Tensor, inner: Tensor | None, joined: JoinedLinear, target: GradientTarget) -> Tensor:
    """The gradient to `x`; those to the adapter are added to `target`."""
    dx, dinner = input_gradient(dy, joined)
    gather(target, dy, x, inner, dinner)
    return dx


def input_gradient(dy: Tensor, joined: JoinedLinear) -> tuple[Tensor, Tensor | None]:
    """The gradients to x and to x Aᵀ."""
    base, a = joined.base, joined.a
    dx = fp8.product(dy, base.backward, base.backward_scale) if isinstance(base, Fp8) else dy @ matrix(joined)
    if a is None:
        return dx, None
    dinner = torch.empty(len(dy), len(a), dtype=dy.dtype, device=dy.device)
    for b, outputs, ranks in joined.pieces:
        torch.mm(dy[:, outputs], b, out=dinner[:, ranks])
    return dx.addmm_(dinner, a), dinner


def gather(target: GradientTarget, dy: Tensor, x: Tensor | None, inner: Tensor | None, dinner: Tensor | None) -> None:
    """Adds dinnerᵀ x to A's gradient and s dyᵀ inner to each B's, summed in the gradients' number type."""
    if target.a is None or x is None or inner is None or dinner is None:
        return
    _add_product(target.a, dinner.T, x, 1.0)
    for gradient, outputs, ranks in target.b:
        _add_product(gradient, dy[:, outputs].T, inner[:, ranks], target.scale)


def _add_product(total: Tensor, left: Tensor, right: Tensor, alpha: float) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right, alpha=alpha)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, alpha=alpha, out=total)
    else:
        total.add_(left @ right, alpha=alpha)
