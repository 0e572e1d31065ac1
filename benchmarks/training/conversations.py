"""A whole fine-tune over real conversations, answers only: this project's own verbs, TRL's and Unsloth's trainers.

`prepare` reads the rows once; every engine learns the same rows from the same tokens. Counted are tokens that are not
padding, over the time from the first step's start to the last step's end. Where the step is counted in tokens the
rivals pack rows into sequences of the longest row's length, as many as make the step; where it is counted in rows
nobody packs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from benchmarks.training.clock import RATE, Timed, peaks, quantile, reset_peak, synchronize
from benchmarks.training.table import Setting

import tunesmith
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.data.conversation import read_rows
from tunesmith.prompt.template import load_template, load_tokenizer
from tunesmith.prompt.tokens import Example, encode
from tunesmith.runs.run import Run

FORMATS: dict[str, Any] = {
    "finance": "alpaca",
    "support": {"columns": {"prompt": "instruction", "answer": "response"}},
}
GIB = 1 << 30
ALPHA = 16


def measure(job: Any, setting: Setting) -> dict[str, str]:
    """Fine-tunes once and returns the columns of the table.

    Raises whatever the engine raises.
    """
    folder = job.folder
    recipe, run = prepared(job, setting, folder)
    examples = encoded(run, folder)
    if setting.engine.startswith("native"):
        measured, planned = _native(recipe, run, setting, job.device)
    else:
        measured, planned = _rival(examples, folder, setting, job), {}
    tokens, seconds = sum(map(len, examples)), measured.seconds
    return {
        "tokens_s": f"{tokens / measured.whole:.0f}",
        "ms_median": f"{quantile(seconds, 0.5) * 1e3:.1f}",
        "steps": str(len(seconds)),
        "tokens": str(tokens),
        "seconds": f"{measured.whole:.2f}",
        "peak_gib": f"{measured.peak / GIB:.2f}",
        "reserved_gib": f"{measured.reserved / GIB:.2f}",
        **planned,
    }


class Whole(Timed):
    """Every step of a fine-tune and the seconds from its first to its last."""

    whole: float

    @classmethod
    def of(cls, began: float, ends: Sequence[float], device: str) -> Whole:
        """From the first step's start and every step's end."""
        steps = tuple(after - before for before, after in zip([began, *ends[:-1]], ends, strict=True))
        made = cls(steps, 0, *peaks(device))
        object.__setattr__(made, "whole", ends[-1] - began)
        return made


def prepared(job: Any, setting: Setting, folder: Path) -> tuple[Recipe, Run]:
    """The recipe and its run with the rows in it; nothing is held out."""
    words = [setting.data, setting.shape, setting.engine, setting.packing, setting.batch]
    plain = {
        "name": re.sub("[^a-z0-9]+", "-", "-".join(filter(None, words)).lower()),
        "seed": 1,
        "base": {"model": str(folder), "bits": 4},
        "data": {
            "source": job.rows,
            "format": FORMATS[setting.data],
            "checks": ["broken", "empty", "special_token", "too_long"],
            "split": {"by": "rows", "test": 0.0, "valid": 0.0, "together": None},
            **({"sample": {"train": job.limit_rows}} if job.limit_rows else {}),
        },
        "prompt": {"learn": "answer", "max_tokens": setting.length},
        "adapter": {"rank": setting.rank, "alpha": ALPHA, "layers": "all"},
        "train": {
            "engine": "native",
            "epochs": 1,
            "batch": setting.batch,
            "learning_rate": RATE,
            "precision": "fast" if setting.engine == "native-fast" else "auto",
            "schedule": "constant",
            "warmup": 0,
            "evaluate_every": 10_000,
        },
    }
    file = job.scratch / f"{plain['name']}.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    recipe = read_recipe(str(file))
    run = tunesmith.open_run(recipe, job.scratch / "runs")
    tunesmith.prepare(recipe, run)
    return recipe, run


def encoded(run: Run, folder: Path) -> list[Example]:
    """The training rows as tokens."""
    template = load_template(load_tokenizer(folder), "model", folder)
    return [encode(row, template) for row in read_rows(run / "data/train.jsonl")]


def _native(recipe: Recipe, run: Run, setting: Setting, device: str) -> tuple[Whole, dict[str, str]]:
    began: list[float] = []
    ends: list[float] = []

    def watch(event: dict[str, Any]) -> None:
        if event["kind"] in ("start", "valid") and not ends:
            synchronize(device)
            began[:] = [time.perf_counter()]
        elif event["kind"] == "step":
            synchronize(device)
            ends.append(time.perf_counter())

    tunesmith.train(recipe, run, watch=watch, again=True)
    made = run.read_json("plan.json")
    return Whole.of(began[0], ends, device), {"planned_gib": f"{made['peak'] / GIB:.2f}"}


def _rival(examples: Sequence[Example], folder: Path, setting: Setting, job: Any) -> Whole:
    checkpointing: Any = {"no": False, "yes": True, "unsloth": "unsloth"}[setting.checkpointing]
    if setting.engine == "unsloth":
        from benchmarks.training.rival_unsloth import load

        network, tokenizer = load(
            folder, checkpointing=setting.checkpointing, rank=setting.rank, longest=setting.length
        )
    else:
        from benchmarks.training.rival_trl import load as load_plain
        from transformers import AutoTokenizer

        network = load_plain(setting.engine, folder, rank=setting.rank, device=job.device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return _trained(network, tokenizer, examples, setting, bool(checkpointing), job)


def _trained(
    network: Any, tokenizer: Any, examples: Sequence[Example], setting: Setting, again: bool, job: Any
) -> Whole:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not checked, see pyproject.toml
        """Notes when the first step starts and when each ends."""

        def __init__(self) -> None:
            self.began, self.ends = 0.0, list[float]()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            reset_peak(job.device)
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronize(job.device)
            self.ends.append(time.perf_counter())

    clock = Clock()
    columns = {
        "input_ids": [list(example.ids) for example in examples],
        "completion_mask": [[int(learnt) for learnt in example.loss_mask] for example in examples],
    }
    own = {} if setting.engine == "unsloth" else {"gradient_checkpointing": again}  # Unsloth's model carries its own
    packed = setting.packing == "bfd"
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(
            output_dir=str(job.scratch / "trainer"),
            num_train_epochs=1,
            per_device_train_batch_size=rows_a_step(setting, examples),
            learning_rate=RATE,
            lr_scheduler_type="constant",
            bf16=True,
            use_cpu=job.device == "cpu",
            max_length=setting.length,
            packing=packed,
            completion_only_loss=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=job.device == "cuda",
            seed=1,
            **own,
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return Whole.of(clock.began, clock.ends, job.device)


def rows_a_step(setting: Setting, examples: Sequence[Example]) -> int:
    """Sequences of a rival's step: the rows that are asked for, or as many as hold that many tokens."""
    size, unit = int(setting.batch.split()[0]), setting.batch.split()[1]
    if unit == "rows":
        return size
    if setting.packing == "bfd":
        return max(1, size // setting.length)
    return max(1, round(size * len(examples) / sum(map(len, examples))))
