"""The loss on learnt tokens only: hidden states of those tokens, head and cross-entropy in chunks."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.model.build import Model
from tunesmith.prompt.pack import IGNORED, Batch

CHUNK = 1024  # tokens whose logits exist at one time: 0.5 GB in float32 at a vocabulary of 128k


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden` (tokens x width) under a frozen head, its gradient made in the forward.

    With logits z = h Wᵀ, capped as c tanh(z / c) where the model does so, dL/dz = softmax - onehot.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
        wants = hidden.requires_grad
        gradient = torch.empty_like(hidden) if wants else None
        total = torch.zeros(
            (), dtype=torch.float32 if hidden.dtype != torch.float64 else torch.float64, device=hidden.device
        )
        for start in range(0, len(hidden), CHUNK):
            part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
            logits = torch.nn.functional.linear(part, weight, bias).to(total.dtype)
            squashed = torch.tanh(logits / cap) if cap else None
            if squashed is not None:
                logits = squashed * cap
            norm = torch.logsumexp(logits, dim=-1)
            total += (norm - logits.gather(1, wanted[:, None])[:, 0]).sum()
            if gradient is None:
                continue
            logits.sub_(norm[:, None]).exp_()
            logits.scatter_add_(1, wanted[:, None], torch.full_like(norm, -1.0)[:, None])
            if squashed is not None:
                logits.mul_(1 - squashed * squashed)
            gradient[start : start + CHUNK] = logits.to(hidden.dtype) @ weight
        ctx.save_for_backward(gradient if gradient is not None else torch.empty(0))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None, None


def summed_loss(model: Model, batch: Batch) -> Tensor:
    """The cross-entropy in nats, summed over the learnt tokens of `batch`; differentiable in the adapter."""
    network, device = model.network, model.device
    ids, mask, labels = (torch.tensor(part, device=device) for part in (batch.ids, batch.mask, batch.labels))
    decoder = getattr(network, network.base_model_prefix)
    hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    wanted = labels[:, 1:] != IGNORED
    head = network.get_output_embeddings()
    cap = float(getattr(network.config, "final_logit_softcapping", None) or 0.0)
    hidden, targets, bias = hidden[:, :-1][wanted], labels[:, 1:][wanted], getattr(head, "bias", None)
    return cast(Tensor, _HeadLoss.apply(hidden, targets, head.weight, bias, cap))  # type: ignore[no-untyped-call]


def check_head(model: Model, batch: Batch) -> None:
    """Compares our loss on `batch` with the network's own, once, before any training.

    Raises ModelError when they differ: the family does something between head and loss that is not known here.
    """
    device = model.device
    ids, mask, labels = (torch.tensor(part, device=device) for part in (batch.ids, batch.mask, batch.labels))
    with torch.no_grad():
        ours = summed_loss(model, batch).item() / batch.learnt
        own = model.network(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.item()
    if not abs(ours - own) <= 0.02 * max(1.0, abs(own)):  # bfloat16 logits alone differ by up to 0.5 %
        raise ModelError(
            f"our loss ({ours:.4f}) is not the model's own ({own:.4f})",
            where=model.weights.name,
            next="This model's head is not supported yet; train it with engine: trl",
        )
