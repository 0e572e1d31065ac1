"""Parameters in groups with their own peak rate."""

from __future__ import annotations

from typing import Any

import torch


def groups(parameters: dict[str, torch.nn.Parameter], rate: float, ratio: float) -> list[dict[str, Any]]:
    """Groups for torch's optimizers, each with its "peak" rate (and "lr", the same at first).

    With LoRA+ (Hayou et al. 2024, arXiv:2402.12354) B learns at `ratio` times A's `rate`. As in PEFT's optimizer for
    it, vectors (biases, DoRA's magnitudes) go with B, embeddings and head with A, and biases have no weight decay.
    A `ratio` of 1 without trained biases is one group, in the order given.
    """
    made: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        fast = name.endswith(".lora_B") or (parameter.dim() == 1 and not name.endswith(".lora_A"))  # A may lie flat
        peak = rate * ratio if fast else rate
        decays = not name.endswith(".bias")
        group = made.setdefault((peak, decays), {"params": [], "lr": peak, "peak": peak})
        if not decays:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
    return list(made.values())
