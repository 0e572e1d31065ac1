"""The loss on learnt tokens only: hidden states of those tokens, head and cross-entropy in chunks."""

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

CHUNK = 1024  # tokens whose logits exist at one time: 0.5 GB in float32 at a vocabulary of 128k


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden` (tokens x width) under a frozen head, its gradient made in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
        wants = hidden.requires_grad
        gradient = torch.empty_like(hidden if wants else hidden[:0])
        kind = torch.promote_types(hidden.dtype, torch.float32)
        total, whole = hidden.new_zeros((), dtype=kind), hidden.new_ones((), dtype=kind)
        for start in range(0, len(hidden), CHUNK):
            place = slice(start, start + CHUNK)
            if wants:
                part, gradient[place] = cross_entropy.loss_and_gradient(
                    hidden[place], targets[place], weight, bias, cap, whole
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
    """The same where the head learns too: each chunk's logits are made again in the backward."""
    parts = [
        checkpoint(
            cross_entropy.loss, hidden[start : start + CHUNK], targets[start : start + CHUNK], weight, bias, cap,
            use_reentrant=False, preserve_rng_state=False,
        )
        for start in range(0, max(1, len(hidden)), CHUNK)
    ]  # fmt: skip
    return torch.stack(parts).sum()


def sum_cross_entropy(model: Model, batch: Batch) -> Tensor:
    """The cross-entropy in nats, summed over the learnt tokens of `batch`; differentiable in all that is trained."""
    network, device = model.network, model.device
    ids, mask, labels = (torch.tensor(part, device=device) for part in (batch.ids, batch.mask, batch.labels))
    hidden = model.decoder_network(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    scale = logit_scale(network)
    hidden = hidden if scale == 1.0 else hidden * scale
    wanted = labels[:, 1:] != IGNORE_INDEX
    layer = network.get_output_embeddings()
    weight, bias = layer.weight, getattr(layer, "bias", None)
    cap = float(getattr(network.config, "final_logit_softcapping", None) or 0.0)
    hidden, targets = hidden[:, :-1][wanted], labels[:, 1:][wanted]
    learns = any(part is not None and part.requires_grad for part in (weight, bias))
    if learns and torch.is_grad_enabled():
        return _trained_head_loss(hidden, targets, weight, bias, cap)
    return cast(Tensor, _HeadLoss.apply(hidden, targets, weight, bias, cap))  # type: ignore[no-untyped-call]


def logit_scale(network: Any) -> float:
    """What a family multiplies its logits by before the softmax; it is applied to the hidden states instead."""
    config = network.config
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    return float(getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0) / divisor


def check_head(model: Model, batch: Batch, fused: float | None = None) -> None:
    """Compares our mean loss on `batch` with the network's own, once, before any training.

    `fused` is the fused decoder's, where that is used. Raises ModelError when they differ: the family does something
    that is not known here.
    """
    device = model.device
    ids, mask, labels = (torch.tensor(part, device=device) for part in (batch.ids, batch.mask, batch.labels))
    model.network.eval()  # an adapter's new layers would drop inputs, another part in each forward
    with torch.no_grad():
        ours = sum_cross_entropy(model, batch).item() / batch.loss_tokens if fused is None else fused
        own = model.network(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.item()
    if not math.isfinite(own):
        raise ModelError(
            f"the model's own loss is {own:g} before any training",
            where=model.weights.name,
            next="Set train.precision to bfloat16 or float32; if it stays so, the weights are damaged",
        )
    if not abs(ours - own) <= 0.02 * max(1.0, abs(own)):  # bfloat16 logits alone differ by up to 0.5 %
        raise ModelError(
            f"our loss ({ours:.4f}) is not the model's own ({own:.4f})",
            where=model.weights.name,
            next="This model is not supported yet; train it with engine: trl",
        )
