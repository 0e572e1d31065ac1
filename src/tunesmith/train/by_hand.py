"""Gradients by the fused decoder: packed micro-batches, and on a card whole micro-batches as captured graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunesmith.model.fuse import Fused
from tunesmith.prompt import pack
from tunesmith.train.by_autograd import halved, validation_loss
from tunesmith.train.captured import Captured, to_device
from tunesmith.train.job import Job

SIZES = 6  # graphs at most; each more would save under a hundredth of the padding on the recipes' rows


class Gradients:
    """As `by_autograd.Gradients`, for the families and adapters that can be fused."""

    def __init__(self, job: Job, micro_tokens: int) -> None:
        """Joins the model's layers as the job's plan says."""
        self.job, self.micro_tokens = job, micro_tokens
        self.lengths = [len(example) for example in job.train]
        layout = job.layout
        self.fused = Fused(
            job.model,
            longest=max(self.lengths + [len(example) for example in job.valid]),
            forms=layout.forms,
            keeps=layout.keeps,
            chunk=layout.chunk,
        )
        self.trained = {"flat.lora_A": nn.Parameter(self.fused.flat_a), "flat.lora_B": nn.Parameter(self.fused.flat_b)}
        self.trained["flat.lora_A"].grad, self.trained["flat.lora_B"].grad = self.fused.grad_a, self.fused.grad_b
        self.device = job.model.device
        self.share = torch.zeros((), device=self.device)
        self.total = torch.zeros((), device=self.device)
        self.graphs: dict[pack.Size, Captured] = {}
        self.sizes: list[pack.Size] = []
        self.capturing = self.fused.own_kernels
        self.spent = 0  # tokens that went through the model, padding too

    def step(self, rows: Sequence[int], scale: float = 1.0, of: int | None = None) -> tuple[float, int, int]:
        """The mean loss over the rows' learnt tokens, their tokens and learnt tokens, however they are divided.

        Where `rows` are a part of a step, `of` is the learnt tokens of the whole one, which the mean is taken over.
        """
        examples = [[self.job.train[row] for row in part] for part in self._bins(rows)]
        made = [pack.packed(part, self.job.pad) for part in examples]
        learnt = sum(part.learnt for part in made)
        of = learnt if of is None else of
        self.share.fill_(scale / of)
        self.total.zero_()
        for part, packed in zip(examples, made, strict=True):
            size = self._size(packed) if self.capturing else None
            self.spent += packed.tokens if size is None else size.tokens
            if size is not None:
                self._graph(size).run(pack.packed(part, self.job.pad, size=size))
            else:
                longest = max(map(len, part))
                self.total += self.fused.step(to_device(packed, longest, self.device), self.share)
        return self.total.item() / of, sum(part.tokens for part in made), learnt

    def _bins(self, rows: Sequence[int]) -> list[list[int]]:
        return pack.bins(rows, self.lengths, self.micro_tokens)

    def prepare(self, plan: Sequence[Sequence[int]]) -> None:
        """Chooses the sizes of the graphs for the steps of `plan` and records them, the largest first."""
        if not self.capturing:
            return
        shapes = []
        for rows in {tuple(rows) for rows in plan}:
            for part in self._bins(rows):
                examples = [self.job.train[row] for row in part]
                shapes.append((sum(map(len, examples)), len(part), sum(sum(e.learnt[1:]) for e in examples)))
        self.sizes = pack.sizes(shapes, max(self.lengths), SIZES)
        for size in reversed(self.sizes):
            self._graph(size)
        self.clear()

    def _size(self, packed: pack.Packed) -> pack.Size:
        return next(size for size in self.sizes if size.holds(packed))

    def _graph(self, size: pack.Size) -> Captured:
        if size not in self.graphs:
            pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
            self.graphs[size] = Captured(self.fused, size, self.share, self.total, pool)
        return self.graphs[size]

    def first_loss(self) -> float | None:
        """The mean loss of the first training row, to be compared with the model's own; None in 8 bits."""
        if "fp8" in self.fused.forms:
            return None
        packed = pack.packed(self.job.train[:1], self.job.pad)
        return self._loss(packed, packed.tokens).item() / packed.learnt

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
        return self.micro_tokens

    def validation(self, rows: Sequence[int]) -> tuple[float, int]:
        """The summed loss over these validation rows' learnt tokens, and how many those are; with exact products."""
        if "fp8" in self.fused.forms:
            return validation_loss(self.job, self.micro_tokens, rows)
        lengths = [len(example) for example in self.job.valid]
        total, learnt = torch.zeros((), dtype=torch.float64), 0
        for part in pack.bins(rows, lengths, max(self.micro_tokens, max(lengths))):
            packed = pack.packed([self.job.valid[row] for row in part], self.job.pad)
            longest = max(lengths[row] for row in part)
            total += self._loss(packed, longest).double().cpu()
            learnt += packed.learnt
        return total.item(), learnt

    def _loss(self, packed: pack.Packed, longest: int) -> Tensor:
        return self.fused.loss(to_device(packed, longest, self.device))
