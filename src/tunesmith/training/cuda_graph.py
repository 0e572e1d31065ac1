"""CUDA graphs of a micro-batch's forward and backward, which avoid Python's launch overhead.

A graph has one shape, so micro-batches are padded to a few sizes. Graphs run one after the other and share a memory
pool; all sizes are warmed up before the first capture, because the graphs then hold that pool.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.fuse import FlatBatch, FusedDecoder, flat_batch
from tunesmith.prompt.pack import PackedBatch, PackedShape, pack_examples


@functools.cache
def _capture_stream(device: torch.device) -> Any:
    """Returns the one stream for warm-ups and captures: cuBLAS keeps a workspace for every stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def warm_up(fused: FusedDecoder, size: PackedShape, share: Tensor) -> None:
    """Runs an empty step of `size`, which compiles its kernels and leaves the gradients unchanged."""
    stream = _capture_stream(fused.model.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fused.step(_empty_batch(fused, size), share)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # frees these blocks before the graph allocates its own


def _empty_batch(fused: FusedDecoder, size: PackedShape) -> FlatBatch:
    return flat_batch(pack_examples([], 0, size=size), size.longest, fused.model.device)


class CapturedGraph:
    """A fused step of one size as a CUDA graph. `run` adds to the adapter's gradients."""

    def __init__(self, fused: FusedDecoder, size: PackedShape, share: Tensor, total: Tensor, pool: Any) -> None:
        """Captures the step; `warm_up` must have run it. Runs read the scalar `share` and add the loss to `total`."""
        self.size = size
        self.flat = _empty_batch(fused, size)
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: with several GPUs, NCCL's watchdog thread queries events during the capture
        stream = _capture_stream(fused.model.device)
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            total += fused.step(self.flat, share)

    def run(self, batch: PackedBatch) -> None:
        """Adds the gradients and the summed loss of `batch`, which must have this graph's size."""
        static_batch = self.flat
        for static, values in (
            (static_batch.ids, batch.ids),
            (static_batch.places, batch.places),
            (static_batch.bounds.starts, batch.starts),
            (static_batch.chosen, batch.chosen),
            (static_batch.targets, batch.targets),
        ):
            static.copy_(torch.from_numpy(values).to(static.dtype).pin_memory(), non_blocking=True)
        self.graph.replay()
