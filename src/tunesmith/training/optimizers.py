"""Optimizers by name: functions of parameters (or parameter groups), peak rate and weight decay.

A group's own rate and weight decay take precedence. Each function returns a torch optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from tunesmith.training.validation import paged_error

__all__ = ["adamw", "adamw_8bit", "paged_adamw_8bit"]  # the names that a recipe may give
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


def parameter_groups(parameters: dict[str, torch.nn.Parameter], rate: float, ratio: float) -> list[dict[str, Any]]:
    """Returns parameter groups for torch's optimizers, each with its "peak" rate and an equal initial "lr".

    With LoRA+ (Hayou et al. 2024, arXiv:2402.12354) B's rate is `ratio` times A's `rate`. As in PEFT's LoRA+ optimizer,
    vectors (biases, DoRA's magnitudes) go with B, embeddings and head with A, and biases have no weight decay. With a
    `ratio` of 1 and no trained biases there is one group, in the order of `parameters`.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        fast = name.endswith(".lora_B") or (
            parameter.dim() == 1 and not name.endswith(".lora_A")
        )  # the fused decoder's A is flat
        peak = rate * ratio if fast else rate
        decays = not name.endswith(".bias")
        group = groups.setdefault((peak, decays), {"params": [], "lr": peak, "peak": peak})
        if not decays:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
    return list(groups.values())
