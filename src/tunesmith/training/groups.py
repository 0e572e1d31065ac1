"""Optimizer parameter groups with their own peak learning rates (LoRA+)."""

from __future__ import annotations

from typing import Any

import torch


def groups(parameters: dict[str, torch.nn.Parameter], rate: float, ratio: float) -> list[dict[str, Any]]:
    """Returns parameter groups for torch's optimizers, each with its "peak" rate and an equal initial "lr".

    With LoRA+ (Hayou et al. 2024, arXiv:2402.12354) B's rate is `ratio` times A's `rate`. As in PEFT's LoRA+ optimizer,
    vectors (biases, DoRA's magnitudes) go with B, embeddings and head with A, and biases have no weight decay. With a
    `ratio` of 1 and no trained biases there is one group, in the order of `parameters`.
    """
    param_groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        fast = name.endswith(".lora_B") or (
            parameter.dim() == 1 and not name.endswith(".lora_A")
        )  # the fused decoder's A is flat
        peak = rate * ratio if fast else rate
        decays = not name.endswith(".bias")
        group = param_groups.setdefault((peak, decays), {"params": [], "lr": peak, "peak": peak})
        if not decays:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
    return list(param_groups.values())
