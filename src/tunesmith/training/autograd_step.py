"""Gradients by autograd through the model's own layers: every family, every adapter, padded micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.errors import ModelError, ResourceError
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.training import distributed
from tunesmith.training.fsdp import shard
from tunesmith.training.job import Job
from tunesmith.training.loss import sum_cross_entropy

OVERHEAD = {"cpu": 100, "cuda": 3000}  # what starting a micro-batch costs, in tokens; measured, see dev/LOG.md


class AutogradStep:
    """Leaves a step's gradient in the adapter's parameters. `scale` multiplies the loss (float16 only)."""

    def __init__(self, job: Job, micro_tokens: int) -> None:
        """`micro_tokens` is the most padded tokens of a micro-batch. Shards the base where the job says fsdp."""
        if sharded(job):
            shard(job.model)
        self.job, self.micro_tokens = job, micro_tokens
        self.lengths = [len(example) for example in job.train]
        self.overhead = OVERHEAD[job.model.device.type]
        self.trained = job.model.trainable()
        self.spent = 0  # tokens that went through the model, padding too
        if job.recompute:
            check_recompute(job)
            job.model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            job.model.network.enable_input_require_grads()

    def step(self, rows: Sequence[int], scale: float = 1.0, of: int | None = None) -> tuple[float, int, int]:
        """The mean loss over the rows' learnt tokens, their tokens and learnt tokens, however they are divided.

        Where `rows` are a part of a step, `of` is the learnt tokens of the whole one, which the mean is taken over.
        """
        self.job.model.network.train()
        parts = pack.micro_batches(rows, self.lengths, self.micro_tokens, overhead=self.overhead)
        batches = [self._collate([self.job.train[row] for row in part]) for part in parts]
        learnt = sum(batch.loss_tokens for batch in batches)
        of, spare = learnt if of is None else of, idle(self.job, len(batches))
        self.spent += sum(len(batch.ids) * len(batch.ids[0]) for batch in batches)
        loss = 0.0
        for batch in batches:
            summed = sum_cross_entropy(self.job.model, batch) / of
            (summed * scale).backward()  # type: ignore[no-untyped-call]
            loss += summed.item()
        for batch in spare:
            (sum_cross_entropy(self.job.model, batch) * 0.0).backward()  # type: ignore[no-untyped-call]
        return loss, sum(batch.tokens for batch in batches), learnt

    def clear(self) -> None:
        """Forgets the gradients."""
        for parameter in self.trained.values():
            parameter.grad = None

    def updated(self) -> None:
        """To be called when the parameters have changed."""

    def shrink(self, rows: Sequence[int]) -> int:
        """Halves the micro-batches after memory ran out; returns their new size. Raises ResourceError."""
        self.clear()
        torch.cuda.empty_cache()
        self.micro_tokens = halved(self.micro_tokens, max(self.lengths[row] for row in rows), str(self.job.folder))
        return self.micro_tokens

    def validation(self, rows: Sequence[int]) -> tuple[float, int]:
        """The summed loss over these validation rows' learnt tokens, and how many those are."""
        return validation_loss(self.job, self.micro_tokens, rows)

    def _collate(self, examples: Sequence[Example]) -> pack.Batch:
        return pack.collate(examples, self.job.pad)


def check_recompute(job: Job) -> None:
    """Raises ModelError when activations are to be recomputed and the model's family cannot do that."""
    if job.recompute and not getattr(job.model.network, "supports_gradient_checkpointing", False):
        raise ModelError(
            "this model cannot recompute its activations",
            where=job.model.weights.name,
            next="Set train.recompute to no, and prompt.max_tokens or train.memory so that it fits",
        )


def halved(micro_tokens: int, longest: int, where: str) -> int:
    """Half of it, but room for the longest row. Raises ResourceError when that was all there is."""
    if micro_tokens <= longest:
        raise ResourceError(
            f"a row of {longest} tokens does not fit into the card's memory",
            where=where,
            next="Set train.recompute to yes, lower prompt.max_tokens, or choose a smaller base.model",
        )
    return max(longest, micro_tokens // 2)


def sharded(job: Job) -> bool:
    """Whether each process keeps a part of the base only."""
    return job.settings.spread == "fsdp" and distributed.world_size() > 1


def idle(job: Job, made: int) -> list[pack.Batch]:
    """Micro-batches without weight, so that after `made` ones this process has made as many as any other.

    In a sharded base each is a collective, and to be counted before the first; elsewhere there are none.
    """
    if not sharded(job):
        return []
    shortest = min(job.train, key=len)
    return [pack.collate([shortest], job.pad)] * (distributed.all_reduce_max(made) - made)


def validation_loss(job: Job, micro_tokens: int, rows: Sequence[int]) -> tuple[float, int]:
    """The summed loss over the learnt tokens of the validation `rows`, by the model's own layers, and their number."""
    total, learnt = 0.0, 0
    lengths = [len(example) for example in job.valid]
    limit = max(micro_tokens, max(lengths))
    overhead = OVERHEAD[job.model.device.type]
    job.model.network.eval()
    with torch.no_grad():
        parts = pack.micro_batches(rows, lengths, limit, overhead=overhead)
        spare = idle(job, len(parts))
        for part in parts:
            batch = pack.collate([job.valid[row] for row in part], job.pad)
            total += sum_cross_entropy(job.model, batch).item()
            learnt += batch.loss_tokens
        for batch in spare:
            sum_cross_entropy(job.model, batch)
    return total, learnt
