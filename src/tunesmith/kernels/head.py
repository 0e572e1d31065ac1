"""The head's cross-entropy and its gradient at once, so that the logits of a few tokens exist only once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100


def loss(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
    """Cross-entropy in nats of `hidden` (tokens x width) under the head, summed over targets that are not -100."""
    logits, _ = _logits(hidden, weight, bias, cap)
    picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return torch.where(targets != IGNORED, torch.logsumexp(logits, dim=-1) - picked, 0.0).sum()


def loss_and_gradient(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float, share: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, and `share` times its gradient to `hidden`.

    With logits z = h Wᵀ, capped as c tanh(z / c) where the model does so, dL/dz = softmax - onehot.
    """
    logits, slope = _logits(hidden, weight, bias, cap)
    learnt, wanted = targets != IGNORED, targets.clamp(min=0)
    norm = torch.logsumexp(logits, dim=-1)
    total = torch.where(learnt, norm - logits.gather(1, wanted[:, None])[:, 0], 0.0).sum()
    factor = (learnt * share).to(logits.dtype)[:, None]
    gradient = logits.sub_(norm[:, None]).exp_()
    gradient.scatter_add_(1, wanted[:, None], torch.full_like(norm, -1.0)[:, None])
    gradient = gradient.mul_(factor) if slope is None else gradient.mul_(factor).mul_(slope)
    return total, gradient.to(hidden.dtype) @ weight


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> tuple[Tensor, Tensor | None]:
    logits = functional.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if not cap:
        return logits, None
    bend = torch.tanh(logits / cap)
    return bend * cap, 1 - bend * bend
