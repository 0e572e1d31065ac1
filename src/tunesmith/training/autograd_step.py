"""Gradients by autograd through the model's own layers, for every family and adapter, in padded micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.errors import ModelError, ResourceError
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.training import distributed
from tunesmith.training.fsdp import shard_base
from tunesmith.training.job import Job
from tunesmith.training.loss import sum_cross_entropy

OVERHEAD = {"cpu": 100, "cuda": 3000}  # cost of starting a micro-batch, in tokens; measured, see dev/LOG.md


class AutogradStep:
    """Computes a step's gradient into the adapter's parameters. `scale` multiplies the loss (float16 only)."""

    def __init__(self, job: Job, micro_tokens: int) -> None:
        """Shards the base if the job says fsdp. `micro_tokens` limits a micro-batch's padded tokens."""
        if is_sharded(job):
            shard_base(job.model)
        self.job, self.micro_tokens = job, micro_tokens
        self.lengths = [len(example) for example in job.train]
        self.overhead = OVERHEAD[job.model.device.type]
        self.trained = job.model.trainable()
        self.spent = 0  # tokens that went through the model, padding included
        if job.recompute:
            check_recompute(job)
            job.model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            job.model.network.enable_input_require_grads()

    def step(
        self, rows: Sequence[int], scale: float = 1.0, step_loss_tokens: int | None = None
    ) -> tuple[float, int, int]:
        """Returns the mean loss over the rows' tokens with loss, their tokens, and their tokens with loss.

        The mean does not depend on the micro-batches. If `rows` are one process's part of a step, `step_loss_tokens`
        counts the tokens with loss of the whole step and is the mean's denominator.
        """
        self.job.model.network.train()
        bins = pack.micro_batches(rows, self.lengths, self.micro_tokens, overhead=self.overhead)
        batches = [self._collate([self.job.train[row] for row in bin_rows]) for bin_rows in bins]
        loss_count = sum(batch.loss_tokens for batch in batches)
        step_loss_tokens, idle_batches = (
            loss_count if step_loss_tokens is None else step_loss_tokens,
            make_idle_batches(self.job, len(batches)),
        )
        self.spent += sum(len(batch.ids) * len(batch.ids[0]) for batch in batches)
        loss = 0.0
        for batch in batches:
            batch_loss = sum_cross_entropy(self.job.model, batch) / step_loss_tokens
            (batch_loss * scale).backward()  # type: ignore[no-untyped-call]
            loss += batch_loss.item()
        for batch in idle_batches:
            (sum_cross_entropy(self.job.model, batch) * 0.0).backward()  # type: ignore[no-untyped-call]
        return loss, sum(batch.tokens for batch in batches), loss_count

    def clear(self) -> None:
        """Clears the gradients."""
        for parameter in self.trained.values():
            parameter.grad = None

    def updated(self) -> None:
        """Does nothing; the fused step refreshes its copies of the parameters here."""

    def shrink(self, rows: Sequence[int]) -> int:
        """Halves the micro-batches after memory ran out; returns their new size. Raises ResourceError."""
        self.clear()
        torch.cuda.empty_cache()
        self.micro_tokens = halve_micro_batch(
            self.micro_tokens, max(self.lengths[row] for row in rows), str(self.job.folder)
        )
        return self.micro_tokens

    def validation(self, rows: Sequence[int]) -> tuple[float, int]:
        """Returns the summed loss over these validation rows' tokens with loss, and their number."""
        return validation_loss(self.job, self.micro_tokens, rows)

    def _collate(self, examples: Sequence[Example]) -> pack.Batch:
        return pack.collate(examples, self.job.pad)


def check_recompute(job: Job) -> None:
    """Raises ModelError if the job recomputes activations and the model's family does not support that."""
    if job.recompute and not getattr(job.model.network, "supports_gradient_checkpointing", False):
        raise ModelError(
            "this model cannot recompute its activations",
            where=job.model.weights.name,
            next="Set train.recompute to no; if it then does not fit, lower prompt.max_tokens",
        )


def halve_micro_batch(micro_tokens: int, longest: int, where: str) -> int:
    """Returns half of `micro_tokens`, at least `longest`. Raises ResourceError if it cannot be reduced."""
    if micro_tokens <= longest:
        raise ResourceError(
            f"a row of {longest} tokens does not fit into the GPU's memory",
            where=where,
            next="Set train.recompute to yes, lower prompt.max_tokens, or choose a smaller base.model",
        )
    return max(longest, micro_tokens // 2)


def is_sharded(job: Job) -> bool:
    """Returns whether the base is sharded over the processes (fsdp)."""
    return job.settings.parallel == "fsdp" and distributed.world_size() > 1


def make_idle_batches(job: Job, count: int) -> list[pack.Batch]:
    """Returns batches of weight 0 that raise this process's `count` of micro-batches to the largest of all processes.

    Every micro-batch of a sharded base is a collective. Without sharding the list is empty.
    """
    if not is_sharded(job):
        return []
    shortest = min(job.train, key=len)
    return [pack.collate([shortest], job.pad)] * (distributed.all_reduce_max(count) - count)


def validation_loss(job: Job, micro_tokens: int, rows: Sequence[int]) -> tuple[float, int]:
    """Returns the summed loss over the validation `rows`' tokens with loss, and their number, without fusing."""
    total, loss_count = 0.0, 0
    lengths = [len(example) for example in job.valid]
    limit = max(micro_tokens, max(lengths))
    overhead = OVERHEAD[job.model.device.type]
    job.model.network.eval()
    with torch.no_grad():
        bins = pack.micro_batches(rows, lengths, limit, overhead=overhead)
        idle_batches = make_idle_batches(job, len(bins))
        for micro_rows in bins:
            batch = pack.collate([job.valid[row] for row in micro_rows], job.pad)
            total += sum_cross_entropy(job.model, batch).item()
            loss_count += batch.loss_tokens
        for batch in idle_batches:
            sum_cross_entropy(job.model, batch)
    return total, loss_count
