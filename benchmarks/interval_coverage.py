"""How often the 95 % intervals of a comparison hold the true difference, shape by shape, in simulation.

Run as python benchmarks/interval_coverage.py [--trials 2000]. Each trial draws a data set of a known shape whose true
difference is known, and asks `interval` as a comparison does, with 10,000 resamples. Beside it stand the two methods
that it is made of, each alone, and how often the permutation test says p <= 0.05 when groups' replies are exchanged at
random, so that there is no change.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluation.score import Fold
from tunesmith.evaluation.statistics import RESAMPLES, bootstrap_interval, permutation_p_value

RESULTS = Path(__file__).parent / "results" / "interval_coverage.csv"
COLUMNS = (
    *("shape", "rows", "groups", "trials", "covered"),
    *("percentiles_alone", "bootstrap_t_alone", "width_ratio", "p_alarms"),
)
Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator], tuple[Floats, Floats]]
EVEN = [5] * 20
UNEVEN = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 2
NINE = [5, 2, 9, 1, 4, 1, 3, 12, 1]


@dataclass(frozen=True)
class Shape:
    """How base and tuned scores [rows] are drawn, the rows of each group, and the true difference."""

    draw: Draw
    sizes: list[int]
    truth: float
    fold: Fold = "mean"

    @property
    def place(self) -> NDArray[np.int64]:
        """Each row's group's number."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


def gains(draw: Callable[[np.random.Generator], Floats], sizes: list[int], truth: float) -> Shape:
    """A shape of gains over a base of zeros."""

    def both(rng: np.random.Generator) -> tuple[Floats, Floats]:
        gain = draw(rng)
        return np.zeros_like(gain), gain

    return Shape(both, sizes, truth)


def topics(sizes: list[int], topic: Callable[[np.random.Generator, int], Floats], truth: float) -> Shape:
    """Gains of rows that share their topic's gain (standard deviation 0.7) beside their own (0.7)."""
    return gains(
        lambda rng: np.repeat(topic(rng, len(sizes)), sizes) + rng.normal(0, 0.7, sum(sizes)) + truth, sizes, truth
    )


def shares(rows: int, base: float, tuned: float) -> Shape:
    """0/1 scores, drawn apart."""
    return Shape(
        lambda rng: ((rng.random(rows) < base).astype(np.float64), (rng.random(rows) < tuned).astype(np.float64)),
        [1] * rows,
        tuned - base,
    )


def changed(rows: int, up: float, down: float) -> Shape:
    """0/1 scores of which few change."""

    def draw(rng: np.random.Generator) -> Floats:
        at = rng.random(rows)
        return (at < up) * 1.0 - (at > 1 - down) * 1.0

    return gains(draw, [1] * rows, up - down)


def topic_shares(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """0/1 scores of 20 topics of 5 rows, of which some gain all and some nothing (base 0.2, tuned 0.5)."""
    odds = np.repeat(rng.beta(1, 1, 20), 5)
    return (rng.random(100) < 0.2).astype(np.float64), (rng.random(100) < odds).astype(np.float64)


def losses(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Losses of 20 topics of 5 rows in nats: base about 2, tuned 0.3 less."""
    topic = np.repeat(rng.normal(0, 0.3, 20), 5)
    base = 2 + topic + rng.normal(0, 0.4, 100)
    return base, base - 0.3 + 0.5 * topic + rng.normal(0, 0.2, 100)


def normal(rng: np.random.Generator, count: int) -> Floats:
    """Topics' gains, normal."""
    return rng.normal(0, 0.7, count)


def skewed(rng: np.random.Generator, count: int) -> Floats:
    """Topics' gains, exponential less their mean."""
    return 0.7 * (rng.exponential(1, count) - 1)


SHAPES = {
    "normal": gains(lambda rng: rng.normal(0.3, 1, 60), [1] * 60, 0.3),
    "normal, 20 rows": gains(lambda rng: rng.normal(0.3, 1, 20), [1] * 20, 0.3),
    "heavy tails (t3)": gains(lambda rng: rng.standard_t(3, 60), [1] * 60, 0.0),
    "0/1": shares(60, 0.5, 0.7),
    "0/1, nearly all gain": shares(100, 0.1, 0.9),
    "0/1, both near 1": shares(100, 0.95, 0.95),
    "0/1, one row in ten changes": changed(60, 0.05, 0.05),
    "seven in ten unchanged": gains(
        lambda rng: np.where(rng.random(60) < 0.7, 0, rng.normal(0.2, 0.2, 60)), [1] * 60, 0.06
    ),
    "20 groups": topics(EVEN, normal, 0.3),
    "20 uneven groups": topics(UNEVEN, normal, 0.3),
    "20 groups, 0/1": Shape(topic_shares, EVEN, 0.3),
    "20 groups, skewed": topics(EVEN, skewed, 0.3),
    "20 uneven groups, skewed": topics(UNEVEN, skewed, 0.3),
    "skewed (exponential)": gains(lambda rng: rng.exponential(1, 60), [1] * 60, 1.0),
    "very skewed (log-normal)": gains(lambda rng: rng.lognormal(0, 1, 100), [1] * 100, float(np.exp(0.5))),
    "20 groups, exp of the mean": Shape(losses, EVEN, float(np.exp(1.7) - np.exp(2)), "exp"),
    "9 uneven groups": topics(NINE, normal, 0.3),
    "9 uneven groups, skewed": topics(NINE, skewed, 0.3),
    "5 groups": topics([4] * 5, normal, 0.3),
    # where it falls short
    "5 groups, skewed": topics([4] * 5, skewed, 0.3),
    "3 groups": topics([6] * 3, normal, 0.3),
    "very skewed, 20 rows": gains(lambda rng: rng.lognormal(0, 1, 20), [1] * 20, float(np.exp(0.5))),
    "0/1, one row in fifty changes": changed(100, 0.02, 0.0),
}


@dataclass(frozen=True)
class Covered:
    """Shares of trials: the interval and its two methods hold the truth; and the intervals' median widths."""

    both: float
    percentiles: float
    studentized: float
    width: float
    width_percentiles: float


def covered(shape: Shape, *, trials: int, seed: int, resamples: int = RESAMPLES) -> Covered:
    """Draws `trials` data sets and counts."""
    rng, held, widths = np.random.default_rng(seed), np.zeros(3), []
    for trial in range(trials):
        found = bootstrap_interval(*shape.draw(rng), shape.place, seed=trial, fold=shape.fold, resamples=resamples)
        spans = ((found.low, found.high), found.percentiles, found.studentized)
        # an end that is not known is no end; 1e-9: the truth may be an end of a lattice
        held += [not (low > shape.truth + 1e-9 or high < shape.truth - 1e-9) for low, high in spans]
        widths.append([spans[0][1] - spans[0][0], spans[1][1] - spans[1][0]])
    return Covered(*(held / trials).tolist(), *np.median(widths, 0).tolist())


def alarms(shape: Shape, *, trials: int, seed: int) -> float:
    """The share of data sets without a true difference of which the permutation test says p <= 0.05."""
    rng, found = np.random.default_rng(seed), 0
    for trial in range(trials):
        base, tuned = shape.draw(rng)
        swap = rng.random(len(shape.sizes))[shape.place] < 0.5  # whole groups' replies exchanged: no change at all
        gain = np.where(swap, base - tuned, tuned - base)
        found += permutation_p_value(gain, shape.place, seed=trial) <= 0.05
    return found / trials


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    began, rows = time.time(), []
    for name, shape in SHAPES.items():
        found, false = covered(shape, trials=trials, seed=20), alarms(shape, trials=trials // 4, seed=21)
        shown = [f"{100 * share:.1f}" for share in (found.both, found.percentiles, found.studentized)]
        wider = f"{found.width / found.width_percentiles:.3f}"
        rows.append([name, sum(shape.sizes), len(shape.sizes), trials, *shown, wider, f"{100 * false:.1f}"])
        print(f"{time.time() - began:5.0f} s", *rows[-1], sep="  ", flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows)


if __name__ == "__main__":
    main()
