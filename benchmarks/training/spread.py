"""Tokens a second on 1, 2, 4 … cards: whole optimizer steps of the native engine, gradients added up over all cards.

`python -m benchmarks.training.spread --out FILE.csv --scratch FOLDER` makes each model once (random NF4 weights, see
shapes.py), then starts torchrun for each number of cards and appends a row for each. Every card has the same work, so
at best twice the cards make twice the tokens. `all_reduce_ms` is the first card's, its waiting for the others included.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median

ADAPTER_RANK = 16
WARM, STEPS = 3, 20  # the steps after the third count
COLUMNS = (
    "date", "card", "torch", "shape", "cards", "rows_a_card", "length", "adapter_millions", "precision",
    "tokens_per_second", "step_ms", "all_reduce_ms", "peak_gib", "layout", "failure",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What one number of cards does."""

    shape: str
    folder: Path
    rows: int
    length: int
    precision: str
    out: Path


def main(words: Sequence[str] | None = None) -> None:
    """Measures every shape on every number of cards."""
    given = _arguments(words)
    if given.worker:
        _work(Task(given.shapes[0], given.scratch, given.rows, given.length, given.precision, given.out))
        return
    for shape in given.shapes:
        folder = given.scratch / shape
        subprocess.run(
            [sys.executable, "-m", "benchmarks.training.shapes", shape, str(folder), given.device], check=True
        )
        for cards in given.gpus:
            _start(given, Task(shape, folder, given.rows, given.length, given.precision, given.out), cards)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="where the models are made")
    parser.add_argument("--shapes", nargs="+", default=["llama3.2-1b", "llama2-7b"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=8, help="rows a card and step")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--precision", choices=("auto", "fast"), default="auto")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the weights are drawn")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def _start(given: argparse.Namespace, task: Task, cards: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cards)]
    command += ["-m", "benchmarks.training.spread", "--worker", "--out", str(task.out), "--scratch", str(task.folder)]
    command += ["--shapes", task.shape, "--rows", str(task.rows), "--length", str(task.length)]
    threads = str(max(1, (os.cpu_count() or 1) // cards))
    done = subprocess.run([*command, "--precision", task.precision], env={**os.environ, "OMP_NUM_THREADS": threads})
    if done.returncode:
        append(task.out, {"shape": task.shape, "cards": cards, "failure": f"exit status {done.returncode}"})


def _work(task: Task) -> None:
    """One process: the same steps as training makes, on rows of random tokens that differ from card to card."""
    import torch

    from tunesmith.config.recipe import Adapter, Train
    from tunesmith.hardware import detect_hardware, measure_speed
    from tunesmith.models.build import add_adapter, load_model
    from tunesmith.models.count_parameters import read_shape
    from tunesmith.models.weights import fetch_weights
    from tunesmith.planning.fused import PlanSettings, StepWork, plan_fused
    from tunesmith.prompt.tokens import Example
    from tunesmith.runs.run import is_main_process
    from tunesmith.training import distributed
    from tunesmith.training.fused_step import FusedStep
    from tunesmith.training.job import Job, Layout
    from tunesmith.training.optimizers import adamw

    with distributed.process_group():
        machine = detect_hardware(task.precision)
        shape = read_shape(task.folder, task.shape)
        work = StepWork(((task.length,) * task.rows,), task.length, STEPS)
        wish = PlanSettings(4, ADAPTER_RANK, "all", "adamw", fast=task.precision == "fast")
        plan = distributed.broadcast_object(
            lambda: plan_fused(shape, machine, measure_speed(machine), work, wish, "auto")
        )
        model = load_model(fetch_weights(str(task.folder)), bits=4, device=machine.device, precision=machine.precision)
        add_adapter(model, rank=ADAPTER_RANK, alpha=16, layers="all", dropout=0, seed=1)
        chance = random.Random(distributed.rank())
        rows = [
            Example("row", tuple(chance.choices(range(shape.vocabulary), k=task.length)), (True,) * task.length, 0)
            for _ in range(task.rows)
        ]
        layout = Layout(plan.forms, plan.keeps, plan.chunk, plan.table)
        job = Job(
            model, None, rows, [], Adapter(rank=ADAPTER_RANK), Train(), 1, 0, plan.micro_tokens, False,
            machine.precision, task.folder, {}, layout=layout,
        )  # fmt: skip
        gradients = FusedStep(job, plan.micro_tokens)
        trained = list(gradients.trained.values())
        optimizer = adamw(trained, 2e-4, 0.0)
        order = list(range(task.rows))
        gradients.prepare([order])
        card = machine.device == "cuda"
        learnt = distributed.world_size() * task.rows * (task.length - 1)
        taken, adding = [], []
        for _ in range(WARM + STEPS):
            distributed.barrier()
            began = time.perf_counter()
            found = gradients.step(order, 1.0, learnt)  # reading the loss waits for the card
            before = time.perf_counter()
            distributed.all_reduce_sum(trained, found, model.device)
            adding.append(time.perf_counter() - before)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            gradients.updated()
            gradients.clear()
            if card:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        seconds = median(taken[WARM:])
        if not is_main_process():
            return
        row = {
            "date": date.today().isoformat(),
            "card": machine.name,
            "torch": metadata.version("torch"),
            "shape": task.shape,
            "cards": distributed.world_size(),
            "rows_a_card": task.rows,
            "length": task.length,
            "adapter_millions": round(sum(each.numel() for each in trained) / 1e6, 1),
            "precision": task.precision,
            "tokens_per_second": round(distributed.world_size() * task.rows * task.length / seconds),
            "step_ms": round(1000 * seconds, 2),
            "all_reduce_ms": round(1000 * median(adding[WARM:]), 3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if card else "",
            "layout": f"{plan.micro_tokens} tokens; {plan.why}",
        }
        append(task.out, row)
        print(*(f"{key} {value}" for key, value in row.items()), sep=", ")


def append(path: Path, row: dict[str, object]) -> None:
    """Adds a row to the table, with its head where it is new."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
