"""Decides whether tuning helped: the only place that turns scores of two models into a verdict."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluation.power import cohens_d, smallest_detectable
from tunesmith.evaluation.score import SHARE, Better, Fold, Limits
from tunesmith.evaluation.statistics import (
    TOLERANCE,
    degrees_of_freedom,
    exact_share_interval,
    group_sums,
    holm_adjust,
    index_groups,
    mean_interval,
    permutation_p_value,
    share_difference_interval,
    share_interval,
    trainings_p_values,
    widen_by_trainings,
)

ALPHA = 0.05
NARROW = 0.01  # a shown difference with a larger p is called narrow
MIN_GROUPS = math.ceil(math.log2(2 / ALPHA))  # 6: fewer groups have so few sign flips that p cannot be 0.05
SATURATED = 0.05  # share of a score's range: a base model this close to the best score leaves no room for a gain
MAX_MISSING, MAX_UNBOUNDED_MISSING = 0.2, 0.05  # share of rows that may be missing, with and without limits

Outcome = Literal["better", "worse", "higher", "lower", "no change shown", "too few to tell", "too many missing"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class WorstCase:
    """The difference if every missing reply counted against what the measured rows show, with its interval and p."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Verdict:
    """What the scores of two models on the same rows show: values, difference, certainty and outcome.

    `base`, `tuned`, `difference`, the ends of its 95 % interval `low` and `high`, and `detectable` (the smallest
    difference that is found 4 times in 5, None if none is or it was not computed) have the unit of the score,
    aggregated as `fold` says; `limits` is the range of a row's score. `wins`, `ties` and `losses` count rows by their
    gain in the good direction. `p` is the p-value of the permutation test, `adjusted` that after Holm's correction over
    the section (None for a score without a good direction); `primary` tells that `p` decides. `effect` is d_z, None if
    it is not defined. `asked` rows were asked, `rows` in `groups` were scored for both models, and `missing` for one
    model only; see `decide` for `worst`. Over several `trainings` (see `decide_over_trainings`), `tuned` is the mean of
    their values and gains are averaged over them; without them the verdict is about one adapter.
    """

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
    fold: Fold = "mean"
    limits: Limits | None = None
    p: float = 1.0
    adjusted: float | None = None
    primary: bool = False
    effect: float | None = None
    detectable: float | None = None
    asked: int = 0
    missing: int = 0
    worst: WorstCase | None = None
    trainings: tuple[float, ...] = ()

    @property
    def tested_p(self) -> float:
        """The p-value before correction: the larger of `p` and that of the worst case."""
        return max(self.p, self.worst.p) if self.worst else self.p

    @property
    def _deciding_p(self) -> float:
        """The p-value that decides: before correction for the primary score and for scores that are not corrected."""
        return self.tested_p if self.primary or self.adjusted is None else self.adjusted

    @property
    def outcome(self) -> Outcome:
        """The verdict in words, better or worse only if interval and p agree, also in the worst case."""
        most = MAX_MISSING if self.worst else MAX_UNBOUNDED_MISSING
        if self.missing > most * (self.rows + self.missing):
            return "too many missing"
        if self.groups < MIN_GROUPS:
            return "too few to tell"
        ends = [(self.low, self.high), *([(self.worst.low, self.worst.high)] if self.worst else [])]
        directions = {int(shown_direction(low, high, self._deciding_p)) for low, high in ends}
        direction = directions.pop() if len(directions) == 1 else 0
        if direction == 0:
            return "no change shown"
        if self.better == "neither":
            return "higher" if direction > 0 else "lower"
        return "better" if (direction > 0) == (self.better == "higher") else "worse"

    @property
    def narrow(self) -> bool:
        """Whether a difference was shown, but a few other rows could have hidden it: its p is above 0.01."""
        return self.outcome in ("better", "worse", "higher", "lower") and self._deciding_p > NARROW

    def describe(self) -> dict[str, Any]:
        """Returns the entry of scores.json as a dict; an infinite end is None. One training has no `trainings`."""
        worst = _finite(asdict(self.worst)) if self.worst else None
        derived = {"worst": worst, "verdict": self.outcome, "narrow": self.narrow, "min_groups": MIN_GROUPS}
        values = {**_finite(asdict(self)), "limits": list(self.limits) if self.limits else None, **derived}
        del values["trainings"]
        return {**values, "trainings": list(self.trainings)} if self.trainings else values


def shown_direction(low: Any, high: Any, p: Any) -> Any:
    """Returns 1 if a rise is shown, -1 if a fall is, else 0: the interval excludes zero and p is at most 0.05.

    Takes numbers, or arrays of the same shape. Rounding noise must have been set to zero, as `decide` does.
    """
    certain = np.asarray(p) <= ALPHA
    return (certain & (np.asarray(low) > 0)).astype(int) - (certain & (np.asarray(high) < 0)).astype(int)


def with_zero(low: Any, high: Any, p: Any) -> tuple[Any, Any]:
    """Returns the ends of an interval, moved to zero if they exclude it although p is above 0.05.

    A difference of zero that one of the two tests does not reject is still possible. Takes numbers, or arrays.
    """
    possible = np.asarray(p) > ALPHA
    return np.where(possible, np.minimum(low, 0.0), low), np.where(possible, np.maximum(high, 0.0), high)


def decide(
    base: Sequence[float | None],
    tuned: Sequence[float | None],
    groups: Sequence[str],
    *,
    better: Better,
    seed: int,
    fold: Fold = "mean",
    limits: Limits | None = None,
    rows_asked: int | None = None,
    power: bool = True,
) -> Verdict:
    """Decides whether the tuned model is better than the base, from two scores of the same rows.

    A score is None if a model has none for the row; a row without a group is its own group. `limits` is the range of
    the score, 0 to 1 if every score is 0 or 1; `rows_asked` counts the rows that were asked, by default those listed.
    `power` False leaves `detectable` out, which is most of the time.

    The interval is that of statistics.py: for shares score-based or exact, otherwise a t interval over groups with a
    correction for skewness. The p-value is that of a sign-flip test over groups, whose false alarms are at most 5 % in
    both directions together whatever the scores' distribution, as long as the models' replies are exchangeable. Both
    must agree: zero stays in the interval if p is above 0.05. Differences below a billionth of the largest score are
    rounding noise and count as zero. With fewer than six groups nothing can be shown, because their sign flips cannot
    give p <= 0.05.

    If rows are missing and the score has limits, the comparison is repeated with every missing score set to the limit
    that speaks against what the measured rows show, and both must agree. If more than 20 % of the rows are missing, or
    5 % of a score without limits, there is no verdict. Raises ValueError for lists of unequal length, or if
    no row has both scores.
    """
    return decide_over_trainings(
        base, [tuned], groups, better=better, seed=seed, fold=fold, limits=limits, rows_asked=rows_asked, power=power
    )


def decide_over_trainings(
    base: Sequence[float | None],
    tuned: Sequence[Sequence[float | None]],
    groups: Sequence[str],
    *,
    better: Better,
    seed: int,
    fold: Fold = "mean",
    limits: Limits | None = None,
    rows_asked: int | None = None,
    power: bool = True,
) -> Verdict:
    """Decides whether a recipe's tuned models are better than the base, from the scores of several trainings.

    `tuned` holds a list like that of `decide` for each training; one is decided as by `decide`. Rows' gains are
    averaged over trainings. The uncertainty is that over groups of rows and that over trainings
    (statistics.widen_by_trainings), so that the verdict holds for another training of the recipe on other rows of this
    kind. p is the larger of that of this interval and that of the permutation test over groups of the averaged gains.
    A row counts if it has a score for the base and in every training. `detectable` is computed for one training only.
    """
    if not tuned or any(len(scores) != len(base) for scores in tuned) or len(base) != len(groups) or not base:
        raise ValueError("a verdict needs equal, non-empty lists")
    names = [name or f"row {index}" for index, name in enumerate(groups)]
    rows = list(zip(zip(base, *tuned, strict=True), names, strict=True))  # a row: scores of the base and each training
    complete = [(scores, name) for scores, name in rows if None not in scores]
    partial = [(scores, name) for scores, name in rows if None in scores and set(scores) != {None}]
    if not complete:
        raise ValueError("a verdict needs a row that both models have a score for")
    before, after, ids = _arrays(complete)
    if limits is None and fold == "mean" and np.isin(before, SHARE).all() and np.isin(after, SHARE).all():
        limits = SHARE
    gain = _mean_gain(before, after)
    good = -gain if better == "lower" else gain
    values = [_aggregated(side, fold) for side in after]
    difference, low, high, p = _compare(before, after, ids, fold, limits, seed)
    worst = None
    if partial and limits and fold == "mean":
        worst_rows = [(_against(scores, limits, rises=difference > 0), name) for scores, name in partial]
        worst = WorstCase(*_compare(*_arrays([*complete, *worst_rows]), fold, limits, seed))
    detectable = None
    if power and len(tuned) == 1 and ids.max() + 1 >= MIN_GROUPS:
        influence = _influence(before, after[0], fold)
        detectable = _smallest_detectable(influence.tobytes(), ids.tobytes(), _is_share(gain, limits), seed)
    return Verdict(
        better,
        _aggregated(before, fold),
        sum(values) / len(values),
        difference,
        low,
        high,
        int((good > 0).sum()),
        int((good == 0).sum()),
        int((good < 0).sum()),
        len(complete),
        len(set(ids.tolist())),
        fold=fold,
        limits=limits,
        p=p,
        effect=cohens_d(gain),
        detectable=detectable,
        asked=len(base) if rows_asked is None else rows_asked,
        missing=len(partial),
        worst=worst,
        trainings=tuple(values) if len(tuned) > 1 else (),
    )


@functools.lru_cache(maxsize=64)
def _smallest_detectable(gain: bytes, group_ids: bytes, share: bool, seed: int) -> float | None:
    """Returns `smallest_detectable` of arrays as bytes: several scores of one section often change alike."""
    gains, ids = np.frombuffer(gain, np.float64), np.frombuffer(group_ids, np.int64)
    return smallest_detectable(gains, ids, share=share, rule=shown_direction, seed=seed)


def is_saturated(verdict: Mapping[str, Any]) -> bool:
    """Returns whether the base model is within 5 % of the best possible score, so that tuning cannot show a gain.

    `verdict` is what `Verdict.describe` returns. False for scores without limits or a good direction.
    """
    if not verdict["limits"] or verdict["better"] == "neither":
        return False
    low, high = verdict["limits"]
    room = high - verdict["base"] if verdict["better"] == "higher" else verdict["base"] - low
    return bool(room <= (SATURATED + TOLERANCE) * (high - low))


def correct(verdicts: Mapping[Key, Verdict], primary: Key | None = None) -> dict[Key, Verdict]:
    """Returns the verdicts of one section with `adjusted` filled in: Holm's correction for several scores (Holm 1979).

    It spans all scores that have a good direction. `primary` was chosen before the run and is decided by its own p, but
    still counts in the correction of the others. A score without a good direction, such as a length, is not corrected.
    """
    tested = [key for key, verdict in verdicts.items() if verdict.better != "neither"]
    adjusted = dict(zip(tested, holm_adjust([verdicts[key].tested_p for key in tested]), strict=True))
    return {
        key: replace(verdict, adjusted=adjusted.get(key), primary=key == primary) for key, verdict in verdicts.items()
    }


def level_interval(
    values: Sequence[float], groups: Sequence[str], *, fold: Fold = "mean", limits: Limits | None = None
) -> tuple[float, float] | None:
    """Returns the 95 % interval of one model's aggregated score over groups of rows; None for a single group.

    Shares have an exact interval; no end leaves `limits`. For the other parameters see `decide`.
    """
    scores = np.array(values, float)
    ids = index_groups(groups)
    sums, sizes = group_sums(ids, scores)[None], np.bincount(ids)
    if len(sizes) < 2:
        return None
    if fold == "mean" and np.isin(scores, SHARE).all():
        ends = share_interval(sums, sizes)
        return float(ends.low[0]), float(ends.high[0])
    ends = mean_interval(sums, sizes)
    low, high = float(ends.low[0]), float(ends.high[0])
    if fold == "exp":
        return math.exp(low), math.exp(high)
    return (max(low, limits[0]), min(high, limits[1])) if limits else (low, high)


def _arrays(rows: Sequence[tuple[Sequence[float | None], str]]) -> tuple[Floats, Floats, Ints]:
    """Returns the scores of the base [rows], those of the trainings [trainings, rows], and the groups' ids [rows]."""
    scores = np.array([scores for scores, _ in rows], float).T
    return scores[0], scores[1:], index_groups([name for _, name in rows])


def _aggregated(scores: Floats, fold: Fold) -> float:
    return float(np.exp(scores.mean()) if fold == "exp" else scores.mean())


def _mean_gain(before: Floats, after: Floats) -> Floats:
    """Returns the rows' gains [rows], averaged over trainings."""
    noise = _noise(before, after)
    return _without_noise(_without_noise(after - before, noise).mean(0), noise)


def _compare(
    before: Floats, after: Floats, ids: Ints, fold: Fold, limits: Limits | None, seed: int
) -> tuple[float, float, float, float]:
    """Returns the difference of the aggregated scores, the ends of its 95 % interval, and its p.

    `before`: [rows], `after`: [trainings, rows].
    """
    noise = _noise(before, after)
    gain = _mean_gain(before, after)
    influences = np.stack([_influence(before, one, fold) for one in after])
    differences = np.array([_aggregated(one, fold) - _aggregated(before, fold) for one in after])
    difference = float(differences.mean()) if fold == "exp" else float(gain.mean())
    p = permutation_p_value(gain, ids, seed=seed, noise=noise)
    low, high = _ends(influences.mean(0), ids, _without_noise(after - before, noise), limits)
    sizes = np.bincount(ids)
    if len(after) > 1 and len(sizes) > 1:
        by_training = influences.mean(1)[None]
        low, high = (float(end[0]) for end in widen_by_trainings(np.array([low]), np.array([high]), by_training))
        error = mean_interval(group_sums(ids, influences.mean(0))[None], sizes, skewed=False).error
        p = max(p, float(trainings_p_values(error, degrees_of_freedom(sizes), by_training)[0]))
        if limits and fold == "mean":
            low, high = max(low, limits[0] - limits[1]), min(high, limits[1] - limits[0])
    unit = noise * max(1.0, abs(difference)) if fold == "exp" else noise
    difference, low, high = (0.0 if abs(value) <= unit else value for value in (difference, low, high))
    if len(sizes) >= MIN_GROUPS:  # p is never small for fewer
        low, high = (float(end) for end in with_zero(low, high, p))
    return difference, low, high, p


def _ends(influence: Floats, ids: Ints, gains: Floats, limits: Limits | None) -> tuple[float, float]:
    """Returns the ends of the interval over groups of rows; infinite for a single group.

    `influence` [rows] is averaged over trainings, `gains` is [trainings, rows].
    """
    sizes, sums = np.bincount(ids), group_sums(ids, influence)[None]
    rows, mean = len(influence), float(influence.mean())
    if len(sizes) < 2:
        return -math.inf, math.inf
    if _is_share(gains, limits):  # the rows of several trainings count as those of one: replies to a row are alike
        ups, downs = (np.array([(gains * sign > 0).sum() / len(gains)]) for sign in (1, -1))
        ends = share_difference_interval(sums, sizes, ups, downs)
        return float(ends.low[0]), float(ends.high[0])
    ends = mean_interval(sums, sizes)
    low, high = float(ends.low[0]), float(ends.high[0])
    width = limits[1] - limits[0] if limits else None
    if np.ptp(influence) <= TOLERANCE * np.abs(influence).max():  # all rows changed alike: how many others may not?
        others = float(exact_share_interval(np.zeros(1), np.full(1, float(rows)))[1][0])
        reach = others * (abs(mean) if width is None else width)
        low, high = mean - reach, mean + reach
    return (max(low, -width), min(high, width)) if width is not None else (low, high)


def _influence(before: Floats, after: Floats, fold: Fold) -> Floats:
    """Returns values [rows] whose mean is the difference, linearized through the fold (Cochran 1977, chapter 9A)."""
    if fold == "mean":
        return _without_noise(after - before, _noise(before, after))
    b, t = math.exp(float(before.mean())), math.exp(float(after.mean()))  # exp is its own derivative
    return np.asarray(t * (after - after.mean()) - b * (before - before.mean()) + (t - b))


def _is_share(gain: Floats, limits: Limits | None) -> bool:
    """Returns whether every row's score went by a whole 0 or 1, so that the counts of rows tell everything."""
    return limits == SHARE and bool(np.isin(gain, (-1.0, 0.0, 1.0)).all())


def _against(scores: Sequence[float | None], limits: Limits, *, rises: bool) -> list[float]:
    """Returns a row's scores, those of the base first, with the missing ones set to the limits that speak against.

    They make a rise, or else a fall, smallest.
    """
    bottom, top = limits
    base, *tuned = scores
    against, for_base = (bottom, top) if rises else (top, bottom)
    return [for_base if base is None else base, *(against if score is None else score for score in tuned)]


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in values.items()}


def _noise(before: Floats, after: Floats) -> float:
    """Returns the size of rounding noise in these scores."""
    return TOLERANCE * float(max(np.abs(before).max(), np.abs(after).max()))


def _without_noise(values: Floats, noise: float) -> Floats:
    return np.asarray(np.where(np.abs(values) <= noise, 0.0, values))
