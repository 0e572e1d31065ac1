"""Dequantizes NF4 with double quantization (Dettmers et al. 2023, arXiv:2305.14314).

bitsandbytes needs two launches per layer and a matrix for each. Here layers with the same input become one matrix,
with Triton in one launch per layer. The results are identical.
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


def from_states(packed: list[Tensor], states: list[Any], dtype: torch.dtype) -> Nf4:
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


def alike(states: Sequence[Any]) -> bool:
    """Returns whether layers are quantized the same way, so that they can be joined."""
    return len({(state.nested, state.blocksize) for state in states}) == 1


Piece = tuple[Tensor, slice, slice]  # values, and the rows and columns that they fill


def matrix(nf4: Nf4, pieces: Sequence[Piece] = ()) -> Tensor:
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
