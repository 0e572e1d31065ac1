"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), the halves of a head rotated against each other."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (tokens x heads x head) turned by `cos` and `sin` (tokens x turned, turned <= head; the rest passes)."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    made = turned * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return made if rest.shape[-1] == 0 else torch.cat((made, rest), dim=-1)


def rotate_back(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient to what `rotate` was given: the transposed turn."""
    turned, rest = dy[..., : cos.shape[-1]], dy[..., cos.shape[-1] :]
    first, second = (turned * sin[:, None]).chunk(2, dim=-1)
    made = turned * cos[:, None] + torch.cat((second, -first), dim=-1)
    return made if rest.shape[-1] == 0 else torch.cat((made, rest), dim=-1)
