"""Products in 8-bit floating point (e4m3, Micikevicius et al. 2022, arXiv:2209.05433), one scale a row of each side.

A number loses all but 3 bits of its mantissa: this is never chosen silently (`precision: fast`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 448.0  # of e4m3fn
_TINY = 1e-12  # a row of zeros keeps a scale that can be divided by


class Fp8(NamedTuple):
    """A frozen weight for both directions: codes out x in with a scale an output, and in x out with one an input."""

    forward: Tensor
    forward_scale: Tensor  # 1 x out, float32
    backward: Tensor
    backward_scale: Tensor  # 1 x in, float32


def from_dense(weight: Tensor) -> Fp8:
    """`weight` (out x in) quantised once along its rows, and once along its columns for the gradient."""
    codes, scale = quantise(weight)
    back, back_scale = quantise(weight.T.contiguous())
    return Fp8(codes, scale.T.contiguous(), back, back_scale.T.contiguous())


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` (rows x width) as e4m3 codes and float32 scales (rows x 1): x is about codes times scale."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=_TINY) / LARGEST
    return (wide / scale).to(torch.float8_e4m3fn), scale


def product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`x` (rows x inner, quantised here) times the transposed `codes` (out x inner): rows x out in x's type."""
    return scaled(*quantise(x), codes, scale, x.dtype)


def scaled(left: Tensor, left_scale: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The same of an x that is quantised already (`left`, rows x inner, and `left_scale`, rows x 1)."""
    if left.is_cuda:
        return torch._scaled_mm(left, codes.T, scale_a=left_scale, scale_b=scale, out_dtype=dtype, use_fast_accum=True)
    return ((left.float() @ codes.float().T) * left_scale * scale).to(dtype)  # the same numbers, slowly
