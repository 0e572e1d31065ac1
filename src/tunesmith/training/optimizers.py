"""Optimizers by name: functions of parameters (or parameter groups, see groups.py), peak rate and weight decay.

A group's own rate and weight decay take precedence. Each function returns a torch optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from tunesmith.training.validation import paged_error

Parameters: TypeAlias = Sequence[torch.nn.Parameter] | Sequence[dict[str, Any]]


def adamw(
    parameters: Parameters,
    rate: float,
    weight_decay: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW with 32-bit state (Loshchilov & Hutter 2017, arXiv:1711.05101)."""
    return torch.optim.AdamW(parameters, lr=rate, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True)


def adamw_8bit(
    parameters: Parameters,
    rate: float,
    weight_decay: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW with blockwise 8-bit state (Dettmers et al. 2021, arXiv:2110.02861), by bitsandbytes."""
    return _bitsandbytes_optimizer("AdamW8bit", parameters, rate, weight_decay, (beta1, beta2), eps)


def paged_adamw_8bit(
    parameters: Parameters,
    rate: float,
    weight_decay: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW with 8-bit state that CUDA pages out to the host when the GPU is full.

    Raises RecipeError without a CUDA device.
    """
    if not _on_cuda(parameters):
        raise paged_error("paged_adamw_8bit")
    return _bitsandbytes_optimizer("PagedAdamW8bit", parameters, rate, weight_decay, (beta1, beta2), eps)


def _on_cuda(parameters: Parameters) -> bool:
    first = parameters[0]
    return bool((first["params"][0] if isinstance(first, dict) else first).is_cuda)


def _bitsandbytes_optimizer(
    kind: str,
    parameters: Parameters,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    import bitsandbytes as bnb

    optimizer: Any = getattr(bnb.optim, kind)(parameters, lr=rate, betas=betas, eps=eps, weight_decay=weight_decay)
    return optimizer  # type: ignore[no-any-return]
