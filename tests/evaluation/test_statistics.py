"""Paired differences, against a slow bootstrap in plain Python, scipy's, and the truth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tunesmith.evaluation.score import Better, Fold
from tunesmith.evaluation.statistics import (
    RESAMPLES,
    Difference,
    bootstrap_interval,
    paired_difference,
    tail_probability,
)

UNEVEN = [f"t{topic}" for topic, rows in enumerate([5, 2, 9, 1, 4, 1, 3, 12, 1]) for _ in range(rows)]  # 38 rows


def draw(rows: int, gain: float = 0.0, *, seed: int = 5) -> tuple[list[float], list[float]]:
    """Scores of a base and of a tuned model that is better by `gain`."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=rows).tolist(), rng.normal(gain, 1, rows).tolist()


def slow(
    base: Sequence[float], tuned: Sequence[float], groups: Sequence[str], seed: int, fold: Fold
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends by both methods of the cluster bootstrap, a resample at a time, on the same draws."""
    members: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for before, after, group in zip(base, tuned, groups, strict=True):
        members[group].append((before, after))
    names = sorted(members)
    value, error = judged([members[name] for name in names], fold)
    difference, t_values = [], []
    for draw in np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names))).tolist():
        again, its_error = judged([members[names[index]] for index in draw], fold)
        difference.append(again)
        t_values.append((again - value) / its_error if its_error > 1e-9 else math.copysign(math.inf, again - value))
    n = len(names)
    share = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    difference.sort()
    t_values.sort()
    ends = value - error * t_values[math.ceil(0.975 * RESAMPLES) - 1], value - error * t_values[RESAMPLES // 40 - 1]
    return (percentile(difference, share), percentile(difference, 1 - share)), ends


def judged(groups: Sequence[Sequence[tuple[float, float]]], fold: Fold) -> tuple[float, float]:
    """The difference of the folded figures and its clustered standard error."""
    rows = [row for group in groups for row in group]
    before, after = (sum(row[side] for row in rows) / len(rows) for side in (0, 1))
    b, t = (math.exp(before), math.exp(after)) if fold == "exp" else (1.0, 1.0)
    shares = [sum(t * (row[1] - after) - b * (row[0] - before) for row in group) for group in groups]
    error = math.sqrt(len(groups) / (len(groups) - 1) * sum(share**2 for share in shares)) / len(rows)
    return (t - b if fold == "exp" else after - before), error


def percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


@pytest.mark.parametrize(("better", "fold"), [("higher", "mean"), ("neither", "mean"), ("lower", "exp")])
def test_the_interval_is_the_wider_of_two_slow_cluster_bootstraps(better: Better, fold: Fold) -> None:
    base, tuned = draw(38, 0.4)
    result = paired_difference(base, tuned, UNEVEN, better=better, seed=11, fold=fold)
    percentiles, ends = slow(base, tuned, UNEVEN, 11, fold)
    ci = bootstrap_interval(
        np.array(base), np.array(tuned), np.unique(UNEVEN, return_inverse=True)[1], seed=11, fold=fold
    )
    assert ci.percentiles == pytest.approx(percentiles, abs=1e-12)
    assert ci.studentized == pytest.approx(ends, abs=1e-9)
    assert (result.low, result.high) == (min(ci.low, ci.studentized[0]), max(ci.high, ci.studentized[1]))
    figures = [sum(base) / 38, sum(tuned) / 38]
    figures = [math.exp(value) for value in figures] if fold == "exp" else figures
    assert result.difference == pytest.approx(figures[1] - figures[0])
    assert [result.base, result.tuned] == pytest.approx(figures)
    assert (result.rows, result.groups, result.better, result.fold) == (38, 9, better, fold)


def test_a_0_or_1_score_has_the_percentiles_alone() -> None:
    rng = np.random.default_rng(4)
    base, tuned = (rng.random(60) < 0.9).astype(np.float64), (rng.random(60) < 0.97).astype(np.float64)
    ci = bootstrap_interval(base, tuned, np.arange(60), seed=1)
    assert (ci.low, ci.high) == ci.percentiles
    assert ci.studentized != pytest.approx(ci.percentiles)
    assert bootstrap_interval(base, tuned * 0.98 + 0.01, np.arange(60), seed=1).percentiles[0] > ci.low - 0.02


def test_the_percentiles_are_scipys_when_each_row_is_a_group() -> None:
    base, tuned = draw(40, 0.3)
    difference = bootstrap_interval(np.array(base), np.array(tuned), np.arange(40), seed=1).percentiles
    level = 1 - 2 * tail_probability(40)
    options = {
        "n_resamples": 50_000,
        "method": "percentile",
        "confidence_level": level,
        "rng": np.random.default_rng(2),
    }
    expected = stats.bootstrap((np.subtract(tuned, base),), np.mean, **options).confidence_interval
    assert difference == pytest.approx((expected.low, expected.high), abs=0.02 * (expected.high - expected.low))
    assert paired_difference(base, tuned, [""] * 40, better="higher", seed=1).groups == 40


def test_many_groups_are_drawn_in_portions() -> None:
    base, tuned = draw(3000)
    result = paired_difference(base, tuned, [""] * 3000, better="higher", seed=1)
    error = np.subtract(tuned, base).std(ddof=1) / 3000**0.5
    assert (result.low, result.high) == pytest.approx(
        (result.difference - 1.96 * error, result.difference + 1.96 * error), abs=0.1 * error
    )


def test_the_seed_decides_the_draw_and_the_rows_order_does_not() -> None:
    (base, tuned), names = draw(24), [f"t{n // 2}" for n in range(24)]
    first = paired_difference(base, tuned, names, better="higher", seed=3)
    assert first == paired_difference(base, tuned, names, better="higher", seed=3)
    assert first != paired_difference(base, tuned, names, better="higher", seed=4)
    turned = paired_difference(base[::-1], tuned[::-1], names[::-1], better="higher", seed=3)
    assert (turned.low, turned.high) == pytest.approx((first.low, first.high), abs=1e-12)


@pytest.mark.parametrize(
    ("better", "step", "verdict", "wins", "losses"),
    [
        ("higher", 1.0, "better", 6, 0),
        ("higher", -1.0, "worse", 0, 6),
        ("lower", 1.0, "worse", 0, 6),
        ("lower", -1.0, "better", 6, 0),
        ("neither", 1.0, "higher", 6, 0),
        ("neither", -1.0, "lower", 0, 6),
        ("higher", 0.0, "no detectable change", 0, 0),
        ("lower", 0.0, "no detectable change", 0, 0),
        ("neither", 0.0, "no detectable change", 0, 0),
    ],
)
def test_the_sign_is_tuned_minus_base_and_the_verdict_knows_what_is_good(
    better: Better, step: float, verdict: str, wins: int, losses: int
) -> None:
    base = [2.0, 2.5, 1.0, 3.0, 2.0, 0.0]
    result = paired_difference(base, [value + step for value in base], list("aabbcc"), better=better, seed=1)
    assert (result.difference, result.low, result.high) == pytest.approx((step, step, step))
    assert result.verdict == verdict
    assert (result.wins, result.ties, result.losses) == (wins, 6 - wins - losses, losses)


@pytest.mark.parametrize(("better", "counts"), [("higher", (2, 3, 1)), ("lower", (1, 3, 2)), ("neither", (2, 3, 1))])
def test_wins_ties_and_losses(better: Better, counts: tuple[int, int, int]) -> None:
    base, tuned = [0, 0, 1, 1, 0.5, 0.3], [1, 0, 1, 0, 0.6, 0.1 + 0.2]
    difference = paired_difference(base, tuned, [""] * 6, better=better, seed=1)
    assert (difference.wins, difference.ties, difference.losses) == counts


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.1, 0.3, "no detectable change"),
        (0.0, 0.3, "no detectable change"),
        (-0.2, 0.0, "no detectable change"),
        (0.01, 0.3, "better"),
        (-0.3, -0.01, "worse"),
    ],
)
def test_an_interval_that_touches_zero_shows_nothing(low: float, high: float, verdict: str) -> None:
    difference = Difference("higher", 0, 0, (low + high) / 2, low, high, 1, 1, 1, 9, 9)
    assert difference.verdict == verdict
    assert difference.describe()["verdict"] == verdict


@pytest.mark.parametrize(("groups", "few"), [(1, True), (14, True), (15, False), (30, False)])
def test_few_groups_are_marked(groups: int, few: bool) -> None:
    difference = paired_difference([0.0, 1.0], [1.0, 1.0], ["a", "b"], better="higher", seed=1)
    assert replace(difference, groups=groups).describe()["few_groups"] is few


def test_rows_that_go_together_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    topic = np.repeat(rng.normal(0.3, 1, 20), 8)  # a topic's rows gain alike
    tuned = (topic + rng.normal(0, 0.2, 160)).tolist()
    names = [f"t{index // 8}" for index in range(160)]
    grouped = paired_difference([0.0] * 160, tuned, names, better="higher", seed=1)
    single = paired_difference([0.0] * 160, tuned, [""] * 160, better="higher", seed=1)
    assert grouped.difference == single.difference
    # the spread of a mean grows by sqrt(1 + (8 - 1) ICC) = sqrt(1 + 7 x 1 / 1.04), about 2.8
    assert (grouped.high - grouped.low) / (single.high - single.low) == pytest.approx(2.8, rel=0.2)
    assert (grouped.groups, single.groups) == (20, 160)


def test_the_same_replies_in_another_order_show_no_change() -> None:
    base, _ = draw(120)
    verdicts = [
        paired_difference(
            base,
            np.random.default_rng(seed).permutation(base).tolist(),
            [f"t{n % 30}" for n in range(120)],
            better="higher",
            seed=seed,
        ).verdict
        for seed in range(20)
    ]
    assert verdicts == ["no detectable change"] * 20  # the mean is the same to the last row


def test_two_equal_models_seldom_look_different() -> None:
    names, alarms = [f"t{n % 30}" for n in range(120)], 0
    for seed in range(100):
        base, tuned = draw(120, seed=seed)
        alarms += paired_difference(base, tuned, names, better="higher", seed=seed).verdict != "no detectable change"
    assert 1 <= alarms <= 12  # 6 or 7 of 100 are expected of 30 groups


@pytest.mark.parametrize(
    ("base", "tuned", "groups"),
    [([], [], []), ([1.0], [1.0, 2.0], ["a"]), ([1.0], [1.0], ["a", "b"]), ([1.0, 2.0], [1.0], ["a"])],
)
def test_lists_that_do_not_pair_are_refused(base: list[float], tuned: list[float], groups: list[str]) -> None:
    with pytest.raises(ValueError, match="equal, non-empty"):
        paired_difference(base, tuned, groups, better="higher", seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9], ids=lambda share: f"ICC {share}")
def test_95_percent_intervals_hold_the_truth_93_to_97_times_in_100(share: float) -> None:
    rng, truth, rows, trials = np.random.default_rng(20), 0.3, 4, 3000
    names = [f"t{index // rows}" for index in range(30 * rows)]
    covered = 0
    for seed in range(trials):
        topic = np.repeat(rng.normal(0, share**0.5, 30), rows)
        gain = truth + topic + rng.normal(0, (1 - share) ** 0.5, len(names))
        difference = paired_difference([0.0] * len(names), gain.tolist(), names, better="higher", seed=seed)
        covered += difference.low <= truth <= difference.high
    assert 0.93 <= covered / trials <= 0.97, f"{covered / trials:.3f}"


@pytest.mark.parametrize(("groups", "share"), [(2, 0.0), (5, 0.00097), (20, 0.01588), (10_000, 0.025)])
def test_few_groups_widen_the_interval(groups: int, share: float) -> None:
    assert tail_probability(groups) == pytest.approx(share, abs=2e-5)


def test_a_single_group_shows_nothing() -> None:
    difference = paired_difference([0.0, 0.0], [1.0, 1.0], ["a", "a"], better="higher", seed=1)
    assert difference.verdict == "no detectable change"
    description = difference.describe()
    assert (description["difference"], description["low"], description["high"]) == (1.0, None, None)
