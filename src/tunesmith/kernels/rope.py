"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), rotating the two halves of each head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RopeTable(NamedTuple):
    """cos and sin by position (rows x rotated width).

    With a `switch` (LongRoPE, Ding et al. 2024, arXiv:2402.13753) the tables have two halves: texts of at most `switch`
    tokens use the first half, longer ones the second. With 0 all texts use the same rows.
    """

    cos: Tensor
    sin: Tensor
    switch: int = 0

    @property
    def half(self) -> int:
        """The first row of the second half."""
        return len(self.cos) // 2

    def packed_rows(self, positions: Tensor, starts: Tensor) -> Tensor:
        """Returns each token's row for packed texts that begin at `starts` (texts + 1, int32)."""
        if not self.switch:
            return positions
        token = torch.arange(len(positions), dtype=starts.dtype, device=starts.device)
        text = torch.searchsorted(starts, token, right=True) - 1
        return positions + self.half * (starts.diff()[text] > self.switch)

    def next_rows(self, positions: Tensor) -> Tensor:
        """Returns the rows of tokens at `positions`, each the last of its text so far."""
        return positions + self.half * (positions >= self.switch) if self.switch else positions

    def text(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of one text of `length` tokens."""
        first = self.half if 0 < self.switch < length else 0
        return self.cos[first : first + length], self.sin[first : first + length]


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first columns of `x` (tokens x heads x head) in place by `cos` and `sin` (tokens x rotated width).

    (x1, x2) becomes (x1 cos - x2 sin, x2 cos + x1 sin).
    """
    (first, second), (sin_1, sin_2) = _halves(x, cos), sin[:, None].chunk(2, dim=-1)
    return _rotate_halves(x, cos, first, second, second * sin_1, first * sin_2)


def rotate_backward_(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the gradient of `rotate_`'s output into that of its input, in place: the inverse rotation."""
    (first, second), (sin_1, sin_2) = _halves(dy, cos), sin[:, None].chunk(2, dim=-1)
    return _rotate_halves(dy, cos, second, first, first * sin_1, second * sin_2)


def _halves(x: Tensor, cos: Tensor) -> tuple[Tensor, ...]:
    return x[..., : cos.shape[-1]].chunk(2, dim=-1)


def _rotate_halves(
    x: Tensor, cos: Tensor, first_out: Tensor, second_out: Tensor, subtrahend: Tensor, addend: Tensor
) -> Tensor:
    torch.mul(x[..., : cos.shape[-1]], cos[:, None], out=x[..., : cos.shape[-1]])
    first_out.sub_(subtrahend)
    second_out.add_(addend)
    return x
