"""Learning-rate schedules against values computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunesmith.training.schedules import constant, cosine, learning_rate_factor, linear, warm_steps


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, [1.0, 1.0, 1.0, 1.0, 1.0]),
        (linear, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (cosine, [1.0, 0.8535533905932737, 0.5, 0.1464466094067262, 0.0]),
    ],
)
def test_schedules_by_hand(schedule: Callable[[float], float], expected: list[float]) -> None:
    assert [schedule(quarter / 4) for quarter in range(5)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0, 10, 0), (0.05, 100, 5), (0.05, 10, 1), (0.25, 10, 3), (0.5, 8, 4), (1, 10, 1), (3, 10, 3), (30, 10, 10)],
)
def test_warm_up_is_a_share_below_one_and_steps_from_one(warmup: float, total: int, steps: int) -> None:
    assert warm_steps(warmup, total) == steps


@pytest.mark.parametrize(
    ("warmup", "total", "schedule", "expected"),
    [
        (4, 8, linear, [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]),
        (0.5, 8, linear, [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]),
        (0, 4, linear, [1.0, 0.75, 0.5, 0.25]),
        (0, 4, cosine, [1.0, 0.8535533905932737, 0.5, 0.1464466094067262]),
        (2, 4, constant, [0.5, 1.0, 1.0, 1.0]),
        (9, 3, cosine, [1 / 3, 2 / 3, 1.0]),
        (0, 1, cosine, [1.0]),
        (1, 1, linear, [1.0]),
    ],
)
def test_a_runs_rates_by_hand(
    warmup: float, total: int, schedule: Callable[[float], float], expected: list[float]
) -> None:
    assert [learning_rate_factor(step, total, warmup, schedule) for step in range(total)] == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize(("schedule", "last"), [(cosine, 2.733e-4), (linear, 1 / 95), (constant, 1.0)])
def test_the_last_step_is_near_the_schedules_end(schedule: Callable[[float], float], last: float) -> None:
    assert learning_rate_factor(99, 100, 0.05, schedule) == pytest.approx(last, rel=1e-3)


@pytest.mark.parametrize("schedule", [cosine, linear])
@pytest.mark.parametrize(("total", "warmup"), [(50, 0.1), (7, 3), (200, 0)])
def test_the_rate_rises_to_its_peak_and_then_only_falls(
    schedule: Callable[[float], float], total: int, warmup: float
) -> None:
    rates = [learning_rate_factor(step, total, warmup, schedule) for step in range(total)]
    warm = warm_steps(warmup, total)
    assert rates[:warm] == sorted(set(rates[:warm]))
    assert rates[warm:] == sorted(set(rates[warm:]), reverse=True)
    assert max(rates) == rates[warm] == 1.0
    assert min(rates) > 0
