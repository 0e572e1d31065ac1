"""The frozen product with its LoRA update, forward and backward: y = x Wᵀ + c + (x Aᵀ) (s B)ᵀ.

Linear layers with the same input (query, key, value; gate and up) are one product: their weights stacked, their A
stacked, their B on a block diagonal. Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import fp8, nf4, packed
from tunesmith.kernels.fp8 import Fp8
from tunesmith.kernels.nf4 import Nf4
from tunesmith.kernels.packed import Packed

BaseForm = Literal["stored", "dense", "fp8"]  # codes dequantised at each use, dequantised once, 8-bit products


class Joined(NamedTuple):
    """Layers with the same input. `base` is dense (out x in), NF4 or FP8; packed where nothing goes backward.

    `a` (ranks x in) and `b` (out x ranks, scaled) are in the products' number type; None where nothing is trained.
    `pieces` are the blocks on `b`'s diagonal with their outputs and ranks; they stand in its place where codes are
    joined at each use. Empty: `b` is one block.
    """

    base: Tensor | Nf4 | Fp8 | Packed
    bias: Tensor | None
    a: Tensor | None
    b: Tensor | None
    pieces: tuple[tuple[Tensor, slice, slice], ...] = ()


class Target(NamedTuple):
    """Where the gradients of one joined product go: of A (ranks x in), and of each B with its outputs and ranks.

    `scale` is the adapter's, which the joined `b` contains and the gradients must contain too.
    """

    a: Tensor | None
    b: tuple[tuple[Tensor, slice, slice], ...]
    scale: float


def matrix(base: Tensor | Nf4) -> Tensor:
    """The dense weight, out x in."""
    return nf4.matrix(base) if isinstance(base, Nf4) else base


def forward(x: Tensor, joined: Joined) -> tuple[Tensor, Tensor | None]:
    """`x` (tokens x in) to y (tokens x out), and x Aᵀ (tokens x ranks) for the backward."""
    base = joined.base
    if isinstance(base, Fp8):
        y = fp8.product(x, base.forward, base.forward_scale)
        y = y if joined.bias is None else y + joined.bias
    elif isinstance(base, Packed):
        y = packed.linear(x, base, joined.bias)
    else:
        y = functional.linear(x, matrix(base), joined.bias)
    if joined.a is None or joined.b is None:
        return y, None
    inner = x @ joined.a.T
    for outputs, ranks in _parts(joined):
        y[:, outputs].addmm_(inner[:, ranks], joined.b[outputs, ranks].T)
    return y, inner


def backward(dy: Tensor, x: Tensor, inner: Tensor | None, joined: Joined, target: Target) -> Tensor:
    """The gradient to `x`; those to the adapter are added to `target`."""
    dx, dinner = back(dy, joined)
    gather(target, dy, x, inner, dinner)
    return dx


def back(dy: Tensor, joined: Joined) -> tuple[Tensor, Tensor | None]:
    """The gradients to x and to x Aᵀ."""
    base, a, b = joined.base, joined.a, joined.b
    if isinstance(base, Packed):
        raise AssertionError("a packed weight has no backward")
    dx = fp8.product(dy, base.backward, base.backward_scale) if isinstance(base, Fp8) else dy @ matrix(base)
    if a is None or b is None:
        return dx, None
    dinner = torch.empty(len(dy), len(a), dtype=dy.dtype, device=dy.device)
    for outputs, ranks in _parts(joined):
        torch.mm(dy[:, outputs], b[outputs, ranks], out=dinner[:, ranks])
    return dx.addmm_(dinner, a), dinner


def _parts(joined: Joined) -> list[tuple[slice, slice]]:
    return [(rows, ranks) for _, rows, ranks in joined.pieces] or [(slice(None), slice(None))]


def gather(target: Target, dy: Tensor, x: Tensor | None, inner: Tensor | None, dinner: Tensor | None) -> None:
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
