"""Gradients by the fused decoder: packed micro-batches, and on a card whole micro-batches as captured graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunesmith.models.fuse import FusedDecoder, flat_batch
from tunesmith.prompt import pack
from tunesmith.training.autograd_step import halved, validation_loss
from tunesmith.training.cuda_graph import CapturedGraph, warm
from tunesmith.training.job import Job

SIZES = 6  # graphs at most; each more would save under a hundredth of the padding on the recipes' rows
RECORDING = 1.5  # what a graph costs before its first use, in steps of its size; 1.1 on an H200
VALIDATED = 2048  # tokens of a validation's micro-batch on a card: its memory stands beside the graphs'


class FusedStep:
    """As `by_autograd.Gradients`, for the families and adapters that can be fused."""

    def __init__(self, job: Job, micro_tokens: int) -> None:
        """Joins the model's layers as the job's plan says."""
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
        self.spent = 0  # tokens that went through the model, padding too

    def take(self, job: Job) -> None:
        """From now on steps are made of this job's rows; its model and layout are those of the first."""
        self.job = job
        self.lengths = [len(example) for example in job.train]
        self.loss_tokens = [sum(example.loss_mask[1:]) for example in job.train]

    def step(self, rows: Sequence[int], scale: float = 1.0, of: int | None = None) -> tuple[float, int, int]:
        """The mean loss over the rows' learnt tokens, their tokens and learnt tokens, however they are divided.

        Where `rows` are a part of a step, `of` is the learnt tokens of the whole one, which the mean is taken over.
        """
        tokens, _, learnt = self._shape(rows)
        of = learnt if of is None else of
        self.share.fill_(scale / of)
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
        return self.total.item() / of, tokens, learnt

    def _shape(self, rows: Sequence[int]) -> tuple[int, int, int]:
        """Tokens, examples and learnt tokens of some rows."""
        return sum(self.lengths[row] for row in rows), len(rows), sum(self.loss_tokens[row] for row in rows)

    def _bins(self, rows: Sequence[int]) -> list[list[int]]:
        return pack.best_fit_batches(rows, self.lengths, self.micro_tokens)

    def prepare(self, plan: Sequence[Sequence[int]]) -> None:
        """Chooses the sizes of the graphs for the steps of `plan` and records them, the largest first."""
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
        self.sizes = pack.packed_shapes(shapes, max(self.lengths), SIZES, cost=RECORDING)

    def _warm(self, size: pack.PackedShape) -> None:
        if size not in self.warmed:
            warm(self.fused, size, self.share)
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
        """The mean loss of the first training row, to be compared with the model's own; None in 8 bits."""
        if self.fused.eight:
            return None
        packed = pack.pack_examples(self.job.train[:1], self.job.pad)
        return self._loss(packed, packed.tokens).item() / packed.loss_tokens

    def clear(self) -> None:
        """Forgets the gradients."""
        self.fused.zero_gradients()

    def updated(self) -> None:
        """To be called when the parameters have changed."""
        self.fused.refresh()

    def shrink(self, rows: Sequence[int]) -> int:
        """Halves the micro-batches after memory ran out; returns their new size. Raises ResourceError."""
        self.graphs.clear()
        self.clear()
        torch.cuda.empty_cache()
        self.micro_tokens = halved(self.micro_tokens, max(self.lengths), str(self.job.folder))
        self._choose()
        return self.micro_tokens

    def validation(self, rows: Sequence[int]) -> tuple[float, int]:
        """The summed loss over these validation rows' learnt tokens, and how many those are; with exact products."""
        if self.fused.eight:
            return validation_loss(self.job, self.micro_tokens, rows)
        lengths = [len(example) for example in self.job.valid]
        total, learnt = torch.zeros((), dtype=torch.float64), 0
        room = min(self.micro_tokens, VALIDATED) if self.capturing else self.micro_tokens
        for part in pack.best_fit_batches(rows, lengths, max(room, max(lengths))):
            packed = pack.pack_examples([self.job.valid[row] for row in part], self.job.pad)
            longest = max(lengths[row] for row in part)
            total += self._loss(packed, longest).double().cpu()
            learnt += packed.loss_tokens
        return total.item(), learnt

    def _loss(self, packed: pack.PackedBatch, longest: int) -> Tensor:
        return self.fused.loss(flat_batch(packed, longest, self.device))
