"""Intervals, p-values and Holm's correction against scipy, slow computations in plain Python, and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from tunesmith.evaluation import statistics
from tunesmith.evaluation.statistics import (
    degrees_of_freedom,
    exact_share_interval,
    flip_p_values,
    group_sums,
    holm_adjust,
    mean_interval,
    permutation_p_value,
    share_difference_interval,
    share_interval,
    tail_probability,
)

UNEVEN = np.array([5, 2, 9, 1, 4, 1, 3, 12, 1])
RNG = np.random.default_rng(8)


def one(values: float) -> np.ndarray:
    return np.array([float(values)])


# --- the mean ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, 3, 4, 5, 12, 60])
def test_equal_groups_have_the_t_interval_of_their_means(groups: int) -> None:
    values = RNG.normal(0.3, 1, (groups, 5))
    ends = mean_interval(values.sum(1)[None], np.full(groups, 5), skewed=False)
    expected = stats.ttest_1samp(values.mean(1), 0).confidence_interval(0.95)
    assert (ends.low[0], ends.high[0]) == pytest.approx((expected.low, expected.high))
    assert ends.error[0] == pytest.approx(values.mean(1).std(ddof=1) / math.sqrt(groups))


@pytest.mark.parametrize("sizes", [UNEVEN, np.full(7, 3), np.array([40, 3, 3, 3, 3, 3])])
def test_degrees_of_freedom_by_matrices(sizes: np.ndarray) -> None:
    place = np.repeat(np.arange(len(sizes)), sizes)
    rows = len(place)
    maker = np.eye(rows) - 1 / rows
    quadratic = np.zeros((rows, rows))
    for group in range(len(sizes)):
        member = (place == group).astype(float)
        adjusted = maker @ member / math.sqrt(1 - member.sum() / rows)
        quadratic += np.outer(adjusted, adjusted) / rows**2
    assert np.trace(quadratic) == pytest.approx(1 / rows)  # CR2 is not biased for independent rows of variance 1
    assert degrees_of_freedom(sizes) == pytest.approx(np.trace(quadratic) ** 2 / np.trace(quadratic @ quadratic))


def test_degrees_of_freedom_of_equal_groups_and_of_a_dominant_one() -> None:
    assert degrees_of_freedom(np.full(8, 5)) == pytest.approx(7)
    assert degrees_of_freedom(np.full(3000, 1)) == pytest.approx(2999)
    assert degrees_of_freedom(np.array([1000, *[1] * 9])) < 1.3


def test_the_standard_error_of_uneven_groups_by_hand() -> None:
    # sums 2 of 2 rows and 3 of 1 row: mean 5/3, residuals -4/3 and 4/3, shares 2/3 and 1/3
    ends = mean_interval(np.array([[2.0, 3.0]]), np.array([2, 1]))
    assert ends.error[0] == pytest.approx(math.sqrt(16 / 9 * (3 + 1.5)) / 3)


@pytest.mark.parametrize("skewness", [2.0, -1.1, 0.3])
@pytest.mark.parametrize("quantile", [2.26, -2.26])
def test_halls_transformation_is_inverted(skewness: float, quantile: float) -> None:
    n = 10

    # Hall 1992, with his a = 1/3 and b = 1/6 in units of t / sqrt(n)
    def halls(t: float) -> float:
        u = t / math.sqrt(n)
        cubic = u + skewness / 3 * u**2 + skewness**2 / 27 * u**3 + skewness / (6 * n)
        return math.sqrt(n) * cubic - quantile

    root = optimize.brentq(halls, -200, 200)
    assert statistics._hall_inverse(quantile, one(skewness), n)[0] == pytest.approx(root)


def test_skewness_is_scipys_and_only_moves_ends_outwards() -> None:
    values = RNG.exponential(size=(200, 12))
    sizes = np.ones(12, int)
    residuals = values - values.mean(1, keepdims=True)
    assert statistics._skewness(residuals) == pytest.approx(stats.skew(values, axis=1, bias=False))
    plain, skewed = mean_interval(values, sizes, skewed=False), mean_interval(values, sizes)
    assert (skewed.low <= plain.low).all() and (skewed.high >= plain.high).all()
    assert ((skewed.high - plain.high) / plain.error).mean() > 0.2  # a long tail upwards: the mean may be higher


def test_one_group_has_no_interval_and_no_spread_no_width() -> None:
    single = mean_interval(np.array([[3.0]]), np.array([4]))
    assert (single.low[0], single.high[0], single.error[0]) == (-math.inf, math.inf, math.inf)
    flat = mean_interval(np.array([[2.0, 2.0, 2.0]]), np.array([2, 2, 2]))
    assert (flat.low[0], flat.high[0], flat.error[0]) == (1, 1, 0)


def test_rows_that_go_together_widen_the_interval() -> None:
    topic = np.repeat(RNG.normal(0.3, 1, 20), 8) + RNG.normal(0, 0.2, 160)  # a topic's rows gain alike
    grouped = mean_interval(topic.reshape(20, 8).sum(1)[None], np.full(20, 8))
    single = mean_interval(topic[None], np.ones(160, int))
    # the spread of a mean grows by sqrt(1 + (8 - 1) ICC) = sqrt(1 + 7 x 1 / 1.04), about 2.8
    assert (grouped.error / single.error)[0] == pytest.approx(2.8, rel=0.2)


@pytest.mark.parametrize(("groups", "share"), [(2, 0.0), (5, 0.00097), (20, 0.01588), (10_000, 0.025)])
def test_percentiles_of_few_groups_are_widened(groups: int, share: float) -> None:
    assert tail_probability(groups) == pytest.approx(share, abs=2e-5)


# --- shares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "total"), [(80, 80), (0, 80), (79, 80), (3, 10), (1, 1)])
def test_exact_intervals_are_scipys(count: int, total: int) -> None:
    expected = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    low, high = exact_share_interval(one(count), one(total))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_eighty_of_eighty() -> None:
    ones, sizes = np.ones((1, 80)), np.ones(80, int)
    for ends in (share_interval(ones, sizes), share_difference_interval(ones, sizes, one(80), one(0))):
        assert (ends.low[0], ends.high[0]) == (pytest.approx(0.025 ** (1 / 80), abs=1e-9), 1.0)
        assert ends.low[0] == pytest.approx(0.955, abs=5e-4)
    none = share_difference_interval(-ones, sizes, one(0), one(80))
    assert (none.low[0], none.high[0]) == (-1.0, pytest.approx(-0.955, abs=5e-4))
    unchanged = share_difference_interval(0 * ones, sizes, one(0), one(0))
    assert (unchanged.low[0], unchanged.high[0]) == pytest.approx((-0.045, 0.045), abs=5e-4)


@pytest.mark.parametrize(("ups", "downs", "rows"), [(7, 3, 40), (1, 0, 40), (30, 5, 60), (0, 4, 20), (19, 18, 60)])
def test_tangos_interval_by_a_slow_search(ups: int, downs: int, rows: int) -> None:
    def z(difference: float) -> float:
        # the probability of a loss that is likeliest if wins are likelier by `difference`
        def likelihood(loss: float) -> float:
            chances = np.array([loss + difference, loss, 1 - 2 * loss - difference])
            counts = np.array([ups, downs, rows - ups - downs])
            return -float(sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, chances, strict=True) if n))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        loss = optimize.minimize_scalar(likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = rows * (2 * loss + difference - difference**2)
        return (ups - downs - rows * difference) / math.sqrt(max(variance, 1e-12))

    middle = (ups - downs) / rows
    low = optimize.brentq(lambda d: z(d) - 1.959964, -0.999, middle - 1e-6)
    high = optimize.brentq(lambda d: z(d) + 1.959964, middle + 1e-6, 0.999)
    gain = np.array([[1.0] * ups + [-1.0] * downs + [0.0] * (rows - ups - downs)])
    ends = share_difference_interval(gain, np.ones(rows, int), one(ups), one(downs))
    assert (ends.low[0], ends.high[0]) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("groups", [2, 3, 5, 20])
def test_no_end_of_a_share_leaves_its_range(groups: int) -> None:
    sizes = np.full(groups, 8)
    for _ in range(60):
        base, tuned = (RNG.binomial(8, RNG.beta(0.3, 0.3, groups)) for _ in range(2))
        ups, downs = np.maximum(tuned - base, 0), np.maximum(base - tuned, 0)
        ends = share_difference_interval((ups - downs)[None] * 1.0, sizes, one(ups.sum()), one(downs.sum()))
        assert -1 <= ends.low[0] <= (tuned - base).mean() / 8 <= ends.high[0] <= 1
        level = share_interval(tuned[None].astype(np.float64), sizes)
        assert 0 <= level.low[0] <= tuned.mean() / 8 <= level.high[0] <= 1


def test_shares_of_groups_that_go_together_are_less_certain() -> None:
    alike = np.array([[8.0] * 17 + [0.0] * 3])  # whole groups go up, or none of their rows
    mixed = np.array([[7.0] * 12 + [6.0] * 6 + [8.0] * 2])
    sizes = np.full(20, 8)
    together = share_difference_interval(alike, sizes, one(alike.sum()), one(0))
    apart = share_difference_interval(mixed, sizes, one(mixed.sum()), one(0))
    assert alike.sum() == mixed.sum() == 136
    assert (together.high - together.low)[0] > 2.2 * (apart.high - apart.low)[0]


# --- p ----------------------------------------------------------------------------------------------------------


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


def test_many_data_sets_have_the_p_values_of_each() -> None:
    sums = RNG.normal(0.4, 1, (30, 9))
    together = flip_p_values(sums, seed=1)
    assert together == pytest.approx([permutation_p_value(row, np.arange(9), seed=1) for row in sums])
    random = flip_p_values(sums, seed=1, flips=4000, max_exact_groups=2)
    assert np.abs(random - together).max() < 0.04


def test_sums_of_groups() -> None:
    place = np.array([0, 2, 1, 2])
    assert group_sums(place, np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [1, 3, 6]
    assert group_sums(place).tolist() == [1, 1, 2]


# --- Holm -------------------------------------------------------------------------------------------------------


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
