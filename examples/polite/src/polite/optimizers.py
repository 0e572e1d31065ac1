"""Optimizers: functions of parameter groups, the peak rate and the weight decay that return a torch optimizer."""

from __future__ import annotations

from typing import Any

import torch


def sgd(parameters: Any, rate: float, weight_decay: float, *, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Polyak 1964)."""
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=weight_decay)
