"""Gradients by the fused decoder over packed micro-batches, on a GPU as CUDA graphs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.fuse import FlatBatch, FusedDecoder, flat_batch
from tunesmith.prompt import pack
from tunesmith.prompt.pack import PackedBatch, PackedShape, pack_examples
from tunesmith.training.autograd_step import halve_micro_batch, validation_loss
from tunesmith.training.job import Job


@functools.cache
def _capture_stream(device: torch.device) -> Any:
    """Returns the one stream for warm-ups and captures: cuBLAS keeps a workspace for every stream."""
    return torch.cuda.Stream(device)


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


MAX_GRAPHS = 6  # one more would save less than 1 % of the padding on the recipes' rows
CAPTURE_COST = 1.5  # in steps of the graph's size; 1.1 on an H200
VALIDATION_TOKENS = 2048  # per micro-batch on a GPU, whose memory comes on top of the graphs'


class FusedStep:
    """Computes gradients as `AutogradStep` does, for the families and adapters that can be fused."""

    def __init__(self, job: Job, micro_tokens: int) -> None:
        """Builds the fused decoder in the job's planned layout."""
        self.micro_tokens = micro_tokens
        self.take(job)
        layout = job.layout
        self.fused = FusedDecoder(
            job.model,
            longest=max(self.lengths + [len(example) for example in job.valid]),
            forms=layout.forms,
            keeps=layout.keeps,
            chunk=layout.chunk,
            table=layout.table,
        )
        self.trained = {"flat.lora_A": nn.Parameter(self.fused.flat_a), "flat.lora_B": nn.Parameter(self.fused.flat_b)}
        self.trained["flat.lora_A"].grad, self.trained["flat.lora_B"].grad = self.fused.grad_a, self.fused.grad_b
        self.device = job.model.device
        self.share = torch.zeros((), device=self.device)
        self.total = torch.zeros((), device=self.device)
        self.graphs: dict[pack.PackedShape, CapturedGraph] = {}
        self.sizes: list[pack.PackedShape] = []
        self.plan: Sequence[Sequence[int]] = ()
        self.warmed: set[pack.PackedShape] = set()
        self.capturing = self.fused.own_kernels
        self.spent = 0  # tokens that went through the model, padding included

    def take(self, job: Job) -> None:
        """Uses this job's rows from now on; its model and layout must be those of the first job."""
        self.job = job
        self.lengths = [len(example) for example in job.train]
        self.loss_tokens = [sum(example.loss_mask[1:]) for example in job.train]

    def step(
        self, rows: Sequence[int], scale: float = 1.0, step_loss_tokens: int | None = None
    ) -> tuple[float, int, int]:
        """Returns the mean loss over the rows' tokens with loss, their tokens, and their tokens with loss.

        The mean does not depend on the micro-batches. If `rows` are one process's part of a step, `step_loss_tokens`
        counts the tokens with loss of the whole step and is the mean's denominator.
        """
        tokens, _, loss_tokens = self._shape(rows)
        step_loss_tokens = loss_tokens if step_loss_tokens is None else step_loss_tokens
        self.share.fill_(scale / step_loss_tokens)
        self.total.zero_()
        for part in self._bins(rows):
            size = self._size(part) if self.capturing else None
            packed = pack.pack_examples([self.job.train[row] for row in part], self.job.pad, size=size)
            self.spent += len(packed.ids)
            if size is not None:
                self._graph(size).run(packed)
            else:
                longest = max(self.lengths[row] for row in part)
                self.total += self.fused.step(flat_batch(packed, longest, self.device), self.share)
        return self.total.item() / step_loss_tokens, tokens, loss_tokens

    def _shape(self, rows: Sequence[int]) -> tuple[int, int, int]:
        """Returns the rows' tokens, number and tokens with loss."""
        return sum(self.lengths[row] for row in rows), len(rows), sum(self.loss_tokens[row] for row in rows)

    def _bins(self, rows: Sequence[int]) -> list[list[int]]:
        return pack.best_fit_batches(rows, self.lengths, self.micro_tokens)

    def prepare(self, plan: Sequence[Sequence[int]]) -> None:
        """Chooses graph sizes for the steps of `plan` and captures the graphs, largest first."""
        if not self.capturing:
            return
        self.plan = plan
        self._choose()
        for size in reversed(self.sizes):
            self._warm(size)
        for size in reversed(self.sizes):
            self._graph(size)
        self.clear()

    def _choose(self) -> None:
        shapes = [self._shape(part) for rows in self.plan for part in self._bins(rows)]
        self.sizes = pack.packed_shapes(shapes, max(self.lengths), MAX_GRAPHS, cost=CAPTURE_COST)

    def _warm(self, size: pack.PackedShape) -> None:
        if size not in self.warmed:
            warm_up(self.fused, size, self.share)
            self.warmed.add(size)

    def _size(self, rows: Sequence[int]) -> pack.PackedShape:
        shape = self._shape(rows)
        return next(size for size in self.sizes if size.fits(*shape))

    def _graph(self, size: pack.PackedShape) -> CapturedGraph:
        if size not in self.graphs:
            self._warm(size)
            pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
            self.graphs[size] = CapturedGraph(self.fused, size, self.share, self.total, pool)
        return self.graphs[size]

    def first_loss(self) -> float | None:
        """Returns the mean loss of the first training row, to compare with the model's own; None for FP8."""
        if self.fused.eight:
            return None
        packed = pack.pack_examples(self.job.train[:1], self.job.pad)
        return self._loss(packed, packed.tokens).item() / packed.loss_tokens

    def clear(self) -> None:
        """Clears the gradients."""
        self.fused.zero_gradients()

    def updated(self) -> None:
        """Refreshes the decoder's copies after the parameters changed."""
        self.fused.refresh()

    def shrink(self, rows: Sequence[int]) -> int:
        """Halves the micro-batches after memory ran out; returns their new size. Raises ResourceError."""
        self.graphs.clear()
        self.clear()
        torch.cuda.empty_cache()
        self.micro_tokens = halve_micro_batch(self.micro_tokens, max(self.lengths), str(self.job.folder))
        self._choose()
        return self.micro_tokens

    def validation(self, rows: Sequence[int]) -> tuple[float, int]:
        """Returns the summed loss over these validation rows' tokens with loss, and their number; never in FP8."""
        if self.fused.eight:
            return validation_loss(self.job, self.micro_tokens, rows)
        lengths = [len(example) for example in self.job.valid]
        total, loss_count = torch.zeros((), dtype=torch.float64), 0
        capacity = min(self.micro_tokens, VALIDATION_TOKENS) if self.capturing else self.micro_tokens
        for part in pack.best_fit_batches(rows, lengths, max(capacity, max(lengths))):
            packed = pack.pack_examples([self.job.valid[row] for row in part], self.job.pad)
            longest = max(lengths[row] for row in part)
            total += self._loss(packed, longest).double().cpu()
            loss_count += packed.loss_tokens
        return total.item(), loss_count

    def _loss(self, packed: pack.PackedBatch, longest: int) -> Tensor:
        return self.fused.loss(flat_batch(packed, longest, self.device))
