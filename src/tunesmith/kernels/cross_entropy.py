"""Cross-entropy under the LM head and its gradient in one pass, so that logits are computed only once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
ROWS = 32  # tokens whose logits are converted to float32 at a time: about a cache's size at a vocabulary of 50,000


def loss(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float) -> Tensor:
    """Returns the cross-entropy in nats of `hidden` (tokens x width), summed over targets that are not -100."""
    logits = functional.linear(hidden, weight, bias)
    parts = zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True)
    return torch.stack(
        [_token_losses(_softcap(part.to(_accumulation_dtype(part)), cap)[0], target).sum() for part, target in parts]
    ).sum()


def loss_and_gradient(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, cap: float, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the loss and `scale` times its gradient with respect to `hidden`.

    With logits z = h Wᵀ, capped as c tanh(z / c) if the model does so, dL/dz = softmax - onehot. It overwrites the
    logits.
    """
    logits = functional.linear(hidden, weight, bias)
    totals = []
    for part, target in zip(torch.split(logits, ROWS), torch.split(targets, ROWS), strict=True):
        wide, slope = _softcap(part.to(_accumulation_dtype(part)), cap)
        gradient = torch.softmax(wide, dim=-1)
        totals.append(_token_losses(wide, target, gradient).sum())
        gradient.scatter_add_(1, target.clamp(min=0)[:, None], torch.full_like(gradient[:, :1], -1.0))
        part.copy_(gradient if slope is None else gradient.mul_(slope))
    dhidden = logits @ weight
    factor = ((targets != IGNORED) * scale).to(_accumulation_dtype(dhidden))[:, None]
    return torch.stack(totals).sum(), (dhidden * factor).to(hidden.dtype)


def _token_losses(logits: Tensor, targets: Tensor, probs: Tensor | None = None) -> Tensor:
    """Returns log(sum(exp(z))) - z[target]; given the softmax, the sum is exp(max z) / max prob."""
    target_logits = logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    norm = torch.logsumexp(logits, dim=-1) if probs is None else logits.amax(-1) - probs.amax(-1).log()
    return torch.where(targets != IGNORED, norm - target_logits, 0.0)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _softcap(logits: Tensor, cap: float) -> tuple[Tensor, Tensor | None]:
    """Returns the capped logits and the derivative of the cap (None without a cap)."""
    if not cap:
        return logits, None
    squashed = torch.tanh(logits / cap)
    return squashed * cap, 1 - squashed * squashed
