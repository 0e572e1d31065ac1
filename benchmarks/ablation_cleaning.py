"""Does cleaning the data help? The same base, budget and test, trained on raw rows and on cleaned ones.

Run as python benchmarks/ablation_cleaning.py FOLDER [--share 0.12 0.5] [--seeds 3]. The rows are the clean letters of
the cover-letter sample; a share of the training rows is replaced by damaged copies, each kind of damage alike. Whole
jobs are held out, and their letters, all clean, are the test of every run. The raw run takes the damaged table as it
is, the cleaned run what `prepare` with the recipe's checks and repairs leaves of it; both take as many rows as the
smaller has, so that both make the same number of steps. Scores of the two adapters are paired row by row, the
interval is a bootstrap over jobs, seeds averaged within a row first.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.letter_parts import Row  # noqa: E402
from tools.letters import clean_rows  # noqa: E402
from tools.plant import kinds, plant_one  # noqa: E402

import tunesmith  # noqa: E402
from tunesmith.config.recipe import Recipe, read_recipe  # noqa: E402
from tunesmith.data.conversation import read_rows  # noqa: E402
from tunesmith.evaluation.verdict import decide  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "ablation_cleaning.csv"
HELD_JOBS = 20
WATCHED_JOBS = 6


def tables(folder: Path, share: float, seed: int) -> Path:
    """Writes the table with a `part` column: a share of the training rows damaged, everything else clean."""
    draw = random.Random(seed)
    rows = clean_rows()
    jobs = sorted({row["Job Title"] for row in rows})
    draw.shuffle(jobs)
    parts = dict.fromkeys(jobs[:HELD_JOBS], "test") | dict.fromkeys(jobs[HELD_JOBS:][:WATCHED_JOBS], "valid")
    train = [row for row in rows if row["Job Title"] not in parts]
    damaged = dict(zip(draw.sample(range(len(train)), round(share * len(train))), _cycle(kinds()), strict=False))
    made: list[tuple[Row, str]] = []
    for place, row in enumerate(train):
        planted = plant_one(row, damaged[place], f"{seed} {place}", rows) if place in damaged else None
        made.append((planted[0] if planted else row, "train"))
        if planted and damaged[place] in ("duplicate", "near_duplicate", "contradiction"):
            made.append((row, "train"))  # these are damage only beside the row they were made from
    made += [(row, parts[row["Job Title"]]) for row in rows if row["Job Title"] in parts]
    path = folder / f"letters-{share}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*rows[0], "part"])
        writer.writerows([*row.values(), part] for row, part in made)
    return path


def _cycle(items: Sequence[str]) -> Any:
    while True:
        yield from items


def recipe(table: Path, name: str, seed: int, extra: dict[str, Any]) -> Recipe:
    """The cover-letter recipe's small variant on this table, with the split that the table gives."""
    settings = {
        "name": name,
        "seed": seed,
        "data.source": str(table),
        "data.split": {"by": "given", "column": "part"},
        "evaluate.metrics": ["grounded", "stops", "loss", "rouge", "length"],
        "evaluate.rows": 60,
        "evaluate.batch": 60,
        **extra,
    }
    return read_recipe(str(ROOT / "recipes/cover-letter.yaml"), small=True, settings=settings)


RAW = {"data.checks": ["broken", "special_token"], "data.repair": False, "data.allow_leaks": True}


def scores(folder: Path, made: Recipe) -> dict[str, dict[str, dict[str, float]]]:
    """Runs the recipe: score -> row -> base and tuned."""
    run = tunesmith.open_run(made, folder / "runs")
    with run.lock():
        tunesmith.prepare(made, run, print)
        tunesmith.train(made, run, print)
        tunesmith.evaluate(made, run, print)
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for row in json.loads((run / "scores.json").read_text(encoding="utf-8"))["rows"]:
        for name, value in row["tuned"].items():
            if name in row["base"] or name in ("grounded", "coverage"):
                found[name][row["id"]] = {"base": row["base"].get(name, float("nan")), "tuned": value}
    return found


def compare(folder: Path, share: float, seeds: int) -> list[list[str]]:
    """One line a score: the base, raw and cleaned means, and the difference between the last two with its interval."""
    table = tables(folder, share, seed=1)
    probe = recipe(table, f"cleaned-{share}-probe", 1, {})
    run = tunesmith.open_run(probe, folder / "runs")
    tunesmith.prepare(probe, run, print)
    rows = len(read_rows(run / "data/train.jsonl"))
    groups = {row.id: row.group for row in read_rows(run / "data/test.jsonl")}
    by_way: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for seed in range(1, seeds + 1):
        for way, extra in (("raw", RAW), ("cleaned", {})):
            made = recipe(table, f"{way}-{share}-{seed}", seed, {**extra, "data.sample.train": rows})
            for name, values in scores(folder, made).items():
                for row, pair in values.items():
                    by_way[name][way][row].append(pair["tuned"])
                    by_way[name]["base"][row].append(pair["base"])
    lines = []
    for name, ways in sorted(by_way.items()):
        shared = sorted(row for row in ways["raw"] if row in ways["cleaned"])
        raw, cleaned = ([sum(ways[way][row]) / len(ways[way][row]) for row in shared] for way in ("raw", "cleaned"))
        base = [value for row in shared for value in ways["base"][row] if value == value]
        found = decide(raw, cleaned, [groups[row] for row in shared], better="higher", seed=1)
        means = [sum(values) / len(values) if values else float("nan") for values in (base, raw, cleaned)]
        figures = [*means, found.difference, found.low, found.high]
        lines.append([str(share), str(rows), name, *(f"{value:.4f}" for value in figures), str(len(shared))])
    return lines


def main() -> None:
    """Runs every share of damage and writes the table to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, nargs="+", default=[0.12, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    table = [
        ["damaged", "train_rows", "score", "base", "raw", "cleaned", "cleaned_minus_raw", "low", "high", "test_rows"]
    ]
    for share in given.share:
        table += compare(given.folder, share, given.seeds)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)
    for line in table:
        print(*line, sep="\t")


if __name__ == "__main__":
    main()
