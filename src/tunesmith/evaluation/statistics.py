"""Intervals of paired differences over groups of rows, sign-flip permutation tests and Holm's correction.

Every function that takes `sums` [trials, groups] works on many data sets of the same groups at once: a comparison has
one trial, the power figure and benchmarks/verdict_errors.py have thousands. Nothing here decides; see verdict.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
FLIPS = 10_000
RESAMPLES = 10_000  # of a bootstrap
MAX_EXACT_GROUPS = 14  # up to so many groups, all 2ⁿ sign flips are enumerated
TOLERANCE = 1e-9  # relative: values below this share of the largest score are rounding noise
BATCH_SIGNS, BATCH_SUMS = 50_000, 2_000_000  # values per batch: 0.4 MB, which fits a core's cache, and 16 MB
SKEWNESS_GROUPS = 6  # fewer tell nothing about skewness
SKEWNESS_FACTOR = 0.5  # share of the estimated skewness that is corrected: coverage against power (dev/LOG.md)
SATURATED = 0.75  # from this share of rows with the same gain on, a t interval of a share is too short (dev/LOG.md)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """95 % intervals [trials] with their standard errors [trials], in the units of the difference."""

    low: Floats
    high: Floats
    error: Floats


def t_quantile(probability: float, degrees: float) -> float:
    """Returns the quantile of Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(probability, degrees))


def degrees_of_freedom(sizes: Ints) -> float:
    """Returns the degrees of freedom of the standard error of a mean over groups with `sizes` [groups] rows.

    Satterthwaite's approximation for independent rows (Bell & McCaffrey 2002, as in Imbens & Kolesár 2016,
    doi:10.1162/REST_a_00552): groups − 1 for equal groups, and close to 1 if one group holds most rows.
    """
    weights = sizes / sizes.sum()
    scale = 1 / (1 - weights)
    shift = weights * scale
    # the variance is a quadratic form Q in the groups' sums, with Q = diag(scale) - shift 1' - 1 shift' + constant 1 1'
    constant = float(weights @ shift)
    diagonal = scale - 2 * shift + constant
    squares = 2 * float(weights @ shift**2) - constant**2
    squares += float(weights**2 @ (diagonal**2 - (constant - 2 * shift) ** 2))
    return float((weights @ diagonal) ** 2 / squares)


def mean_interval(sums: Floats, sizes: Ints, *, skewed: bool = True) -> Interval:
    """Computes 95 % intervals of a mean over rows from its sums over groups of `sizes` rows [groups].

    A t interval with the cluster-robust standard error CR2, which for a mean is √(Σ s² / (1 − w)) / rows, with the
    groups' summed residuals s and their shares w of the rows (Bell & McCaffrey 2002), and the degrees of freedom of
    `degrees_of_freedom`. With `skewed`, each end is moved outwards to that of Hall's transformed t, which corrects for
    skewness (Hall 1992, doi:10.1111/j.2517-6161.1992.tb01872.x), if that is wider; half of the skewness is corrected,
    because it is estimated badly, and none of fewer than `SKEWNESS_GROUPS`. The interval is infinite for one group,
    and has no width if all groups have the same mean.
    """
    groups, rows = len(sizes), sizes.sum()
    mean = sums.sum(-1) / rows
    if groups < 2:
        infinite = np.full(len(sums), np.inf)
        return Interval(-infinite, infinite, infinite)
    residuals = sums - np.outer(mean, sizes)
    error = np.sqrt((residuals**2 / (1 - sizes / rows)).sum(-1)) / rows
    quantile = t_quantile((1 + LEVEL) / 2, degrees_of_freedom(sizes))
    low, high = mean - quantile * error, mean + quantile * error
    if skewed and groups >= SKEWNESS_GROUPS:
        bias = SKEWNESS_FACTOR * _skewness(residuals)
        low = np.minimum(low, mean - error * _hall_inverse(quantile, bias, groups))
        high = np.maximum(high, mean - error * _hall_inverse(-quantile, bias, groups))
    return Interval(low, high, error)


def _skewness(residuals: Floats) -> Floats:
    """Returns the adjusted Fisher-Pearson skewness [trials] of residuals [trials, groups]; 0 without spread."""
    groups = residuals.shape[-1]
    spread = np.sqrt((residuals**2).mean(-1))
    scaled = np.divide(residuals, spread[:, None], out=np.zeros_like(residuals), where=spread[:, None] > 0)
    return np.asarray((scaled * scaled * scaled).mean(-1) * np.sqrt(groups * (groups - 1)) / (groups - 2))


def _hall_inverse(quantile: float, skewness: Floats, groups: int) -> Floats:
    """Returns the inverse of Hall's cubic transformation of t, which removes the skewness of a mean of `groups` values.

    Hall 1992, with a = 1/3 and b = 1/6: g(t) = √n (u + γ u² / 3 + γ² u³ / 27 + γ / (6 n)) of u = t / √n.
    The cubic is that of (1 + γ u / 3), so its root has a closed form.
    """
    root = np.sqrt(groups)
    bias = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    return np.asarray(3 * root / bias * (np.cbrt(1 + bias * (quantile / root - bias / (6 * groups))) - 1))


# --- shares -----------------------------------------------------------------------------------------------------


def share_difference_interval(sums: Floats, sizes: Ints, ups: Floats, downs: Floats) -> Interval:
    """Computes 95 % intervals of the difference of two shares of the same rows; `ups`, `downs`: [trials].

    `ups` counts rows that went from 0 to 1, `downs` rows that went from 1 to 0, and `sums` [trials, groups] their
    difference in each group. Rows that are their own groups have Tango's score interval (Tango 1998,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B). If no row went the other way and most rows
    changed, the exact interval of the share that changed is used instead (Clopper & Pearson 1934): 80 of 80 gives 0.955
    to 1. Larger groups have the t interval of `mean_interval`, and if at least `SATURATED` of the rows have the same
    gain, the wider of both, with counts divided by the design effect (Kish 1965). No end leaves −1 to 1.
    """
    rows, counts = int(sizes.sum()), np.stack([ups, downs, sizes.sum() - ups - downs])
    clustered = mean_interval(sums, sizes, skewed=False)
    effect = _design_effect(clustered.error, ups + downs, ups - downs, rows)
    low, high = _tango_interval(ups / effect, downs / effect, rows / effect)
    for changed, opposite, sign in ((ups, downs, 1), (downs, ups, -1)):
        exact = (opposite == 0) & (changed >= SATURATED * rows)
        if exact.any():  # beta quantiles are slow
            smaller, larger = exact_share_interval((changed / effect)[exact], (rows / effect)[exact])
            low[exact], high[exact] = (smaller, larger) if sign > 0 else (-larger, -smaller)
    unchanged = counts[2] == rows  # nothing changed: the exact share of changed rows, in either direction
    most = 1 - ((1 - LEVEL) / 2) ** (1 / rows)
    low, high = np.where(unchanged, -most, low), np.where(unchanged, most, high)
    if len(sizes) < rows:
        saturated = counts.max(0) >= SATURATED * rows
        low = np.where(saturated, np.minimum(low, clustered.low), clustered.low)
        high = np.where(saturated, np.maximum(high, clustered.high), clustered.high)
    return Interval(np.clip(low, -1, 1), np.clip(high, -1, 1), clustered.error)


def share_interval(sums: Floats, sizes: Ints) -> Interval:
    """Computes 95 % intervals of a share from the counts in each group; `sums`: [trials, groups], `sizes`: [groups].

    The exact interval (Clopper & Pearson 1934) with counts divided by the design effect (Korn & Graubard 1998), and for
    groups of several rows the wider of it and the t interval; no end leaves 0 to 1.
    """
    rows, ones = int(sizes.sum()), sums.sum(-1)
    clustered = mean_interval(sums, sizes, skewed=False)
    effect = _design_effect(clustered.error, ones, ones, rows)
    low, high = exact_share_interval(ones / effect, rows / effect)
    if len(sizes) < rows:
        low, high = np.minimum(low, clustered.low), np.maximum(high, clustered.high)
    return Interval(np.clip(low, 0, 1), np.clip(high, 0, 1), clustered.error)


def exact_share_interval(count: Floats, total: Floats) -> tuple[Floats, Floats]:
    """Returns the exact 95 % interval of `count` / `total` as (low, high) (Clopper & Pearson 1934).

    doi:10.1093/biomet/26.4.404. Counts need not be whole numbers; the ends are those of beta distributions.
    """
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = np.where(count > 0, beta.ppf(tail, np.maximum(count, 1e-12), total - count + 1), 0.0)
    high = np.where(count < total, beta.ppf(1 - tail, count + 1, np.maximum(total - count, 1e-12)), 1.0)
    return low, high


def _design_effect(error: Floats, squares: Floats, total: Floats, rows: int) -> Floats:
    """Returns the variance over groups divided by that over independent rows, at least 1 (Kish 1965).

    `squares` and `total` are the sums of the rows' squared values and values. 1 if the rows have no spread.
    """
    if rows < 2:
        return np.ones_like(error)
    independent = np.maximum(squares - total**2 / rows, 0) / (rows - 1) / rows
    spread = np.isfinite(error) & (independent > 1e-12)
    return np.maximum(np.divide(error**2, independent, out=np.ones_like(error), where=spread), 1.0)


def _tango_interval(ups: Floats, downs: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Returns Tango's score interval of (ups − downs) / rows: the differences that a score test does not reject."""
    from scipy.stats import norm

    quantile, estimate = float(norm.ppf((1 + LEVEL) / 2)), (ups - downs) / rows

    def statistic(difference: Floats) -> Floats:
        linear = (2 * rows - ups + downs) * difference - ups - downs
        constant = -downs * difference * (1 - difference)
        share = (np.sqrt(np.maximum(linear**2 - 8 * rows * constant, 0)) - linear) / (4 * rows)
        variance = rows * (2 * share + difference * (1 - difference))
        return np.asarray((ups - downs - rows * difference) / np.sqrt(np.maximum(variance, 1e-12)))

    ends = []
    for outside, sign in ((-1.0, 1), (1.0, -1)):
        rejected, accepted = np.full_like(estimate, outside), estimate.copy()
        for _ in range(30):  # bisection to 2⁻³⁰
            middle = (rejected + accepted) / 2
            beyond = sign * statistic(middle) > quantile
            rejected, accepted = np.where(beyond, middle, rejected), np.where(beyond, accepted, middle)
        ends.append((rejected + accepted) / 2)
    return ends[0], ends[1]


# --- trainings --------------------------------------------------------------------------------------------------


def widen_by_trainings(low: Floats, high: Floats, by_training: Floats) -> tuple[Floats, Floats]:
    """Returns 95 % intervals of a mean over rows and trainings; `by_training` [trials, trainings] are the differences.

    `low` and `high` [trials] are the ends over groups of rows, of the gains averaged over trainings. The estimate has
    an error from the rows and one from the trainings, so the distances of the two intervals' ends are combined as
    √(rows² + trainings²): the method of variance estimates recovery (Howe 1974, Journal of the American Statistical
    Association 69, 789; Zou & Donner 2008, doi:10.1002/sim.3095). The interval over trainings is a t interval with
    trainings − 1 degrees of freedom. The rows' part of the trainings' variance is counted twice, as in two-way
    clustering without the term of the intersection (Cameron, Gelbach & Miller 2011, doi:10.1198/jbes.2010.07136), which
    makes the interval too wide rather than too short.
    """
    estimate, reach = by_training.mean(-1), _training_reach(by_training, 1 - LEVEL)
    return estimate - np.hypot(estimate - low, reach), estimate + np.hypot(high - estimate, reach)


def trainings_p_values(error: Floats, degrees: float, by_training: Floats) -> Floats:
    """Returns two-sided p-values [trials]: the level at which `widen_by_trainings` of a t interval just has zero.

    `error` [trials] is the standard error over groups of rows, with `degrees` of freedom.
    """
    from scipy.stats import t

    square = by_training.mean(-1) ** 2
    low, high = np.zeros_like(square), np.ones_like(square)
    for _ in range(40):  # bisection to 2⁻⁴⁰
        level = (low + high) / 2
        reached = square >= (t.isf(level / 2, degrees) * error) ** 2 + _training_reach(by_training, level) ** 2
        low, high = np.where(reached, low, level), np.where(reached, level, high)
    return np.asarray(np.where(square > 0, high, 1.0))


def _training_reach(by_training: Floats, level: Floats | float) -> Floats:
    """Returns half the length of t intervals over trainings, which miss the truth with probability `level`."""
    from scipy.stats import t

    trainings = by_training.shape[-1]
    error = by_training.std(-1, ddof=1) / np.sqrt(trainings)
    return np.asarray(t.isf(np.asarray(level) / 2, trainings - 1) * error)


# --- p-values ---------------------------------------------------------------------------------------------------


def flip_p_values(sums: Floats, *, seed: int, flips: int = FLIPS, max_exact_groups: int = MAX_EXACT_GROUPS) -> Floats:
    """Returns the p-values [trials] of group-level sign-flip permutation tests; `sums`: [trials, groups].

    The statistic is the sum of the groups' gains. All flips are enumerated for up to `max_exact_groups` groups;
    otherwise random flips give (b + 1) / (m + 1), which is never 0 (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).
    Five groups or fewer cannot give less than 0.0625. The test is exact if a group's gain is as likely as its opposite,
    that is, if the models' replies are exchangeable; for skewed gains it is approximate.
    """
    groups = sums.shape[1]
    exact = groups <= max_exact_groups
    reached = np.abs(sums.sum(-1)) - TOLERANCE * np.abs(sums).sum(-1)
    count = 2 ** max(groups - 1, 0) if exact else flips  # the first sign can stay: the statistic is two-sided
    rng, hits = np.random.default_rng([seed, 1]), np.zeros(len(sums))
    batch = max(1, min(BATCH_SIGNS // max(groups, 1), BATCH_SUMS // len(sums)))
    for start in range(0, count, batch):
        size = min(batch, count - start)
        if exact:
            flipped = (np.arange(start, start + size)[:, None] >> np.arange(groups)) & 1
        else:
            flipped = rng.integers(0, 2, (size, groups), dtype=np.int8)
        hits += (np.abs(sums @ (1.0 - 2.0 * flipped).T) >= reached[:, None]).sum(-1)
    p_values = hits / count if exact else (hits + 1) / (count + 1)
    return np.asarray(np.where(np.abs(sums).sum(-1) > 0, p_values, 1.0))


def permutation_p_value(gain: Floats, group_ids: Ints, *, seed: int, noise: float = 0.0) -> float:
    """Returns the p-value of `flip_p_values` for the gains of rows; `gain` and `group_ids`: [rows].

    Groups whose sum is not larger than `noise` times their rows change nothing and are left out.
    """
    sums, sizes = group_sums(group_ids, gain), group_sums(group_ids)
    sums = sums[np.abs(sums) > noise * sizes]
    return float(flip_p_values(sums[None], seed=seed)[0]) if len(sums) else 1.0


def holm_adjust(values: Sequence[float]) -> list[float]:
    """Returns p-values with Holm's correction for the family-wise error rate (Holm 1979), in the given order."""
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def index_groups(groups: Sequence[str]) -> NDArray[np.int64]:
    """Returns the number of each row's group [rows], from 0; a row without a group is its own group."""
    names = [name or f"row {index}" for index, name in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def group_sums(group_ids: Ints, values: Floats | None = None) -> Floats:
    """Returns the sum of `values` in each group [groups]; without `values`, the number of rows."""
    return np.asarray(np.bincount(group_ids, values), float)


@functools.cache
def tail_probability(groups: int) -> float:
    """Returns the share of resamples beyond each end of a 95 % interval: Φ(−√(n/(n−1)) t₀.₉₇₅,ₙ₋₁) for n groups.

    For a bootstrap by percentiles, as of a ratio. The standard deviation of a bootstrap mean of n groups is too small
    by √((n−1)/n), and its quantiles should be those of a t, not a normal, distribution (Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789).
    """
    from scipy.stats import norm

    if groups < 2:
        return 0.025
    return float(norm.cdf(-np.sqrt(groups / (groups - 1)) * t_quantile(0.975, groups - 1)))
