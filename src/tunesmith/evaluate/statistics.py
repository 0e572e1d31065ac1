"""Is the difference real? Paired differences with bootstrap intervals that respect groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunesmith.evaluate.score import Better

RESAMPLES = 10_000
FEW_GROUPS = 15  # below this the expanded interval still covered only 84 to 94 % in simulation (docs/log.md)


@dataclass(frozen=True)
class Difference:
    """Tuned against base on one score: means, mean paired difference with its 95 % interval, row by row counts."""

    better: Better
    base: float
    tuned: float
    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    rows: int
    groups: int

    @property
    def verdict(self) -> str:
        """better, worse, or no detectable change; for a score without a good side: higher or lower."""
        if self.low <= 0 <= self.high:
            return "no detectable change"
        up = self.difference > 0
        if self.better == "neither":
            return "higher" if up else "lower"
        return "better" if up == (self.better == "higher") else "worse"

    def describe(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        known = {"low": self.low, "high": self.high} if self.groups > 1 else {"low": None, "high": None}
        return {**asdict(self), **known, "verdict": self.verdict, "few_groups": self.groups < FEW_GROUPS}


def paired(
    base: Sequence[float], tuned: Sequence[float], groups: Sequence[str], *, better: Better, seed: int
) -> Difference:
    """Compares two scores of the same rows.

    The interval is that of the mean difference over 10,000 resamples of whole groups with replacement (cluster
    bootstrap, Davison & Hinkley 1997, section 3.8): rows of one topic are not independent. Its ends are the expanded
    percentiles for few groups (Hesterberg 2015, doi:10.1080/00031305.2015.1089789), not 2.5 and 97.5 %. A row without
    a group is a group of its own; over a single group nothing can be said, so the interval has no ends. Raises
    ValueError for no rows or unequal lengths.
    """
    if not len(base) == len(tuned) == len(groups) or not base:
        raise ValueError("paired needs equal, non-empty lists")
    gain = np.asarray(tuned, float) - np.asarray(base, float)
    names = [name or f"row {index}" for index, name in enumerate(groups)]
    unique, place = np.unique(names, return_inverse=True)
    sums, counts = np.bincount(place, gain), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(0, len(unique), (RESAMPLES, len(unique)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [100 * tail(len(unique)), 100 * (1 - tail(len(unique)))])
    if len(unique) < 2:
        low, high = -np.inf, np.inf
    good = -gain if better == "lower" else gain
    return Difference(
        better,
        float(np.mean(base)),
        float(np.mean(tuned)),
        float(gain.mean()),
        float(low),
        float(high),
        int((good > 1e-9).sum()),
        int((np.abs(good) <= 1e-9).sum()),
        int((good < -1e-9).sum()),
        len(gain),
        len(unique),
    )


def tail(groups: int) -> float:
    """The share of resamples beyond each end of a 95 % interval: Φ(−√(n/(n−1)) t₀.₉₇₅,ₙ₋₁) for n groups.

    A bootstrap mean of n groups varies by √((n−1)/n) too little and its ends belong to a t, not a normal, curve.
    """
    from scipy.stats import norm, t

    if groups < 2:
        return 0.025
    return float(norm.cdf(-np.sqrt(groups / (groups - 1)) * t.ppf(0.975, groups - 1)))
