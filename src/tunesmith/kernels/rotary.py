"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), the halves of a head rotated against each other."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns `x` (tokens x heads x head) in place by `cos` and `sin` (tokens x turned; turned <= head, the rest stays).

    (x1, x2) becomes (x1 cos - x2 sin, x2 cos + x1 sin).
    """
    (first, second), (sin_1, sin_2) = _halves(x, cos), sin[:, None].chunk(2, dim=-1)
    return _turn(x, cos, first, second, second * sin_1, first * sin_2)


def rotate_back_(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Makes of the gradient to what `rotate_` left that to what it was given, in place: the transposed turn."""
    (first, second), (sin_1, sin_2) = _halves(dy, cos), sin[:, None].chunk(2, dim=-1)
    return _turn(dy, cos, second, first, first * sin_1, second * sin_2)


def _halves(x: Tensor, cos: Tensor) -> tuple[Tensor, ...]:
    return x[..., : cos.shape[-1]].chunk(2, dim=-1)


def _turn(x: Tensor, cos: Tensor, less: Tensor, more: Tensor, taken: Tensor, given: Tensor) -> Tensor:
    torch.mul(x[..., : cos.shape[-1]], cos[:, None], out=x[..., : cos.shape[-1]])
    less.sub_(taken)
    more.add_(given)
    return x
