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
from tunesmith.prompt.pack import Packed, Size


def to_device(packed: Packed, longest: int, device: torch.device) -> Flat:
    """`packed` as tensors."""
    long, short = torch.long, torch.int32
    return Flat(
        torch.tensor(packed.ids, dtype=long, device=device),
        torch.tensor(packed.places, dtype=long, device=device),
        Bounds(torch.tensor(packed.starts, dtype=short, device=device), longest, tuple(packed.starts)),
        torch.tensor(packed.chosen, dtype=long, device=device),
        torch.tensor(packed.targets, dtype=long, device=device),
    )


class Captured:
    """Fused steps of one size as one graph. `run` adds to the adapter's gradients."""

    def __init__(self, fused: Fused, size: Size, share: Tensor, total: Tensor, pool: Any) -> None:
        """Warms up and records. Each run reads the 0-dimensional `share` and adds its summed loss to `total`.

        The gradients are touched by the warm-up; call `fused.zero_gradients` before the first step.
        """
        self.size = size
        device = fused.model.device
        empty = Packed([0] * size.tokens, [0] * size.tokens, [0], [0] * size.learnt, [-100] * size.learnt, 0)
        starts = [min(place * size.longest, size.tokens) for place in range(size.examples + 1)]
        self.flat = to_device(empty, size.longest, device)
        self.flat = Flat(
            self.flat.ids,
            self.flat.places,
            Bounds(torch.tensor(starts, dtype=torch.int32, device=device), size.longest),
            self.flat.chosen,
            self.flat.targets,
        )
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            fused.step(self.flat, share)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            total += fused.step(self.flat, share)

    def run(self, packed: Packed) -> None:
        """Adds the gradients of `packed`, whose size is this graph's, and its summed loss."""
        made = self.flat
        for static, values in (
            (made.ids, packed.ids),
            (made.places, packed.places),
            (made.bounds.starts, packed.starts),
            (made.chosen, packed.chosen),
            (made.targets, packed.targets),
        ):
            static.copy_(torch.tensor(values, dtype=static.dtype).pin_memory(), non_blocking=True)
        self.graph.replay()
