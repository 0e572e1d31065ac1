"""Cross-entropy over the tokens with loss only; head and softmax are computed in chunks."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunesmith.errors import ModelError
from tunesmith.kernels import cross_entropy
from tunesmith.models.build import Model
from tunesmith.prompt.pack import IGNORE_INDEX, Batch

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
                part, gradient[place] = cross_entropy.loss_and_gradient(
                    hidden[place], targets[place], weight, bias, cap, one
                )
            else:
                part = cross_entropy.loss(hidden[place], targets[place], weight, bias, cap)
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
            cross_entropy.loss, hidden[start : start + CHUNK], targets[start : start + CHUNK], weight, bias, cap,
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
