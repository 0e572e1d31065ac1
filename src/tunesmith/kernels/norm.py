"""Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467), computed in 32 bits at least."""

from __future__ import annotations

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """`x` (... x width) over its root mean square, times `weight + offset` (Gemma stores weights around zero)."""
    wide = _wide(x)
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * inverse * (_wide(weight) + offset)).to(x.dtype)


def rms_back(dy: Tensor, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """The gradient to `x`: r (g - n mean(g n)) with n = r x, g = dy (weight + offset), r the inverse root."""
    wide = _wide(x)
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = wide * inverse
    scaled = _wide(dy) * (_wide(weight) + offset)
    return (inverse * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
