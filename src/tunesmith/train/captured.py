"""A micro-batch's forward and backward recorded once as a CUDA graph and replayed: no launch waits for Python.

A graph holds one shape, so micro-batches are padded to a few sizes. The graphs share one memory pool, because one runs
after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.attention import Bounds
from tunesmith.model.fuse import Flat, Fused
from tunesmith.prompt.pack import Packed, Size, packed


def to_device(batch: Packed, longest: int, device: torch.device) -> Flat:
    """`batch` as tensors."""
    starts = torch.from_numpy(batch.starts).to(device, torch.int32)
    ids, places, chosen, targets = (
        torch.from_numpy(each).to(device) for each in (batch.ids, batch.places, batch.chosen, batch.targets)
    )
    return Flat(ids, places, Bounds(starts, longest, tuple(batch.starts.tolist())), chosen, targets)


class Captured:
    """Fused steps of one size as one graph. `run` adds to the adapter's gradients."""

    def __init__(self, fused: Fused, size: Size, share: Tensor, total: Tensor, pool: Any) -> None:
        """Warms up and records. Each run reads the 0-dimensional `share` and adds its summed loss to `total`.

        The gradients are touched by the warm-up; call `fused.zero_gradients` before the first step.
        """
        self.size = size
        device = fused.model.device
        self.flat = to_device(packed([], 0, size=size), size.longest, device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            fused.step(self.flat, share)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph's own blocks come instead of the warm-up's, not beside them
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            total += fused.step(self.flat, share)

    def run(self, batch: Packed) -> None:
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
