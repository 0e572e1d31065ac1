"""How often a verdict is wrong, shape by shape, in simulation: false 'better', coverage of the interval, and power.

Run as python benchmarks/verdict_errors.py [--trials 10000] [--flips 2000] [--only WORD]. Each trial draws the scores of
two models on the rows of a known shape: once from the same distribution, so that 'better' and 'worse' are false, and
once with a difference that a t test finds in about 80 % of normal data. The verdict's own interval, p-value and rule
are applied to all trials at once; shapes with missing rows call `decide` for a tenth of the trials. Beside it stand
other tests, each alone: a t test over the groups' means, the sign flips, and a wild cluster bootstrap with Webb's
weights (Webb 2023, doi:10.1111/caje.12661). Writes results/verdict_errors.csv; --table prints the table of
docs/comparison.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tunesmith.evaluation.score import SHARE, Fold
from tunesmith.evaluation.statistics import Interval, flip_p_values, mean_interval, share_difference_interval
from tunesmith.evaluation.verdict import MIN_GROUPS, decide, shown_direction, with_zero

RESULTS = Path(__file__).parent / "results" / "verdict_errors.csv"
COLUMNS = (
    *("kind", "shape", "rows", "groups", "trials", "false_better", "false_worse", "coverage", "coverage_changed"),
    *("power", "power_t", "power_flips", "power_webb", "false_t", "false_flips", "false_webb"),
)
ALLOWED = 2.5  # percent of false 'better'
WEBB = np.sqrt([0.5, 1.0, 1.5])
EXACT_GROUPS = 10
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Sample = Callable[[np.random.Generator, tuple[int, ...]], Floats]
Draw = Callable[[np.random.Generator, int, float], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Shape:
    """How scores of base and tuned [trials, rows] are drawn with a true difference, and the rows of each group.

    `kind` groups the shapes in the table. With kind "not equal", the models differ although their means do not.
    `silent` is the probability that the tuned model has no score for a row whose score would be 0, and for another one.
    """

    kind: str
    name: str
    sizes: Ints
    draw: Draw
    share: bool = False
    fold: Fold = "mean"
    most: float = np.inf  # the largest difference that the scores allow
    silent: tuple[float, float] | None = None

    @property
    def place(self) -> Ints:
        """Each row's group's number [rows]."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


# --- shapes -----------------------------------------------------------------------------------------------------


def equal(groups: int, rows: int) -> Ints:
    """Groups of equal size."""
    return np.full(groups, rows)


def uneven(groups: int) -> Ints:
    """Groups of 1 to 10 rows."""
    return 1 + np.arange(groups) % 10


def dominant(groups: int) -> Ints:
    """One group with half of the rows, the others with 3."""
    return np.array([3 * (groups - 1), *[3] * (groups - 1)])


def scores(kind: str, name: str, sizes: Ints, sample: Sample, *, shared: float = 0.5, fold: Fold = "mean") -> Shape:
    """Scores of any value: rows and their groups have effects of the same distribution, drawn apart for each model.

    `shared` is the share of the variance that is the group's; groups of one row have none.
    """
    place = np.repeat(np.arange(len(sizes)), sizes)
    own, group = np.sqrt(1 - shared), np.sqrt(shared)

    def draw(rng: np.random.Generator, trials: int, difference: float) -> tuple[Floats, Floats]:
        base, tuned = (
            own * sample(rng, (trials, len(place))) + group * sample(rng, (trials, len(sizes)))[:, place]
            for _ in range(2)
        )
        return base, tuned + difference

    return Shape(kind, name, sizes, draw, fold=fold)


def gains(name: str, sizes: Ints, sample: Sample) -> Shape:
    """Gains with mean zero of a skewed distribution: the models differ, but not in the mean."""
    place = np.repeat(np.arange(len(sizes)), sizes)

    def draw(rng: np.random.Generator, trials: int, difference: float) -> tuple[Floats, Floats]:
        gain = np.sqrt(0.5) * (sample(rng, (trials, len(place))) + sample(rng, (trials, len(sizes)))[:, place])
        return np.zeros_like(gain), gain + difference

    return Shape("not equal", name, sizes, draw)


def shares(
    name: str, sizes: Ints, share: float, *, alike: float = 0.2, silent: tuple[float, float] | None = None
) -> Shape:
    """0/1 scores whose probability varies over groups (beta-binomial with intraclass correlation `alike`).

    A difference lowers the base's probability, because the tuned model's cannot rise above 1.
    """
    place = np.repeat(np.arange(len(sizes)), sizes)

    def draw(rng: np.random.Generator, trials: int, difference: float) -> tuple[Floats, Floats]:
        sides = []
        for mean in (share - difference, share):
            odds: Floats = np.full((trials, len(sizes)), mean)
            if 0 < alike < 1:
                spread = (1 - alike) / alike
                odds = rng.beta(mean * spread, (1 - mean) * spread, (trials, len(sizes)))
            elif alike == 1:
                odds = (rng.random((trials, len(sizes))) < mean).astype(np.float64)
            sides.append((rng.random((trials, len(place))) < odds[:, place]).astype(np.float64))
        return sides[0], sides[1]

    kind = "missing rows" if silent else "shares"
    return Shape(kind, name, sizes, draw, share=True, most=share * 0.98, silent=silent)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Standard normal values."""
    return rng.normal(size=shape)


def exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Exponential values less their mean: skewness 2."""
    return rng.exponential(size=shape) - 1


def minus_exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """The negative of exponential values: most rows gain a little, a few lose much."""
    return 1 - rng.exponential(size=shape)


def log_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Log-normal values less their mean: skewness 6.2."""
    return rng.lognormal(0, 1, shape) - math.exp(0.5)


def minus_log_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """The negative of log-normal values."""
    return -log_normal(rng, shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, shape)


def ties(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Zero in 7 of 10 cases, else normal."""
    return np.where(rng.random(shape) < 0.7, 0.0, rng.normal(size=shape))


def marks(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Marks of 1 to 5."""
    return (rng.choice(5, shape, p=[0.05, 0.1, 0.2, 0.35, 0.3]) + 1).astype(np.float64)


def losses(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Losses in nats per token, about 1.5 in sum."""
    return 0.75 / math.sqrt(0.5) + rng.normal(0, 0.35, shape)


SHAPES: tuple[Shape, ...] = (
    *(
        scores("equal groups", f"{n} groups of 5", equal(n, 5), normal)
        for n in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 40, 60)
    ),
    *(scores("single rows", f"{n} rows", equal(n, 1), normal, shared=0) for n in (6, 10, 20, 40, 60)),
    *(scores("uneven groups", f"{n} groups of 1 to 10", uneven(n), normal) for n in (5, 6, 9, 12, 20, 40)),
    *(
        scores("one dominant group", f"{n} groups, one with half the rows", dominant(n), normal)
        for n in (5, 6, 10, 20, 40)
    ),
    *(scores("skewed", f"{n} groups of 5, exponential", equal(n, 5), exponential) for n in (6, 8, 12, 20, 40)),
    *(scores("skewed", f"{n} groups of 5, log-normal", equal(n, 5), log_normal) for n in (6, 12, 20)),
    scores("skewed", "60 rows, log-normal", equal(60, 1), log_normal, shared=0),
    *(scores("heavy tails", f"{n} groups of 5, t3", equal(n, 5), heavy) for n in (6, 12, 30)),
    scores("heavy tails", "60 rows, t3", equal(60, 1), heavy, shared=0),
    scores("heavy tails", "12 groups of 1 to 10, t3", uneven(12), heavy),
    *(scores("ties", f"{n} groups of 5, 7 in 10 zero", equal(n, 5), ties) for n in (6, 12, 30)),
    scores("ties", "60 rows, marks of 1 to 5", equal(60, 1), marks, shared=0),
    scores("ties", "12 groups of 5, marks of 1 to 5", equal(12, 5), marks, shared=0),
    *(scores("exponential of the mean", f"{n} groups of 5", equal(n, 5), losses, fold="exp") for n in (8, 12, 30)),
    *(shares(f"{p}, {n} groups of 5", equal(n, 5), p) for p in (0.5, 0.8, 0.9, 0.95, 0.99) for n in (8, 20)),
    *(shares(f"{p}, 60 rows", equal(60, 1), p, alike=0) for p in (0.5, 0.8, 0.9, 0.95, 0.99)),
    shares("0.9, 6 groups of 8", equal(6, 8), 0.9),
    shares("0.8, 5 groups of 8", equal(5, 8), 0.8),
    shares("0.8, 12 groups of 1 to 10", uneven(12), 0.8),
    shares("0.8, 10 groups, one with half the rows", dominant(10), 0.8),
    *(shares(f"0.5, {n} groups of 5, all or nothing", equal(n, 5), 0.5, alike=1) for n in (4, 6, 12)),
    shares("0.8, 12 groups of 5, 3 % silent at random", equal(12, 5), 0.8, silent=(0.03, 0.03)),
    shares("0.8, 12 groups of 5, a third of failures silent", equal(12, 5), 0.8, silent=(0.33, 0.0)),
    shares("0.5, 60 rows, a third of failures silent", equal(60, 1), 0.5, alike=0, silent=(0.33, 0.0)),
    shares("0.2, 40 rows, most failures silent", equal(40, 1), 0.2, alike=0, silent=(0.97, 0.0)),
    *(gains(f"{n} groups of 5, gains minus exponential", equal(n, 5), minus_exponential) for n in (6, 8, 20)),
    gains("8 groups of 5, gains exponential", equal(8, 5), exponential),
    *(gains(f"{n} groups of 5, gains minus log-normal", equal(n, 5), minus_log_normal) for n in (8, 20)),
)


# --- measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Percentages of trials: false verdicts, coverage, and power, of the verdict and of other tests."""

    false_better: float
    false_worse: float
    coverage: float
    coverage_changed: float
    power: float
    others: dict[str, tuple[float, float]]  # false 'better' and power of other tests


def sums_of(shape: Shape, values: Floats) -> Floats:
    """Returns the sums of values [trials, rows] over groups [trials, groups]."""
    return np.add.reduceat(values, np.r_[0, np.cumsum(shape.sizes)[:-1]], axis=1)


def intervals(shape: Shape, base: Floats, tuned: Floats) -> Interval:
    """Returns the verdict's intervals [trials] for scores [trials, rows]."""
    gain = tuned - base
    if shape.share:
        ups, downs = ((gain * sign > 0).sum(1) * 1.0 for sign in (1, -1))
        return share_difference_interval(sums_of(shape, gain), shape.sizes, ups, downs)
    if shape.fold == "exp":
        b, t = (np.exp(side.mean(1, keepdims=True)) for side in (base, tuned))
        gain = t * (tuned - tuned.mean(1, keepdims=True)) - b * (base - base.mean(1, keepdims=True)) + t - b
    return mean_interval(sums_of(shape, gain), shape.sizes)


def t_directions(shape: Shape, sums: Floats) -> Ints:
    """Returns what a t test over the groups' means shows [trials]: 1, -1 or 0."""
    means, groups = sums / shape.sizes, len(shape.sizes)
    error = means.std(1, ddof=1) / np.sqrt(groups)
    certain = np.abs(means.mean(1)) > stats.t.ppf(0.975, groups - 1) * error + 1e-12
    return np.where(certain, np.sign(means.mean(1)), 0).astype(int)


def webb_directions(shape: Shape, sums: Floats, rng: np.random.Generator, draws: int) -> Ints:
    """Returns what a wild cluster bootstrap-t with Webb's six weights shows [trials], the null hypothesis imposed."""
    sizes, rows = shape.sizes.astype(float), shape.sizes.sum()
    weights = rng.choice(np.r_[WEBB, -WEBB], (draws, len(sizes)))

    def t_values(total: Floats, squares: Floats, products: Floats) -> Floats:
        mean = total / rows
        spread = squares - 2 * mean * products + mean**2 * (sizes**2).sum()
        t_value: Floats = np.divide(mean, np.sqrt(np.maximum(spread, 1e-12)))
        return t_value

    resampled = t_values(sums @ weights.T, (sums**2) @ (weights**2).T, (sums * sizes) @ weights.T)
    observed = t_values(sums.sum(1), (sums**2).sum(1), (sums * sizes).sum(1))
    p_values = (1 + (np.abs(resampled) >= np.abs(observed)[:, None] - 1e-12).sum(1)) / (draws + 1)
    return np.where(p_values <= 0.05, np.sign(sums.sum(1)), 0).astype(int)


def measure(shape: Shape, *, trials: int, flips: int, seed: int) -> Errors:
    """Draws `trials` data sets without a difference, and as many with one, and counts."""
    rng = np.random.default_rng(seed)
    groups = len(shape.sizes)
    base, tuned = shape.draw(rng, trials, 0.0)
    spread = float((tuned - base).mean(1).std())
    wanted = (stats.t.ppf(0.975, groups - 1) + stats.t.ppf(0.8, groups - 1)) * spread
    difference = float(min(wanted, shape.most))
    if shape.silent:  # one list at a time is slow
        trials = max(1, trials // 10)
        return _measure_missing(shape, trials=trials, difference=difference, rng=rng, seed=seed)
    counts: dict[str, list[float]] = {}
    coverage, worse = [], 0.0
    for change in (0.0, difference):
        base, tuned = shape.draw(rng, trials, -change if shape.fold == "exp" else change)
        better = -1 if shape.fold == "exp" else 1
        sums, ends = sums_of(shape, tuned - base), intervals(shape, base, tuned)
        p_values = flip_p_values(sums, seed=seed, flips=flips, max_exact_groups=EXACT_GROUPS)
        if groups >= MIN_GROUPS:
            ends = Interval(*with_zero(ends.low, ends.high, p_values), ends.error)
        flipped = np.where(p_values <= 0.05, np.sign(sums.sum(1)), 0)
        shown = {
            "verdict": shown_direction(ends.low, ends.high, p_values) * (groups >= MIN_GROUPS),
            "t": t_directions(shape, sums),
            "flips": flipped,
            "webb": webb_directions(shape, sums, rng, min(flips, 999)),
        }
        for name, directions in shown.items():
            counts.setdefault(name, []).append(100 * float((directions == better).mean()))
        worse = worse or 100 * float((shown["verdict"] == -better).mean())
        truth = _true_difference(shape, rng, change)
        coverage.append(100 * float(((ends.low <= truth + 1e-9) & (ends.high >= truth - 1e-9)).mean()))
    verdict = counts.pop("verdict")
    others = {name: (values[0], values[1]) for name, values in counts.items()}
    return Errors(verdict[0], worse, coverage[0], coverage[1], verdict[1], others)


def _true_difference(shape: Shape, rng: np.random.Generator, change: float) -> float:
    """Returns the true difference of the aggregated scores; that of exponentials needs the mean of the scores."""
    if shape.fold != "exp" or not change:
        return change
    mean = 2 * 0.75  # of `losses`, whose own and group effects have a mean of 0.75 each
    return float(np.exp(mean - change) - np.exp(mean))


def _measure_missing(shape: Shape, *, trials: int, difference: float, rng: np.random.Generator, seed: int) -> Errors:
    """Counts verdicts on rows of which some are missing, one list of rows at a time."""
    assert shape.silent is not None
    names = [f"g{group}" if shape.sizes[group] > 1 else "" for group in shape.place]
    found: dict[str, list[float]] = {"better": [], "worse": [], "covered": [], "naive": []}
    for change in (0.0, difference):
        base, tuned = shape.draw(rng, trials, change)
        silent = rng.random(tuned.shape) < np.where(tuned == 0, *shape.silent)
        counts = dict.fromkeys(found, 0)
        for before, after, gone in zip(base, tuned, silent, strict=True):
            listed = [None if missing else float(value) for value, missing in zip(after, gone, strict=True)]
            verdict = decide(before.tolist(), listed, names, better="higher", seed=seed, limits=SHARE, power=False)
            worst = verdict.worst or verdict
            counts["better"] += verdict.outcome == "better"
            counts["worse"] += verdict.outcome == "worse"
            counts["covered"] += min(verdict.low, worst.low) <= change <= max(verdict.high, worst.high)
            counts["naive"] += int(shown_direction(verdict.low, verdict.high, verdict.p)) > 0
        for name, count in counts.items():
            found[name].append(100 * count / trials)
    alone = (found["naive"][0], found["naive"][1])
    covered, covered_changed = found["covered"]
    return Errors(
        found["better"][0],
        found["worse"][0],
        covered,
        covered_changed,
        found["better"][1],
        {"measured rows alone": alone},
    )


def as_row(shape: Shape, errors: Errors, trials: int) -> list[str]:
    """Returns the line of the CSV file; an empty cell was not measured."""
    others: list[tuple[float | None, float | None]] = [
        errors.others.get(name, (None, None)) for name in ("t", "flips", "webb")
    ]
    if shape.silent:
        others[1] = errors.others["measured rows alone"]
    figures: list[float | None] = [
        errors.false_better,
        errors.false_worse,
        errors.coverage,
        errors.coverage_changed,
        errors.power,
    ]
    figures += [power for _, power in others] + [false for false, _ in others]
    texts = ["" if figure is None else f"{figure:.1f}" for figure in figures]
    return [shape.kind, shape.name, str(shape.sizes.sum()), str(len(shape.sizes)), str(trials), *texts]


def table(lines: Sequence[Sequence[str]]) -> str:
    """Returns the Markdown table of docs/comparison.md from the lines of the CSV file."""
    head = (
        "| shape | false 'better' | coverage | with a difference | power | t | flips | Webb |\n|---" + "|---:" * 7 + "|"
    )
    out, kind = [head], ""
    for line in lines:
        values = dict(zip(COLUMNS, line, strict=True))
        if values["kind"] != kind:
            kind = values["kind"]
            out.append(f"| **{kind}** | | | | | | | |")
        alone = [f"{values[f'power_{name}']} ({values[f'false_{name}']})" for name in ("t", "flips", "webb")]
        alone = ["" if text == " ()" else text for text in alone]
        cells = [
            values["shape"],
            values["false_better"],
            values["coverage"],
            values["coverage_changed"],
            values["power"],
        ]
        out.append("| " + " | ".join([*cells, *alone]) + " |")
    return "\n".join(out)


def main() -> None:
    """Writes the CSV file, or prints the table of the one that exists."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--only", default="", help="measure the shapes whose kind or name has this word; write no file")
    parser.add_argument("--table", action="store_true", help="print the table of the CSV file")
    options = parser.parse_args()
    if options.table:
        with RESULTS.open(newline="", encoding="utf-8") as file:
            print(table(list(csv.reader(file))[1:]))
        return
    began, lines, wrong = time.time(), [], 0
    for number, shape in enumerate(SHAPES):
        if options.only and options.only not in f"{shape.kind} {shape.name}":
            continue
        errors = measure(shape, trials=options.trials, flips=options.flips, seed=100 + number)
        lines.append(as_row(shape, errors, options.trials))
        wrong += shape.kind != "not equal" and errors.false_better > ALLOWED
        print(f"{time.time() - began:5.0f} s", *lines[-1], sep="  ", flush=True)
    print(
        f"{len(lines)} shapes; false 'better' above {ALLOWED} % in {wrong} of those with equal models", file=sys.stderr
    )
    if not options.only:
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(lines)


if __name__ == "__main__":
    main()
