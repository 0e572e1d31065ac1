"""The learning rate of a step: warm-up, then a schedule, a function from progress (0 to 1) to a factor (1 to 0)."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["constant", "cosine", "linear"]  # the names that a recipe may give


def cosine(progress: float) -> float:
    """Cosine decay to zero (Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Linear decay to zero."""
    return 1.0 - progress


def constant(progress: float) -> float:
    """No decay."""
    return 1.0


def learning_rate_factor(step: int, total: int, warmup: float, schedule: Callable[[float], float]) -> float:
    """Returns the factor on the peak rate for step `step` (from 0) of `total`.

    `warmup` below 1 is a share of all steps, otherwise a number of steps; its last step has the peak rate.
    """
    warm = warm_steps(warmup, total)
    if step < warm:
        return (step + 1) / warm
    return schedule((step - warm) / max(1, total - warm))


def warm_steps(warmup: float, total: int) -> int:
    """Returns the number of warm-up steps."""
    return min(total, math.ceil(round(warmup * total, 9)) if warmup < 1 else int(warmup))
