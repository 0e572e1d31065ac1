"""What waits in the host's memory: block inputs between forward and backward, and embeddings, read where they stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.build import Model


class Shelf:
    """Pinned buffers, one a block, and a stream of its own for the copies.

    A tensor that is put is held until the next block has been launched and the main stream has waited for the copy, so
    the allocator may give its place away without knowing of the second stream (inside a captured graph it could not).
    """

    def __init__(self) -> None:
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._buffers: dict[int, Tensor] = {}
        self._leaving: tuple[Tensor, Any] | None = None
        self._coming: dict[int, tuple[Tensor, Any]] = {}

    def put(self, block: int, h: Tensor) -> None:
        """Starts the copy of `h` (tokens x hidden) to the host."""
        self.settle()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self._buffer(block, h).copy_(h, non_blocking=True)
        self._leaving = h, self.stream.record_event()

    def settle(self) -> None:
        """Lets go of the tensor that was put last, once its copy is done."""
        if self._leaving is not None:
            torch.cuda.current_stream().wait_event(self._leaving[1])
            self._leaving = None

    def fetch(self, block: int, like: Tensor) -> None:
        """Starts the copy of `block`'s input to the card; `like` has its shape."""
        if block in self._coming:
            return
        made = torch.empty_like(like)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            made.copy_(self._buffer(block, like), non_blocking=True)
        self._coming[block] = made, self.stream.record_event()

    def take(self, block: int, like: Tensor) -> Tensor:
        """`block`'s input on the card, waited for."""
        self.fetch(block, like)
        made, copied = self._coming.pop(block)
        torch.cuda.current_stream().wait_event(copied)
        return made

    def _buffer(self, block: int, like: Tensor) -> Tensor:
        held = self._buffers.get(block)
        if held is None or len(held) < len(like):
            held = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            self._buffers[block] = held
        return held[: len(like)]


class HostTable(nn.Module):
    """Embeddings in the host's pinned memory, in place of the model's: a card reads the rows it needs over the bus.

    Reading 2,048 rows of 4,096 numbers takes less than a millisecond, and the table's whole size is free on the card.
    """

    def __init__(self, weight: Tensor) -> None:
        """`weight` is the table (vocabulary x hidden) on a card; its memory there is free afterwards."""
        super().__init__()
        self.device = weight.device
        self.weight = nn.Parameter(weight.data.cpu().pin_memory(), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The rows `ids` (any shape, on the card) with their hidden width as the last size, on the card."""
        from tunesmith.kernels import triton_parts

        return triton_parts.rows(self.weight, ids.reshape(-1)).view(*ids.shape, -1)


def shelve_table(model: Model) -> None:
    """Moves the model's embeddings to the host, unless the head is the same matrix or the family scales them."""
    table = model.network.get_input_embeddings()
    if type(table) is nn.Embedding and not model.tied:
        model.network.set_input_embeddings(HostTable(table.weight))
