"""How the learning rate falls after the warm-up. Each function maps progress (0 to 1) to a factor (1 to 0)."""

from __future__ import annotations

import math


def cosine(progress: float) -> float:
    """Half a cosine: slow, fast, slow (Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """A straight line to zero."""
    return 1.0 - progress


def constant(progress: float) -> float:
    """No fall."""
    return 1.0
