"""The head's cross-entropy and its gradient at once, so that the logits of a few tokens exist only once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
ROWS = 32  # logits of so many tokens stand in 32 bits at one time: with some 50 000 of them, what a cache holds


def loss(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
    """Cross-entropy in nats of `hidden` (tokens x width) under the head, summed over targets that are not -100."""
    logits = functional.linear(hidden, weight, bias)
    parts = zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True)
    return torch.stack([_nats(_capped(part.to(_number(part)), cap)[0], wanted).sum() for part, wanted in parts]).sum()


def loss_and_gradient(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float, share: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, and `share` times its gradient to `hidden`.

    With logits z = h Wᵀ, capped as c tanh(z / c) where the model does so, dL/dz = softmax - onehot. It takes the
    logits' place.
    """
    logits = functional.linear(hidden, weight, bias)
    totals = []
    for part, wanted in zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True):
        wide, slope = _capped(part.to(_number(part)), cap)
        gradient = torch.softmax(wide, dim=-1)
        totals.append(_nats(wide, wanted, gradient).sum())
        gradient.scatter_add_(1, wanted.clamp(min=0)[:, None], torch.full_like(gradient[:, :1], -1.0))
        part.copy_(gradient if slope is None else gradient.mul_(slope))
    made = logits @ weight
    factor = ((targets != IGNORED) * share).to(_number(made))[:, None]
    return torch.stack(totals).sum(), (made * factor).to(hidden.dtype)


def _nats(logits: Tensor, targets: Tensor, shares: Tensor | None = None) -> Tensor:
    """log(sum(exp(z))) - z of the target; where the softmax is there, the sum is the largest's exp(z) / share."""
    picked = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    norm = torch.logsumexp(logits, dim=-1) if shares is None else logits.amax(-1) - shares.amax(-1).log()
    return torch.where(targets != IGNORED, norm - picked, 0.0)


def _number(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _capped(logits: Tensor, cap: float) -> tuple[Tensor, Tensor | None]:
    """The logits, capped, and the slope of the cap."""
    if not cap:
        return logits, None
    bend = torch.tanh(logits / cap)
    return bend * cap, 1 - bend * bend
