"""A micro-batch's forward and backward recorded once as a CUDA graph and replayed: no launch waits for Python.

A graph holds one shape, so micro-batches are padded to a few sizes. The graphs share one memory pool, because one runs
after the other; what is run before the recording is run for all sizes before the first graph holds that pool.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.fuse import FlatBatch, FusedDecoder, flat_batch
from tunesmith.prompt.pack import PackedBatch, PackedShape, pack_examples


@functools.cache
def _stream(device: torch.device) -> Any:
    """The stream of all warm-ups and recordings: cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def warm(fused: FusedDecoder, size: PackedShape, share: Tensor) -> None:
    """Runs a step of `size` before it is recorded: its kernels are compiled. It learns nothing, so gradients stay."""
    stream = _stream(fused.model.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fused.step(_empty(fused, size), share)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # a graph's own blocks come instead of these, not beside them


def _empty(fused: FusedDecoder, size: PackedShape) -> FlatBatch:
    return flat_batch(pack_examples([], 0, size=size), size.longest, fused.model.device)


class CapturedGraph:
    """Fused steps of one size as one graph. `run` adds to the adapter's gradients."""

    def __init__(self, fused: FusedDecoder, size: PackedShape, share: Tensor, total: Tensor, pool: Any) -> None:
        """Records what `warm` has run. Each run reads the 0-dimensional `share` and adds its summed loss to `total`."""
        self.size = size
        self.flat = _empty(fused, size)
        self.graph = torch.cuda.CUDAGraph()
        # only this thread is held to what may be captured: with several cards NCCL has one that asks for events
        stream = _stream(fused.model.device)
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            total += fused.step(self.flat, share)

    def run(self, batch: PackedBatch) -> None:
        """Adds the gradients of `batch`, whose size is this graph's, and its summed loss."""
        made = self.flat
        for static, values in (
            (made.ids, batch.ids),
            (made.places, batch.places),
            (made.bounds.starts, batch.starts),
            (made.chosen, batch.chosen),
            (made.targets, batch.targets),
        ):
            static.copy_(torch.from_numpy(values).to(static.dtype).pin_memory(), non_blocking=True)
        self.graph.replay()
