"""NF4 codes with doubly quantised scales back to numbers (Dettmers et al. 2023, arXiv:2305.14314).

bitsandbytes' kernels do it in two launches a layer into a matrix of its own; here layers with the same input come
out as one matrix, on a card with Triton in one launch each, both levels of scales at once. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Nf4(NamedTuple):
    """Layers with the same input, stacked: of each its packed codes (uint8, two an element), 8-bit scales of 64
    elements, 32-bit scales of 256 scales, their offset, its height (outputs); the two code books and the width.
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

    @property
    def height(self) -> int:
        """Outputs of all layers together."""
        return sum(self.heights)


def from_states(packed: list[Tensor], states: list[Any], dtype: torch.dtype) -> Nf4:
    """Joins bitsandbytes' packed weights with their QuantStates (nested, blocks of 64 and 256)."""
    first = states[0]
    return Nf4(
        [each.reshape(-1) for each in packed],
        [state.absmax for state in states],
        [state.state2.absmax for state in states],
        [state.offset.reshape(1).float() for state in states],
        [int(state.shape[0]) for state in states],
        first.code.float(),
        first.state2.code.float(),
        int(first.shape[1]),
        dtype,
    )


Piece = tuple[Tensor, slice, slice]  # numbers, and the rows and columns where they belong


def matrix(nf4: Nf4, behind: Sequence[Piece] = ()) -> Tensor:
    """The joined weight, height x width; behind each row the pieces of `behind`, and zeros where none is."""
    room = max((columns.stop for _, _, columns in behind), default=0)
    out = torch.empty(nf4.height, nf4.width + room, dtype=nf4.dtype, device=nf4.codes[0].device)
    if room:
        tail = out[:, nf4.width :]
        if len(behind) > 1:
            tail.zero_()
        for numbers, rows, columns in behind:
            tail[rows, columns] = numbers
    start = 0
    fill = _filler(out)
    for part, height in enumerate(nf4.heights):
        to = out[start : start + height, : nf4.width]
        fill(to, nf4.codes[part], nf4.scales[part], nf4.nested[part], nf4.offsets[part], nf4.book, nf4.scale_book)
        start += height
    return out


def _filler(out: Tensor) -> Any:
    if out.is_cuda:
        try:
            from tunesmith.kernels.triton_parts import dequantise
        except ImportError:
            return _with_bitsandbytes
        return dequantise
    return _with_bitsandbytes


def _with_bitsandbytes(
    out: Tensor, codes: Tensor, scales: Tensor, nested: Tensor, offset: Tensor, book: Tensor, scale_book: Tensor
) -> None:
    """The same with bitsandbytes' own functions, on any device."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    inner = QuantState(absmax=nested, blocksize=256, code=scale_book, dtype=torch.float32)
    state = QuantState(
        absmax=scales, shape=out.shape, dtype=out.dtype, blocksize=64, code=book, quant_type="nf4",
        offset=offset[0], state2=inner,
    )  # fmt: skip
    out.copy_(dequantize_4bit(codes.reshape(-1, 1), state))
