"""Gradients by autograd through the model's own layers, for every family and adapter, and their loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunesmith.errors import ModelError, ResourceError
from tunesmith.kernels import ops
from tunesmith.models.build import Model
from tunesmith.prompt import pack
from tunesmith.prompt.pack import IGNORE_INDEX, Batch
from tunesmith.prompt.tokens import Example
from tunesmith.training import distributed
from tunesmith.training.distributed import shard_base
from tunesmith.training.job import Job

CHUNK = 1024  # tokens whose logits are in memory at a time: 0.5 GB in float32 at a vocabulary of 128k


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden` (tokens x width) under a frozen head; computes the gradient in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
        needs_gradient = hidden.requires_grad
        gradient = torch.empty_like(hidden if needs_gradient else hidden[:0])
        kind = torch.promote_types(hidden.dtype, torch.float32)
        total, one = hidden.new_zeros((), dtype=kind), hidden.new_ones((), dtype=kind)
        for start in range(0, len(hidden), CHUNK):
            place = slice(start, start + CHUNK)
            if needs_gradient:
                part, gradient[place] = ops.loss_and_gradient(hidden[place], targets[place], weight, bias, cap, one)
            else:
                part = ops.loss(hidden[place], targets[place], weight, bias, cap)
            total += part
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None


def _trained_head_loss(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
    """Returns the summed cross-entropy under a trained head; each chunk's logits are recomputed in the backward."""
    parts = [
        checkpoint(
            ops.loss, hidden[start : start + CHUNK], targets[start : start + CHUNK], weight, bias, cap,
            use_reentrant=False, preserve_rng_state=False,
        )
        for start in range(0, max(1, len(hidden)), CHUNK)
    ]  # fmt: skip
    return torch.stack(parts).sum()


def sum_cross_entropy(model: Model, batch: Batch) -> Tensor:
    """Returns the cross-entropy in nats, summed over the tokens with loss of `batch`; differentiable."""
    network, device = model.network, model.device
    ids, mask, labels = (torch.tensor(part, device=device) for part in (batch.ids, batch.mask, batch.labels))
    hidden = model.decoder_network(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    scale = logit_scale(network)
    hidden = hidden if scale == 1.0 else hidden * scale
    has_loss = labels[:, 1:] != IGNORE_INDEX
    layer = network.get_output_embeddings()
    weight, bias = layer.weight, getattr(layer, "bias", None)
    cap = float(getattr(network.config, "final_logit_softcapping", None) or 0.0)
    hidden, targets = hidden[:, :-1][has_loss], labels[:, 1:][has_loss]
    head_is_trained = any(part is not None and part.requires_grad for part in (weight, bias))
    if head_is_trained and torch.is_grad_enabled():
        return _trained_head_loss(hidden, targets, weight, bias, cap)
    return cast(Tensor, _HeadLoss.apply(hidden, targets, weight, bias, cap))  # type: ignore[no-untyped-call]


def logit_scale(network: Any) -> float:
    """Returns the family's factor on its logits; we apply it to the hidden states instead."""
    config = network.config
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    return float(getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0) / divisor


def check_head(model: Model, batch: Batch, fused: float | None = None) -> None:
    """Compares our mean loss on `batch` with the network's own, once, before training.

    `fused` is the fused decoder's loss, if used. Raises ModelError if they differ, which means that the family computes
    something that we do not support.
    """
    device = model.device
    ids, mask, labels = (torch.tensor(part, device=device) for part in (batch.ids, batch.mask, batch.labels))
    model.network.eval()  # dropout would differ between the two forwards
    with torch.no_grad():
        computed = sum_cross_entropy(model, batch).item() / batch.loss_tokens if fused is None else fused
        reference = model.network(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.item()
    if not math.isfinite(reference):
        raise ModelError(
            f"the model's own loss is {reference:g} before any training",
            where=model.weights.name,
            next="Set train.precision to bfloat16 or float32. If that does not help, the weights are damaged",
        )
    if not abs(computed - reference) <= 0.02 * max(1.0, abs(reference)):  # bfloat16 logits alone differ by up to 0.5 %
        raise ModelError(
            f"the native engine's loss ({computed:.4f}) differs from the model's own ({reference:.4f})",
            where=model.weights.name,
            next="The native engine does not support this model yet. Set train.engine to trl",
        )


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
            (batch_loss * scale).backward()
            loss += batch_loss.item()
        for batch in idle_batches:
            (sum_cross_entropy(self.job.model, batch) * 0.0).backward()
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
