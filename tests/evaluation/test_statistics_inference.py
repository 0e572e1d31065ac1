"""p, Holm's correction, the effect and what a test set would have shown: by hand, by scipy, in plain Python."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tunesmith.evaluation.power import cohens_d, minimum_detectable
from tunesmith.evaluation.statistics import (
    Difference,
    apply_holm,
    bootstrap_interval,
    holm_adjust,
    paired_difference,
    permutation_p_value,
)

RNG = np.random.default_rng(8)


def difference(p: float, low: float, high: float, better: Any = "higher") -> Difference:
    return Difference(better, 0, 0, (low + high) / 2, low, high, 1, 1, 1, 30, 30, p=p)


# --- p ------------------------------------------------------------------------------------------------------


def test_few_groups_have_every_flip_made() -> None:
    place = np.repeat(np.arange(7), [3, 1, 4, 1, 2, 2, 5])
    gain = RNG.normal(0.5, 1, 18)
    sums = [gain[place == group].sum() for group in range(7)]
    reached = [
        abs(sum(sign * group_sum for sign, group_sum in zip(signs, sums, strict=True))) >= abs(sum(sums)) - 1e-12
        for signs in itertools.product((1, -1), repeat=7)
    ]
    assert permutation_p_value(gain, place, seed=1) == sum(reached) / 2**7


@pytest.mark.parametrize("rows", [10, 14])
def test_p_is_scipys_when_each_row_is_a_group(rows: int) -> None:
    gain = np.random.default_rng(rows).normal(0.5, 1, rows)
    expected = stats.permutation_test(
        (gain, np.zeros(rows)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert permutation_p_value(gain, np.arange(rows), seed=1) == pytest.approx(expected.pvalue, abs=1e-12)


def test_random_flips_come_near_the_exact_share_and_are_counted_with_the_data_itself() -> None:
    gain = np.repeat(1.0, 20)  # 15 signs and more alike of 20, either way
    gain[:5] = -1.0
    exact = 2 * stats.binom.cdf(5, 20, 0.5)
    assert permutation_p_value(gain, np.arange(20), seed=1) == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))
    assert permutation_p_value(np.ones(40), np.arange(40), seed=1) == 1 / 10_001  # never 0
    assert permutation_p_value(gain, np.arange(20), seed=1) == permutation_p_value(gain, np.arange(20), seed=1)
    assert permutation_p_value(gain, np.arange(20), seed=1) != permutation_p_value(gain, np.arange(20), seed=2)


def test_groups_that_do_not_change_change_nothing() -> None:
    gain = np.array([1.0, 0.5, 0.3, 0.2, 0.7, 0.1])
    more = np.concatenate([gain, np.zeros(500), [0.3, -0.3]])  # the last two cancel in one group
    place = np.concatenate([np.arange(506), [506, 506]])
    assert permutation_p_value(more, place, seed=1) == permutation_p_value(gain, np.arange(6), seed=1) == 2 / 2**6
    assert permutation_p_value(np.zeros(9), np.arange(9), seed=1) == 1.0
    assert permutation_p_value(np.array([0.5, 0.7]), np.zeros(2, int), seed=1) == 1.0  # a single group


def test_rows_that_go_together_are_flipped_together() -> None:
    gain = np.repeat([1.0, 1.0, 1.0, 1.0, -0.5], 8)
    result = paired_difference([0.0] * 40, gain.tolist(), [f"t{n // 8}" for n in range(40)], better="higher", seed=1)
    assert result.p == 4 / 2**5  # flipping all, none, or the small one
    assert paired_difference([0.0] * 40, gain.tolist(), [""] * 40, better="higher", seed=1).p < 0.001


# --- Holm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x .005, 3 x .01, 2 x .03, then .04 is lifted to .06
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holm_by_hand(values: list[float], adjusted: list[float]) -> None:
    assert holm_adjust(values) == pytest.approx(adjusted)


def test_what_holds_beside_the_others() -> None:
    differences = {
        "sure": difference(0.001, 0.1, 0.3),
        "lower": difference(0.002, -0.3, -0.1, "lower"),
        "lost in the number": difference(0.03, 0.1, 0.3),
        "over zero": difference(0.004, -0.1, 0.3),
        "length": difference(0.0001, 3, 9, "neither"),
    }
    settled = apply_holm(differences)
    assert {name: result.holds for name, result in settled.items()} == {
        "sure": True,
        "lower": True,
        "lost in the number": True,
        "over zero": False,
        "length": False,
    }
    assert [result.adjusted for result in settled.values()] == [0.004, 0.006, 0.03, 0.008, None]
    more = apply_holm({**differences, "another": difference(0.2, -1, 1), "third": difference(0.04, 0.1, 0.2)})
    assert (more["lost in the number"].adjusted, more["lost in the number"].holds) == (0.09, False)
    assert [result.verdict for result in settled.values()] == [result.verdict for result in differences.values()]


def test_the_score_named_before_the_run_is_decided_alone() -> None:
    differences = {
        "main": difference(0.04, 0.1, 0.3),
        "other": difference(0.04, 0.1, 0.3),
        "third": difference(0.9, -1, 1),
    }
    settled = apply_holm(differences, alone="main")
    assert [result.adjusted for result in settled.values()] == pytest.approx([0.12, 0.12, 0.9])
    assert [result.holds for result in settled.values()] == [True, False, False]
    assert not apply_holm({"main": difference(0.06, 0.1, 0.3)}, alone="main")["main"].holds
    assert not apply_holm({"main": difference(0.01, -0.1, 0.3)}, alone="main")["main"].holds
    assert not apply_holm({"main": difference(0.01, 0.1, 0.3, "neither")}, alone="main")["main"].holds


# --- the effect ---------------------------------------------------------------------------------------------


def test_the_effect_by_hand() -> None:
    # mean 2.5, standard deviation sqrt(5/3), J = 1 - 3 / 11
    assert cohens_d(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(2.5 / math.sqrt(5 / 3) * 8 / 11)
    assert cohens_d(-np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(-1.408358, abs=1e-6)


@pytest.mark.parametrize("gain", [[0.3] * 5, [0.1 + 0.2, 0.3, 0.3], [2.0], [0.0, 0.0]])
def test_no_variance_no_effect(gain: list[float]) -> None:
    assert cohens_d(np.array(gain)) == 0.0
    assert paired_difference([0.0] * len(gain), gain, [""] * len(gain), better="higher", seed=1).effect == 0.0


def test_the_effect_of_few_rows_is_not_biased() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(0.5, 1, (20_000, 8))
    effects = [cohens_d(gain) for gain in samples]
    assert np.mean(effects) == pytest.approx(0.5, abs=0.012)  # without J: 0.56
    assert np.mean(samples.mean(1) / samples.std(1, ddof=1)) > 0.55


# --- what would have been noticed ---------------------------------------------------------------------------


def test_the_detectable_difference_by_hand() -> None:
    single = paired_difference([0.0] * 4, [1.0, 2.0, 3.0, 4.0], [""] * 4, better="higher", seed=1)
    # standard error sqrt(5/3) / 2, of 3 degrees of freedom: t 3.182446 and 0.978472
    assert single.detectable == pytest.approx(4.160918 * math.sqrt(5 / 3) / 2, rel=1e-6)
    grouped = paired_difference([0.0] * 3, [1.0, 1.0, 3.0], ["a", "a", "b"], better="higher", seed=1)
    # mean 5/3; groups' residuals -4/3 and 4/3; standard error sqrt(2 x 32 / 9) / 3; t 12.706205 and 1.376382
    assert grouped.detectable == pytest.approx(14.082587 * 8 / 9, rel=1e-6)


@pytest.mark.parametrize(("gain", "groups"), [([1.0, 2.0], ["a", "a"]), ([0.5, 0.5, 0.5], ["", "", ""])])
def test_nothing_is_known_of_a_single_group_or_without_variance(gain: list[float], groups: list[str]) -> None:
    result = paired_difference([0.0] * len(gain), gain, groups, better="higher", seed=1)
    assert result.detectable is None
    assert result.describe()["detectable"] is None
    assert minimum_detectable(0.5, 1) is None


def test_the_standard_error_of_even_groups_is_that_of_their_means() -> None:
    gain, place = RNG.normal(size=60), np.repeat(np.arange(12), 5)
    means = gain.reshape(12, 5).mean(1)
    ci = bootstrap_interval(np.zeros(60), gain, place, seed=1)
    assert ci.error == pytest.approx(means.std(ddof=1) / math.sqrt(12), rel=1e-12)


# --- the fold -----------------------------------------------------------------------------------------------


def test_a_folded_score_is_compared_by_its_folded_figures() -> None:
    base = RNG.normal(2, 0.5, 60)
    tuned = base - 0.3 + RNG.normal(0, 0.2, 60)
    names = [f"t{n // 3}" for n in range(60)]
    raw = paired_difference(base.tolist(), tuned.tolist(), names, better="lower", seed=1)
    result = paired_difference(base.tolist(), tuned.tolist(), names, better="lower", seed=1, fold="exp")
    assert (result.base, result.tuned) == pytest.approx((math.exp(base.mean()), math.exp(tuned.mean())))
    assert result.difference == result.tuned - result.base
    assert result.low < result.difference < result.high < 0
    assert (result.p, result.effect) == (raw.p, raw.effect)
    assert (result.wins, result.ties, result.losses) == (raw.wins, raw.ties, raw.losses)
    # by the delta method the figure's standard error is that of exp(mean) d(mean)
    leaning = (math.exp(tuned.mean()) * tuned - math.exp(base.mean()) * base).reshape(20, 3).mean(1)
    error = leaning.std(ddof=1) / math.sqrt(20)
    t = stats.t(19)
    assert result.detectable == pytest.approx((t.ppf(0.975) + t.ppf(0.8)) * error, rel=1e-9)


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.3])
def test_a_fold_leaves_the_percentiles_on_their_side_of_zero(shift: float) -> None:
    base, place = RNG.normal(2, 0.5, 60), np.arange(60)
    tuned = base + shift + RNG.normal(0, 0.2, 60)
    raw, folded = (bootstrap_interval(base, tuned, place, seed=1, fold=fold) for fold in ("mean", "exp"))
    assert np.sign(raw.percentiles).tolist() == np.sign(folded.percentiles).tolist()
