"""Effect size, and the smallest difference that a verdict on rows and groups like these usually finds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluation.statistics import (
    TOLERANCE,
    Interval,
    flip_p_values,
    group_sums,
    mean_interval,
    share_difference_interval,
)

POWER = 0.8
TRIALS = 300  # simulated data sets: the power at the result is right to about 2 %
POWER_FLIPS, POWER_EXACT_GROUPS = 400, 9  # of each simulated test
DOUBLINGS, STEPS = 6, 8  # of the search: it starts at two standard errors, and halves the range 8 times

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rule = Callable[[Floats, Floats, Floats], NDArray[np.int64]]  # low, high, p: 1 if a gain is shown, -1 a loss, else 0


def cohens_d(gain: Floats) -> float | None:
    """Returns Cohen's d_z of paired gains [rows] with Hedges' correction: J mean / sd, J = 1 − 3 / (4 (n − 1) − 1).

    The unit is the standard deviation (n − 1 in the divisor) of the rows' gains, which are tuned minus base regardless
    of the good direction. None if all gains are equal or there is only one: their deviation is then 0 or
    unknown. d_z: Lakens 2013, doi:10.3389/fpsyg.2013.00863; J removes the upward bias of d for few rows: Hedges 1981,
    doi:10.3102/10769986006002107.
    """
    if len(gain) < 2 or np.ptp(gain) <= TOLERANCE * np.abs(gain).max():
        return None
    return float((1 - 3 / (4 * (len(gain) - 1) - 1)) * gain.mean() / gain.std(ddof=1))


def smallest_detectable(gain: Floats, group_ids: Ints, *, share: bool, rule: Rule, seed: int) -> float | None:
    """Returns the smallest true difference that `rule` finds in 80 % of simulated data sets like this one.

    `gain` and `group_ids`: [rows]; the result has the unit of `gain`. `share` tells that the gains are differences of
    0/1 scores. Each of the simulated data sets has the same groups; the difference is found by bisection. None if no
    possible difference is found so often, or if nothing is known because no row varies.
    """
    simulate = _share_simulation if share else _mean_simulation
    largest, trial = simulate(gain, group_ids.astype(np.int64), rule, seed)
    low: float = 0.0
    high: float = largest / 2**DOUBLINGS
    while trial(high) < POWER:
        low, high = high, 2 * high
        if not 0 < high <= largest:
            return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if trial(middle) >= POWER else (middle, high)
    return high


def _mean_simulation(gain: Floats, group_ids: Ints, rule: Rule, seed: int) -> tuple[float, Callable[[float], float]]:
    """Returns the largest difference to try, and the power at a difference, for scores of any value.

    The groups' sums are resampled residuals, scaled to each group's size under a model of independent rows and a
    shared effect of each group, plus the difference.
    """
    sums, sizes = group_sums(group_ids, gain), np.bincount(group_ids)
    rows, groups = len(gain), len(sizes)
    error = float(mean_interval(sums[None], sizes).error[0])
    if groups < 2 or error <= TOLERANCE * np.abs(gain).max():
        return 0.0, lambda difference: 0.0
    residuals = sums - sizes * gain.mean()
    within = float(((gain - (sums / sizes)[group_ids]) ** 2).sum() / max(rows - groups, 1))
    shared = max(0.0, ((error * rows) ** 2 - rows * within) / float((sizes**2).sum()))
    variances = sizes * within + sizes**2 * shared
    variances = variances * (error * rows) ** 2 / variances.sum()
    standard = residuals / np.sqrt(variances)
    standard = (standard - standard.mean()) / standard.std()
    rng = np.random.default_rng([seed, 2])
    noise = standard[rng.integers(0, groups, (TRIALS, groups))] * np.sqrt(variances)

    def power(difference: float) -> float:
        moved = noise + difference * sizes
        ends = mean_interval(moved, sizes)
        return _shown_share(moved, ends, rule, seed)

    return 2.0 * 2**DOUBLINGS * error, power


def _share_simulation(gain: Floats, group_ids: Ints, rule: Rule, seed: int) -> tuple[float, Callable[[float], float]]:
    """Returns the largest difference to try, and the power at a difference, for differences of 0/1 scores.

    Without a difference, as many rows go up as down: those that went the less frequent way, in their groups, and as
    many of the others; whole groups swap directions at random. A difference lets every other row go up with the same
    probability.
    """
    ups, downs = (group_sums(group_ids, np.where(gain * sign > 0.5, 1.0, 0.0)).astype(np.int64) for sign in (1, -1))
    sizes, rows = np.bincount(group_ids), len(gain)
    fewer, more = sorted((int(ups.sum()), int(downs.sum())))
    rng = np.random.default_rng([seed, 2])
    shape = (TRIALS, len(sizes))
    first, second = (
        rng.binomial(counts, fewer / more if counts.sum() > fewer else 1.0, shape) for counts in (ups, downs)
    )
    swap = rng.random(shape) < 0.5
    ups, downs = np.where(swap, second, first), np.where(swap, first, second)
    possible = 1 - fewer / rows  # rows that can still go up

    def power(difference: float) -> float:
        chance, again = min(1.0, difference / possible), np.random.default_rng([seed, 3])
        up = ups + again.binomial(sizes - ups - downs, chance)
        down = downs - again.binomial(downs, chance)
        sums = (up - down).astype(float)
        ends = share_difference_interval(sums, sizes, up.sum(-1).astype(float), down.sum(-1).astype(float))
        return _shown_share(sums, ends, rule, seed)

    return possible, power


def _shown_share(sums: Floats, ends: Interval, rule: Rule, seed: int) -> float:
    """Returns the share of data sets with these sums [trials, groups] and intervals in which a rise is shown."""
    p_values = flip_p_values(sums, seed=seed, flips=POWER_FLIPS, max_exact_groups=POWER_EXACT_GROUPS)
    return float((rule(ends.low, ends.high, p_values) > 0).mean())
