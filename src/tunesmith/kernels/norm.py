"""Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467), computed in 32 bits at least."""

from __future__ import annotations

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    """`x` (... x width) over its root mean square, times `weight + offset` (Gemma 1 to 3 store weights around zero)."""
    normed, _ = _normed(x, eps)
    return (normed if weight is None else normed.mul_(_wide(weight) + offset)).to(x.dtype)


def rms_back(dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    """The gradient to `x`: r (g - n mean(g n)) with n = r x, g = dy (weight + offset), r the inverse root."""
    normed, inverse = _normed(x, eps)
    return _back(dy, normed, inverse, None if weight is None else _wide(weight) + offset)


def rms_again(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """What `rms` made, and what `rms_back_of` takes to spare `rms_back` the same work."""
    normed, inverse = _normed(x, eps)
    wide = _wide(weight) + offset
    return (normed * wide).to(x.dtype), (normed, inverse, wide)


def rms_back_of(dy: Tensor, again: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """As `rms_back`, from what `rms_again` left."""
    return _back(dy, *again)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x over its root mean square in a new tensor, and the inverse root (... x 1).

    The steps are done in place: a new tensor of some MB costs a processor more than the arithmetic.
    """
    wide = x.to(_number(x), copy=True)
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(inverse), inverse


def _back(dy: Tensor, normed: Tensor, inverse: Tensor, weight: Tensor | None) -> Tensor:
    scaled = dy.to(normed.dtype, copy=True)
    scaled = scaled if weight is None else scaled.mul_(weight)
    mean = torch.linalg.vecdot(scaled, normed)[..., None].div_(-scaled.shape[-1])
    return scaled.addcmul_(normed, mean).mul_(inverse).to(dy.dtype)


def _number(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _wide(x: Tensor) -> Tensor:
    return x.to(_number(x))
