"""The verdict over several trainings of a recipe: values by hand, and what it promises, in simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from tunesmith.evaluation.statistics import (
    flip_p_values,
    mean_interval,
    share_difference_interval,
    trainings_p_values,
    widen_by_trainings,
)
from tunesmith.evaluation.verdict import Verdict, decide, decide_over_trainings, shown_direction, with_zero

GROUPS = [f"t{index // 2}" for index in range(12)]
BASE = [0.1, 0.3, 0.2, 0.4, 0.3, 0.1, 0.5, 0.2, 0.2, 0.3, 0.4, 0.1]
EFFECTS = np.array([0.31, 0.25, 0.4, 0.22, 0.37, 0.28])  # of the groups
DRIFT = (-0.06, 0.01, 0.05)  # of the trainings
TUNED = [[base + EFFECTS[row // 2] + drift for row, base in enumerate(BASE)] for drift in DRIFT]


def over(tuned: list[list[Any]], base: list[Any] = BASE, groups: list[str] = GROUPS, **options: Any) -> Verdict:
    return decide_over_trainings(base, tuned, groups, **{"better": "higher", "seed": 1, "power": False, **options})


# --- by hand ----------------------------------------------------------------------------------------------------


def test_the_interval_combines_that_over_topics_with_that_over_trainings() -> None:
    verdict = over(TUNED)
    assert verdict.difference == pytest.approx(EFFECTS.mean())  # the trainings' drifts add up to 0
    assert verdict.tuned == pytest.approx(np.mean(TUNED)) and verdict.base == pytest.approx(np.mean(BASE))
    assert verdict.trainings == pytest.approx([np.mean(BASE) + EFFECTS.mean() + drift for drift in DRIFT])
    alone = decide(BASE, np.mean(TUNED, 0).tolist(), GROUPS, better="higher", seed=1, power=False)
    reach = stats.t.ppf(0.975, 2) * np.std(DRIFT, ddof=1) / math.sqrt(3)
    assert reach == pytest.approx(4.302653 * 0.0556776 / 1.7320508, rel=1e-6)
    assert verdict.low == pytest.approx(verdict.difference - math.hypot(verdict.difference - alone.low, reach))
    assert verdict.high == pytest.approx(verdict.difference + math.hypot(alone.high - verdict.difference, reach))
    error = EFFECTS.std(ddof=1) / math.sqrt(6)
    assert alone.high - alone.difference == pytest.approx(stats.t.ppf(0.975, 5) * error, rel=0.2)  # skewness widens it

    def excess(level: float) -> float:
        t_groups, t_trainings = stats.t.isf(level / 2, [5, 2])
        width = (t_groups * error) ** 2 + (t_trainings * np.std(DRIFT, ddof=1)) ** 2 / 3
        return float(width - verdict.difference**2)

    p = optimize.brentq(excess, 1e-9, 1)
    assert 0.005 < p < 0.02
    assert verdict.p == pytest.approx(max(p, 2 / 2**6))  # all six topics gained: the permutation test gives 0.031
    assert (verdict.outcome, verdict.narrow) == ("better", True)


def test_trainings_that_differ_too_much_show_nothing_though_each_does() -> None:
    tuned = [[base + EFFECTS[row // 2] + drift for row, base in enumerate(BASE)] for drift in (-0.2, -0.1, 0.3)]
    for one in tuned:
        assert decide(BASE, one, GROUPS, better="higher", seed=1, power=False).outcome == "better"
    verdict = over(tuned)
    assert verdict.outcome == "no change shown" and verdict.low <= 0 < verdict.difference
    assert verdict.p > 0.05


def test_one_training_is_decided_as_before() -> None:
    single = decide(BASE, TUNED[0], GROUPS, better="higher", seed=1)
    assert over(TUNED[:1], power=True) == single and single.trainings == () and single.detectable
    assert "trainings" not in single.describe() and over(TUNED).describe()["trainings"] == [*over(TUNED).trainings]


def test_trainings_that_agree_widen_nothing() -> None:
    verdict, single = over([TUNED[1]] * 3), decide(BASE, TUNED[1], GROUPS, better="higher", seed=1, power=False)
    assert (verdict.low, verdict.high, verdict.p) == pytest.approx((single.low, single.high, single.p))


@pytest.mark.parametrize("groups", [0, 8])
def test_a_share_over_trainings_stays_in_its_range(groups: int) -> None:
    names = [f"t{row % groups}" if groups else "" for row in range(80)]
    always, nearly = [1.0] * 80, [0.0, *[1.0] * 79]
    verdict = over([always] * 3, [0.0] * 80, names)
    assert (verdict.difference, verdict.high) == (1.0, 1.0)
    assert verdict.low == pytest.approx(0.955, abs=1e-3)  # exact for 80 of 80, not for 240 of 240
    verdict = over([always, nearly, always], [0.0] * 80, names)
    assert verdict.limits == (0.0, 1.0) and 0.9 < verdict.low < 239 / 240 < verdict.high <= 1.0
    verdict = over([[0.0] * 80] * 2, [0.0] * 80, names)
    assert (verdict.difference, verdict.p, verdict.outcome) == (0.0, 1.0, "no change shown")
    assert -0.1 < verdict.low < 0 < verdict.high < 0.1


def test_perplexity_is_aggregated_in_each_training() -> None:
    losses = [2.0 + 0.1 * (row % 3) for row in range(12)]
    tuned = [[loss - 0.5 - drift for loss in losses] for drift in DRIFT]
    verdict = over(tuned, losses, better="lower", fold="exp")
    values = [math.exp(2.1 - 0.5 - drift) for drift in DRIFT]
    assert verdict.trainings == pytest.approx(values) and verdict.tuned == pytest.approx(np.mean(values))
    assert verdict.difference == pytest.approx(np.mean(values) - math.exp(2.1))
    assert verdict.outcome == "better"


def test_a_row_counts_if_every_training_answered_it() -> None:
    base, groups = [0.0] * 30, [""] * 30
    tuned: list[list[float | None]] = [[1.0] * 30 for _ in range(3)]
    tuned[0][0] = tuned[1][1] = tuned[1][0] = None
    verdict = over(tuned, base, groups)
    assert (verdict.rows, verdict.missing, verdict.asked) == (28, 2, 30)
    assert verdict.worst and verdict.worst.difference == pytest.approx((28 + 1 / 3 + 2 / 3) / 30)
    with pytest.raises(ValueError, match="equal, non-empty lists"):
        over([tuned[0], tuned[1][1:]], base, groups)
    with pytest.raises(ValueError, match="equal, non-empty lists"):
        over([], base, groups)


# --- in simulation ----------------------------------------------------------------------------------------------

TRIALS = 3000
MOST = stats.binom.ppf(0.999, TRIALS, 0.025) / TRIALS  # 3.4 %: more comes once in 1,000 if 2.5 % are true


def verdicts(gains: np.ndarray) -> np.ndarray:
    """Decides many data sets [trials, trainings, groups, rows] at once, as `decide_over_trainings` does."""
    groups, rows = gains.shape[2:]
    sizes, sums, by_training = np.full(groups, rows), gains.mean(1).sum(-1), gains.mean((2, 3))
    if np.isin(gains, (-1, 0, 1)).all():
        ups, downs = ((gains == sign).sum((1, 2, 3)) / gains.shape[1] for sign in (1, -1))
        ends = share_difference_interval(sums, sizes, ups, downs)
    else:
        ends = mean_interval(sums, sizes)
    low, high = widen_by_trainings(ends.low, ends.high, by_training)
    p = np.maximum(
        flip_p_values(sums, seed=1, flips=500, max_exact_groups=10),
        trainings_p_values(ends.error, groups - 1, by_training),
    )
    return np.asarray(shown_direction(*with_zero(low, high, p), p))


def drawn(trainings: int, groups: int, spread: float, trials: int = TRIALS) -> np.ndarray:
    """Gains with mean 0: effects of topics, of trainings (`spread` topics' standard errors), of both, and of rows."""
    rng = np.random.default_rng(trainings * 1000 + groups)
    topic = rng.normal(size=(trials, 1, groups, 1))
    training = rng.normal(size=(trials, trainings, 1, 1)) * spread * math.sqrt(trainings / groups)
    return topic + training + 0.3 * rng.normal(size=(trials, trainings, groups, 1)) + 0.3 * rng.normal(
        size=(trials, trainings, groups, 3)
    )  # fmt: skip


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("trainings", "groups"), [(2, 20), (3, 8), (5, 12)])
def test_equal_models_are_rarely_called_better(trainings: int, groups: int, spread: float) -> None:
    gains = drawn(trainings, groups, spread)
    assert (verdicts(gains) > 0).mean() <= MOST and (verdicts(gains) < 0).mean() <= MOST
    if spread >= 1:  # one training's verdict takes its own effect for the recipe's
        alone = mean_interval(gains[:, 0].sum(-1), np.full(groups, 3))
        assert (alone.low > 0).mean() > 0.05


def test_a_difference_is_found() -> None:
    assert (verdicts(drawn(3, 12, 0.3) + 1.2) > 0).mean() > 0.8
    assert (verdicts(drawn(5, 12, 1.0) + 1.8) > 0).mean() > 0.8


def test_equal_shares_are_rarely_called_better() -> None:
    rng = np.random.default_rng(5)
    topic, training = rng.normal(size=(TRIALS, 1, 12, 1)), 0.5 * rng.normal(size=(TRIALS, 3, 1, 1))
    base = rng.random((TRIALS, 1, 12, 4)) < 1 / (1 + np.exp(-topic))
    tuned = rng.random((TRIALS, 3, 12, 4)) < 1 / (1 + np.exp(-topic - training))
    directions = verdicts(tuned.astype(float) - base)
    assert (directions > 0).mean() <= MOST and (directions < 0).mean() <= MOST


def test_the_simulation_decides_as_verdicts_do() -> None:
    gains = drawn(3, 8, 1.0, trials=200) + 0.8
    names = [f"t{group}" for group in range(8) for _ in range(3)]
    directions = verdicts(gains)
    assert 20 < (directions > 0).sum() < 180
    for gain, direction in zip(gains[:40], directions[:40], strict=True):
        verdict = over([one.ravel().tolist() for one in gain], [0.0] * 24, names)
        assert verdict.outcome == {1: "better", -1: "worse", 0: "no change shown"}[int(direction)]
