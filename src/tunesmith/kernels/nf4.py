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

    Codes that came without double quantization have 32-bit scales, and nothing in `nested`, `offsets`, `scale_book`.
    `block` is how many elements share a scale.
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
    """Joins bitsandbytes' packed weights with their QuantStates, all quantized in the same way."""
    first = states[0]
    twice = first.nested
    return Nf4(
        [each.reshape(-1) for each in packed],
        [state.absmax for state in states],
        [state.state2.absmax for state in states] if twice else [],
        [state.offset.reshape(1).float() for state in states] if twice else [],
        [int(state.shape[0]) for state in states],
        first.code.float(),
        first.state2.code.float() if twice else first.code.new_empty(0),
        int(first.shape[1]),
        dtype,
        first.blocksize,
    )


def alike(states: Sequence[Any]) -> bool:
    """Whether layers are quantized in the same way, so that they can be joined."""
    return len({(state.nested, state.blocksize) for state in states}) == 1


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
    fill = _filler(out) if nf4.nested and nf4.block == 64 else None
    for part, height in enumerate(nf4.heights):
        to = out[start : start + height, : nf4.width]
        if fill is None:
            _with_bitsandbytes(to, nf4, part)
        else:
            fill(to, nf4.codes[part], nf4.scales[part], nf4.nested[part], nf4.offsets[part], nf4.book, nf4.scale_book)
        start += height
    return out


def _filler(out: Tensor) -> Any:
    """The kernel that writes into `out`; None where there is none."""
    if out.is_cuda:
        try:
            from tunesmith.kernels.triton_parts import dequantise
        except ImportError:
            return None
        return dequantise
    return None


def _with_bitsandbytes(out: Tensor, nf4: Nf4, part: int) -> None:
    """The same with bitsandbytes' own functions, on any device."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    twice: dict[str, Any] = {}
    if nf4.nested:
        inner = QuantState(absmax=nf4.nested[part], blocksize=256, code=nf4.scale_book, dtype=torch.float32)
        twice = {"offset": nf4.offsets[part][0], "state2": inner}
    state = QuantState(
        absmax=nf4.scales[part], shape=out.shape, dtype=out.dtype, blocksize=nf4.block, code=nf4.book,
        quant_type="nf4", **twice,
    )  # fmt: skip
    out.copy_(dequantize_4bit(nf4.codes[part].reshape(-1, 1), state))
