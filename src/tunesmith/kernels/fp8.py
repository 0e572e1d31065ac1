"""FP8 matrix products (e4m3, Micikevicius et al. 2022, arXiv:2209.05433) with one scale per row of each factor.

A number keeps 3 bits of its mantissa, so FP8 is used only on request (`precision: fast`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

E4M3_MAX = 448.0  # of e4m3fn
_MIN_AMAX = 1e-12  # keeps the scale of a row of zeros above 0


class Fp8(NamedTuple):
    """A frozen weight for forward (out x in, one scale per output) and backward (in x out, one scale per input)."""

    forward: Tensor
    forward_scale: Tensor  # 1 x out, float32
    backward: Tensor
    backward_scale: Tensor  # 1 x in, float32


def from_dense(weight: Tensor) -> Fp8:
    """Returns `weight` (out x in) quantized along its rows, and along its columns for the gradient."""
    codes, scale = quantise(weight)
    columns, columns_scale = quantise(weight.T.contiguous())
    return Fp8(codes, scale.T.contiguous(), columns, columns_scale.T.contiguous())


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `x` (rows x width) as e4m3 codes and float32 scales (rows x 1): x is about codes times scale."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=_MIN_AMAX) / E4M3_MAX
    return (wide / scale).to(torch.float8_e4m3fn), scale


def product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Quantizes `x` (rows x inner) and multiplies it by the transposed `codes` (out x inner), in x's type."""
    return scaled_matmul(*quantise(x), codes, scale, x.dtype)


def scaled_matmul(x_codes: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplies a quantized x (`x_codes`, rows x inner; `x_scale`, rows x 1) by the transposed `codes`."""
    if x_codes.is_cuda:
        return torch._scaled_mm(x_codes, codes.T, scale_a=x_scale, scale_b=scale, out_dtype=dtype, use_fast_accum=True)
    return ((x_codes.float() @ codes.float().T) * x_scale * scale).to(dtype)  # the same result, slower
