"""Offloads block inputs to pinned host memory between forward and backward, and embeddings for good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.build import Model


class BlockInputOffload:
    """Pinned buffers, one per block, with a separate stream for copies.

    A tensor being copied is referenced until the next block was launched and the main stream has waited for the copy.
    The allocator can then reuse its memory without knowing of the second stream, which a CUDA graph requires.
    """

    def __init__(self) -> None:
        self.stream: Any = torch.cuda.Stream()
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
        """Waits for the last copy to the host and releases its tensor."""
        if self._leaving is not None:
            torch.cuda.current_stream().wait_event(self._leaving[1])
            self._leaving = None

    def fetch(self, block: int, like: Tensor) -> None:
        """Starts the copy of `block`'s input to the GPU; `like` has its shape."""
        if block in self._coming:
            return
        buffer = torch.empty_like(like)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            buffer.copy_(self._buffer(block, like), non_blocking=True)
        self._coming[block] = buffer, self.stream.record_event()

    def take(self, block: int, like: Tensor) -> Tensor:
        """Waits for `block`'s input on the GPU and returns it."""
        self.fetch(block, like)
        tensor, copied = self._coming.pop(block)
        torch.cuda.current_stream().wait_event(copied)
        return tensor

    def _buffer(self, block: int, like: Tensor) -> Tensor:
        buffer = self._buffers.get(block)
        if buffer is None or len(buffer) < len(like):
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            self._buffers[block] = buffer
        return buffer[: len(like)]


class HostEmbedding(nn.Module):
    """Embeddings in pinned host memory, from where the GPU reads the rows that it needs.

    Reading 2,048 rows of 4,096 numbers takes less than a millisecond, and the table needs no GPU memory.
    """

    def __init__(self, weight: Tensor) -> None:
        """`weight` is the table (vocabulary x hidden) on a GPU; its memory there is released."""
        super().__init__()
        self.device = weight.device
        self.weight = nn.Parameter(weight.data.cpu().pin_memory(), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns the rows `ids` (any shape x hidden), on the GPU."""
        from tunesmith.kernels import triton_parts

        return triton_parts.rows(self.weight, ids.reshape(-1)).view(*ids.shape, -1)


def offload_embeddings(model: Model) -> None:
    """Moves the model's embeddings to host memory, unless they are tied to the head or scaled by the family."""
    table = model.network.get_input_embeddings()
    if type(table) is nn.Embedding and not model.tied:
        model.network.set_input_embeddings(HostEmbedding(table.weight))
