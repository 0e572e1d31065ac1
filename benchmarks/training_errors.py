"""How often a verdict over several trainings is wrong, in simulation: false 'better' and power, for three intervals.

Run as python benchmarks/training_errors.py [--trials 40000]. Gains of equal groups have effects of the group, of the
training and of both together, and a mean of zero or of 3.5 true standard errors. `ratio` is the variance of the mean
that the trainings add, divided by that of the groups; `both` is the variance of the joint effect, divided by the
groups'. Prints a Markdown table: the interval over groups alone, the t interval with the sum of both variances and
Welch's degrees of freedom (Welch 1947, doi:10.1093/biomet/34.1-2.28), and that of `widen_by_trainings`.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tunesmith.evaluation.statistics import mean_interval, widen_by_trainings

Floats = NDArray[np.float64]


def lower_ends(gains: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns the lower ends of 95 % intervals [trials] of gains [trials, trainings, groups], by the three methods."""
    trainings, groups = gains.shape[1:]
    by_group, by_training = gains.mean(1), gains.mean(2)
    ends = mean_interval(by_group, np.ones(groups, dtype=np.int64), skewed=False)
    parts = np.stack([ends.error**2, by_training.var(-1, ddof=1) / trainings])
    degrees = parts.sum(0) ** 2 / (parts[0] ** 2 / (groups - 1) + parts[1] ** 2 / (trainings - 1))
    welch = by_group.mean(-1) - stats.t.ppf(0.975, degrees) * np.sqrt(parts.sum(0))
    return ends.low, np.asarray(welch), widen_by_trainings(ends.low, ends.high, by_training)[0]


def main() -> None:
    """Prints the table, and the largest share of false 'better' by each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40_000)
    trials = parser.parse_args().trials
    print("| trainings | groups | ratio | both | false: groups alone | Welch | combined | power: Welch | combined |")
    print("|---|---|---|---|---|---|---|---|---|")
    most = np.zeros(3)
    for trainings, groups, ratio, both in itertools.product((2, 3, 5), (6, 12, 40), (0.1, 0.5, 1, 2, 10), (0, 1)):
        rng = np.random.default_rng([trainings, groups])
        gains = rng.normal(size=(trials, 1, groups)) + np.sqrt(both) * rng.normal(size=(trials, trainings, groups))
        gains += np.sqrt(ratio * trainings / groups) * rng.normal(size=(trials, trainings, 1))
        error = np.sqrt(1 / groups + ratio / groups + both / groups / trainings)
        false = np.array([100 * (low > 0).mean() for low in lower_ends(gains)])
        power = [100 * (low + 3.5 * error > 0).mean() for low in lower_ends(gains)[1:]]
        most = np.maximum(most, false)
        cells = [*(f"{share:.1f}" for share in false), *(f"{share:.0f}" for share in power)]
        print("|", " | ".join([str(trainings), str(groups), str(ratio), str(both), *cells]), "|")
    print("largest false 'better', %:", *(f"{share:.2f}" for share in most))


if __name__ == "__main__":
    main()
