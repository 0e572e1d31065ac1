"""Frozen base weights: NF4, FP8, and oneDNN's packed layout for CPUs.

NF4 uses double quantization (Dettmers et al. 2023, arXiv:2305.14314). bitsandbytes needs two launches per layer and a
matrix for each. Here layers with the same input become one matrix, with Triton in one launch per layer. The results are
identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Nf4(NamedTuple):
    """Stacked NF4 layers with the same input.

    Each layer has packed codes (uint8, two each), 8-bit scales of 64 elements, 32-bit scales of 256 scales, their
    offset, and its height (outputs). Without double quantization the scales are 32-bit, and `nested`, `offsets` and
    `scale_book` are empty. `block` is how many elements share a scale.
    """

    codes: list[Tensor]
    scales: list[Tensor]
    nested: list[Tensor]
    offsets: list[Tensor]
    heights: list[int]
    book: Tensor
    scale_book: Tensor
    width: int
    dtype: torch.dtype
    block: int = 64

    @property
    def height(self) -> int:
        """Outputs of all layers together."""
        return sum(self.heights)


def nf4_from_states(packed: list[Tensor], states: list[Any], dtype: torch.dtype) -> Nf4:
    """Joins bitsandbytes' packed weights and their QuantStates, all quantized the same way."""
    first = states[0]
    double_quantized = first.nested
    return Nf4(
        [codes.reshape(-1) for codes in packed],
        [state.absmax for state in states],
        [state.state2.absmax for state in states] if double_quantized else [],
        [state.offset.reshape(1).float() for state in states] if double_quantized else [],
        [int(state.shape[0]) for state in states],
        first.code.float(),
        first.state2.code.float() if double_quantized else first.code.new_empty(0),
        int(first.shape[1]),
        dtype,
        first.blocksize,
    )


def same_nf4_layout(states: Sequence[Any]) -> bool:
    """Returns whether layers are quantized the same way, so that they can be joined."""
    return len({(state.nested, state.blocksize) for state in states}) == 1


Piece = tuple[Tensor, slice, slice]  # values, and the rows and columns that they fill


def nf4_matrix(nf4: Nf4, pieces: Sequence[Piece] = ()) -> Tensor:
    """Returns the joined weight (height x width), each row followed by its `pieces`, else zeros."""
    extra = max((columns.stop for _, _, columns in pieces), default=0)
    out = torch.empty(nf4.height, nf4.width + extra, dtype=nf4.dtype, device=nf4.codes[0].device)
    if extra:
        tail = out[:, nf4.width :]
        if len(pieces) > 1:
            tail.zero_()
        for numbers, rows, columns in pieces:
            tail[rows, columns] = numbers
    start = 0
    fill = _dequantize_kernel(out) if nf4.nested and nf4.block == 64 else None
    for part, height in enumerate(nf4.heights):
        target = out[start : start + height, : nf4.width]
        if fill is None:
            _dequantize_with_bitsandbytes(target, nf4, part)
        else:
            fill(
                target, nf4.codes[part], nf4.scales[part], nf4.nested[part], nf4.offsets[part], nf4.book, nf4.scale_book
            )
        start += height
    return out


def _dequantize_kernel(out: Tensor) -> Any:
    """Returns the Triton kernel for `out`'s device, or None."""
    if out.is_cuda:
        try:
            from tunesmith.kernels.triton_parts import dequantise
        except ImportError:
            return None
        return dequantise
    return None


def _dequantize_with_bitsandbytes(out: Tensor, nf4: Nf4, part: int) -> None:
    """Dequantizes one layer into `out` with bitsandbytes, on any device."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    nested_state: dict[str, Any] = {}
    if nf4.nested:
        state2 = QuantState(absmax=nf4.nested[part], blocksize=256, code=nf4.scale_book, dtype=torch.float32)
        nested_state = {"offset": nf4.offsets[part][0], "state2": state2}
    state = QuantState(
        absmax=nf4.scales[part], shape=out.shape, dtype=out.dtype, blocksize=nf4.block, code=nf4.book,
        quant_type="nf4", **nested_state,
    )  # fmt: skip
    out.copy_(dequantize_4bit(nf4.codes[part].reshape(-1, 1), state))


E4M3_MAX = 448.0  # of e4m3fn
_MIN_AMAX = 1e-12  # keeps the scale of a row of zeros above 0


class Fp8(NamedTuple):
    """A frozen weight for forward (out x in, one scale per output) and backward (in x out, one scale per input)."""

    forward: Tensor
    forward_scale: Tensor  # 1 x out, float32
    backward: Tensor
    backward_scale: Tensor  # 1 x in, float32


def fp8_from_dense(weight: Tensor) -> Fp8:
    """Returns `weight` (out x in) quantized along its rows, and along its columns for the gradient."""
    codes, scale = fp8_quantize(weight)
    columns, columns_scale = fp8_quantize(weight.T.contiguous())
    return Fp8(codes, scale.T.contiguous(), columns, columns_scale.T.contiguous())


def fp8_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `x` (rows x width) as e4m3 codes and float32 scales (rows x 1): x is about codes times scale."""
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp(min=_MIN_AMAX) / E4M3_MAX
    return (wide / scale).to(torch.float8_e4m3fn), scale


def fp8_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Quantizes `x` (rows x inner) and multiplies it by the transposed `codes` (out x inner), in x's type."""
    return scaled_matmul(*fp8_quantize(x), codes, scale, x.dtype)


def scaled_matmul(x_codes: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplies a quantized x (`x_codes`, rows x inner; `x_scale`, rows x 1) by the transposed `codes`."""
    if x_codes.is_cuda:
        return torch._scaled_mm(x_codes, codes.T, scale_a=x_scale, scale_b=scale, out_dtype=dtype, use_fast_accum=True)
    return ((x_codes.float() @ codes.float().T) * x_scale * scale).to(dtype)  # the same result, slower


_ops: Any = torch.ops.mkldnn


class OneDnnWeight(NamedTuple):
    """A weight (out x in) in oneDNN's blocked layout; `out` and `width` are its sizes."""

    blocks: Tensor
    out: int
    width: int


def can_pack_onednn(weight: Tensor) -> bool:
    """Returns whether oneDNN can pack `weight`: bfloat16 on a CPU."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()


def pack_onednn(weight: Tensor, rows: int) -> OneDnnWeight:
    """Returns a packed copy of `weight` (out x in) for products of about `rows` rows."""
    return OneDnnWeight(_ops._reorder_linear_weight(weight.contiguous(), rows), *weight.shape)


def onednn_linear(x: Tensor, packed: OneDnnWeight, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """Returns `x` (rows x in) times the transposed weight plus `bias` (out) and `add` (rows x out), rounded once."""
    if add is not None:
        out: Tensor = _ops._linear_pointwise.binary(x, add, packed.blocks, bias, "add")
        return out
    out = _ops._linear_pointwise(x, packed.blocks, bias, "none", [], "")
    return out
