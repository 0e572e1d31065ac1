"""Learning rate schedules after the warm-up: functions from progress (0 to 1) to a factor (1 to 0)."""

from __future__ import annotations

import math


def cosine(progress: float) -> float:
    """Cosine decay to zero (Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Linear decay to zero."""
    return 1.0 - progress


def constant(progress: float) -> float:
    """No decay."""
    return 1.0
