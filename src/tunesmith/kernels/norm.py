"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467), computed in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    """Returns RMSNorm of `x` (... x width) times `weight + offset` (Gemma 1 to 3 store weights around zero)."""
    normed, _ = _normed(x, eps)
    return (normed if weight is None else normed.mul_(_widened(weight) + offset)).to(x.dtype)


def rms_back(dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    """Returns the gradient of `x`: r (g - n mean(g n)) with n = r x, g = dy (weight + offset), r the inverse root."""
    normed, inverse = _normed(x, eps)
    return _backward(dy, normed, inverse, None if weight is None else _widened(weight) + offset)


def rms_with_saved(
    x: Tensor, weight: Tensor, eps: float, offset: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Returns `rms` of `x` and what `rms_backward_from_saved` needs to avoid repeating the work."""
    normed, inverse = _normed(x, eps)
    wide = _widened(weight) + offset
    return (normed * wide).to(x.dtype), (normed, inverse, wide)


def rms_backward_from_saved(dy: Tensor, saved: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Returns the gradient as `rms_back` does, from what `rms_with_saved` returned."""
    return _backward(dy, *saved)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns x over its root mean square in a new tensor, and the inverse root (... x 1).

    Works in place: on a CPU, allocating a tensor of some MB costs more than the arithmetic.
    """
    wide = x.to(_accumulation_dtype(x), copy=True)
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(inverse), inverse


def _backward(dy: Tensor, normed: Tensor, inverse: Tensor, weight: Tensor | None) -> Tensor:
    scaled = dy.to(normed.dtype, copy=True)
    scaled = scaled if weight is None else scaled.mul_(weight)
    mean = torch.linalg.vecdot(scaled, normed)[..., None].div_(-scaled.shape[-1])
    return scaled.addcmul_(normed, mean).mul_(inverse).to(dy.dtype)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _widened(x: Tensor) -> Tensor:
    return x.to(_accumulation_dtype(x))
