"""What verdicts promise, kept in simulation. The full table: benchmarks/verdict_errors.py."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.verdict_errors import EXACT_GROUPS, SHAPES, Shape, intervals, measure, sums_of, table
from scipy import stats

from tunesmith.evaluation.statistics import flip_p_values
from tunesmith.evaluation.verdict import decide, shown_direction, with_zero

BY_NAME = {f"{shape.kind}: {shape.name}": shape for shape in SHAPES}
QUICK = (
    "equal groups: 6 groups of 5",
    "equal groups: 20 groups of 5",
    "single rows: 60 rows",
    "one dominant group: 10 groups, one with half the rows",
    "uneven groups: 9 groups of 1 to 10",
    "skewed: 12 groups of 5, log-normal",
    "exponential of the mean: 12 groups of 5",
    "shares: 0.8, 20 groups of 5",
    "shares: 0.9, 60 rows",
)


@pytest.mark.parametrize("name", QUICK)
def test_false_verdicts_are_rare_and_intervals_hold_the_truth(name: str) -> None:
    errors = measure(BY_NAME[name], trials=3000, flips=1000, seed=7)
    most = stats.binom.ppf(0.999, 3000, 0.025) / 30  # 3.4 %: more comes once in 1,000 if 2.5 % are true
    assert errors.false_better <= most and errors.false_worse <= most
    assert 93 <= errors.coverage_changed <= 97.5, errors
    # without a difference, the interval misses zero exactly if the verdict is wrong
    assert errors.coverage == pytest.approx(100 - errors.false_better - errors.false_worse)
    assert errors.power >= errors.others["flips"][1] - (30 if "dominant" in name else 12), errors


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_so_few_groups_never_show_anything(groups: int) -> None:
    errors = measure(BY_NAME[f"equal groups: {groups} groups of 5"], trials=500, flips=100, seed=3)
    assert (errors.false_better, errors.false_worse, errors.power) == (0, 0, 0)


def test_groups_that_go_all_or_nothing_do_not_deceive_the_verdict() -> None:
    errors = measure(BY_NAME["shares: 0.5, 6 groups of 5, all or nothing"], trials=4000, flips=100, seed=3)
    assert errors.false_better <= 1 < 2.5 < errors.others["webb"][0]  # Webb's weights: about 5 %


@pytest.mark.parametrize("name", ["missing rows: 0.5, 60 rows, a third of failures silent"])
def test_silent_failures_do_not_help(name: str) -> None:
    errors = measure(BY_NAME[name], trials=1500, flips=100, seed=3)  # 150 lists of rows
    assert errors.false_better <= 6  # 2.5 expected at most
    assert errors.others["measured rows alone"][0] > 8
    assert errors.power > 50


@pytest.mark.parametrize("name", [*QUICK, "shares: 0.95, 8 groups of 5", "shares: 0.8, 12 groups of 1 to 10"])
def test_the_simulation_decides_as_verdicts_do(name: str) -> None:
    shape: Shape = BY_NAME[name]
    base, tuned = shape.draw(np.random.default_rng(4), 6, min(0.2, shape.most))
    ends, sums = intervals(shape, base, tuned), sums_of(shape, tuned - base)
    p_values = flip_p_values(sums, seed=1)
    names = [f"g{group}" for group in shape.place]
    for index in range(6):
        verdict = decide(
            base[index].tolist(), tuned[index].tolist(), names, better="higher", fold=shape.fold, seed=1, power=False
        )
        expected = with_zero(ends.low[index], ends.high[index], verdict.p)
        assert [verdict.low, verdict.high] == pytest.approx([float(end) for end in expected], abs=1e-9)
        if len(shape.sizes) <= EXACT_GROUPS:
            assert verdict.p == pytest.approx(p_values[index])
        direction = int(shown_direction(ends.low[index], ends.high[index], verdict.p))
        assert verdict.outcome == {1: "better", -1: "worse", 0: "no change shown"}[direction]


@pytest.mark.parametrize(("groups", "rows"), [(6, 5), (8, 5), (20, 5), (30, 1)])
def test_the_smallest_change_is_found_4_times_in_5(groups: int, rows: int) -> None:
    """The figure of several data sets, and how often a change of that size is found in others."""
    rng, names = np.random.default_rng(9), [f"t{index // rows}" for index in range(groups * rows)]

    def draw(change: float) -> list[float]:
        topic = np.repeat(rng.normal(change, 0.7, groups), rows)
        return [float(gain) for gain in topic + rng.normal(0, 0.7, groups * rows)]

    zeros = [0.0] * len(names)
    sizes = [decide(zeros, draw(0.0), names, better="higher", seed=seed).detectable for seed in range(12)]
    change = float(np.mean([size for size in sizes if size is not None]))
    found = [
        decide(zeros, draw(change), names, better="higher", seed=seed, power=False).outcome == "better"
        for seed in range(300)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(("share", "rows", "groups"), [(0.5, 60, 60), (0.8, 100, 20)])
def test_the_smallest_change_of_a_share_is_found_4_times_in_5(share: float, rows: int, groups: int) -> None:
    rng, names = np.random.default_rng(9), [f"t{index % groups}" for index in range(rows)]

    def draw(chance: float) -> list[float]:
        return [float(hit) for hit in rng.random(rows) < chance]

    sizes = [decide(draw(share), draw(share), names, better="higher", seed=seed).detectable for seed in range(12)]
    change = float(np.mean([size for size in sizes if size is not None]))
    found = [
        decide(
            draw(share - change / 2), draw(share + change / 2), names, better="higher", seed=seed, power=False
        ).outcome
        == "better"
        for seed in range(300)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(("base", "tuned", "groups"), [([0.0] * 5, [1.0] * 5, 5), ([2.0] * 9, [1.5] * 9, 9)])
def test_nothing_is_found_with_too_few_groups_and_nothing_known_without_spread(
    base: list[float], tuned: list[float], groups: int
) -> None:
    assert decide(base, tuned, [""] * groups, better="higher", seed=1).detectable is None


def test_a_saturated_score_has_a_smallest_change() -> None:
    # 80 rows, none of which changed: 6 rows alone give p = 0.031, and 6 or more go up in 80 % of trials at about 9.6 %
    detectable = decide([1.0] * 80, [1.0] * 80, [""] * 80, better="higher", seed=1).detectable
    exact = next(chance for chance in np.arange(0.01, 0.5, 0.001) if stats.binom.sf(5, 80, chance) >= 0.8)
    assert detectable == pytest.approx(exact, abs=0.015)


def test_the_table_has_a_line_for_each_shape() -> None:
    lines = [
        ["shares", "0.5, 60 rows", "60", "60", "10", "1.0", "1.0", "95.0", "95.0", "80.0", *["79.0"] * 3, *["2.0"] * 3]
    ]
    text = table(lines)
    assert "| **shares** |" in text and "| 0.5, 60 rows | 1.0 | 95.0 | 95.0 | 80.0 | 79.0 (2.0) |" in text


def test_there_are_sixty_shapes_of_2_to_60_groups() -> None:
    assert len(SHAPES) >= 60 and len(BY_NAME) == len(SHAPES)
    assert {len(shape.sizes) for shape in SHAPES} >= {2, 3, 4, 5, 6, 8, 12, 20, 40, 60}
