"""What the intervals and tests promise, kept in simulation. The full table: benchmarks/interval_coverage.py."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.interval_coverage import SHAPES, alarms, covered
from scipy import stats

from tunesmith.evaluation.power import minimum_detectable
from tunesmith.evaluation.statistics import bootstrap_interval, paired_difference, permutation_p_value

QUICK = ("normal", "0/1", "20 groups", "20 groups, skewed", "skewed (exponential)", "20 groups, exp of the mean")


@pytest.mark.parametrize("shape", QUICK)
def test_95_percent_intervals_hold_the_truth(shape: str) -> None:
    coverage = covered(SHAPES[shape], trials=1000, seed=7, resamples=1000)
    assert 0.93 <= coverage.both <= 0.97, coverage
    assert coverage.width < 1.2 * coverage.width_percentiles


def test_ignoring_the_groups_would_not_do() -> None:
    rng, shape = np.random.default_rng(7), SHAPES["20 groups"]
    covered_count = 0
    for trial in range(200):
        ci = bootstrap_interval(*shape.draw(rng), np.arange(100), seed=trial, resamples=500)
        covered_count += ci.low <= shape.truth <= ci.high
    assert covered_count / 200 < 0.85


def test_exchanged_replies_show_no_change() -> None:
    rng, names = np.random.default_rng(5), [f"t{n // 3}" for n in range(60)]
    wrong = 0
    for seed in range(200):
        base, tuned = rng.normal(0, 1, 60), rng.normal(1, 0.5, 60)  # truly apart
        swap = rng.random(60) < 0.5
        mixed = np.where(swap, tuned, base), np.where(swap, base, tuned)
        difference = paired_difference(mixed[0].tolist(), mixed[1].tolist(), names, better="higher", seed=seed)
        wrong += difference.verdict != "no detectable change"
    assert 2 <= wrong <= 20  # 10 of 200 are expected; more than 20 come once in 1,000


@pytest.mark.parametrize("groups", [12, 30], ids=["exact", "random"])
def test_p_is_uniform_when_nothing_changed(groups: int) -> None:
    rng, place = np.random.default_rng(6), np.repeat(np.arange(groups), 3)
    gains = [np.repeat(rng.normal(0, 1, groups), 3) + rng.normal(0, 1, 3 * groups) for _ in range(400)]
    p_values = [permutation_p_value(gain, place, seed=seed) for seed, gain in enumerate(gains)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    apart = [permutation_p_value(gain, np.arange(len(place)), seed=seed) for seed, gain in enumerate(gains[:200])]
    assert stats.kstest(apart, "uniform").pvalue < 1e-3  # were the rows' groups ignored


def test_the_permutation_test_has_its_level_for_0_or_1_scores() -> None:
    assert alarms(SHAPES["0/1, both near 1"], trials=300, seed=3) <= 0.08


@pytest.mark.parametrize("rows", [1, 5], ids=["rows", "groups"])
def test_the_detectable_difference_is_detected_8_times_in_10(rows: int) -> None:
    groups, trials, rng = 30, 600, np.random.default_rng(9)
    error = ((0.7**2 + 0.7**2 / rows) / groups) ** 0.5
    change = minimum_detectable(error, groups)
    assert change is not None
    place, detected = np.repeat(np.arange(groups), rows), 0
    for seed in range(trials):
        topic = np.repeat(rng.normal(change, 0.7, groups), rows)
        gain = topic + rng.normal(0, 0.7, groups * rows)
        detected += bootstrap_interval(np.zeros_like(gain), gain, place, seed=seed, resamples=1000).low > 0
    assert detected / trials == pytest.approx(0.8, abs=0.05)
