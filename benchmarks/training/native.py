"""This project's engine, as the harness drives it: a plan for a budget, a model laid out by it, whole steps."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.training.clock import CLIP, RATE, Timed, random_ids, reset_peak, timed

from tunesmith.config.recipe import Adapter, Train
from tunesmith.hardware import Machine, Speed, detect_hardware
from tunesmith.hardware import measure_speed as measure_speed
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.count_parameters import read_shape
from tunesmith.models.weights import fetch_weights
from tunesmith.planning.autograd import Plan
from tunesmith.planning.fused import PlanSettings, StepWork, plan_fused
from tunesmith.prompt.tokens import Example
from tunesmith.training.fused_step import FusedStep
from tunesmith.training.job import Job, Layout
from tunesmith.training.optimizers import adamw

PRECISIONS = {"native": "bfloat16", "native-fast": "fp8"}


@dataclass(frozen=True)
class Planned:
    """What the planner chose: two budgets with the same layout need one measurement."""

    plan: Plan

    @property
    def peak(self) -> int:
        """Bytes that torch will allocate; the card's context is not among them."""
        return self.plan.peak

    @property
    def name(self) -> str:
        """The layout in a few words."""
        made = self.plan
        kept = ", ".join(
            f"{made.keeps.count(keep)} {keep}" for keep in ("all", "attention", "input", "host") if keep in made.keeps
        )
        forms = ", ".join(
            f"{made.forms.count(form)} {form}" for form in ("stored", "dense", "fp8") if form in made.forms
        )
        table = "" if made.table else "; embeddings on the host"
        return f"micro-batches of {made.micro_tokens}; {forms}; {kept}{table}"


@cache
def _machine(precision: str) -> tuple[Machine, Speed]:
    machine = detect_hardware("fast" if precision == "fp8" else "auto")
    return replace(machine, memory_free=machine.memory_total), measure_speed(machine)


def planned(
    folder: Path, batch: int, length: int, *, budget_bytes: int | None, rank: int, precision: str = "bfloat16"
) -> Planned:
    """What the planner chooses for steps of `batch` rows of `length` tokens, `budget_bytes` being torch's share.

    Raises ResourceError when not even one row fits.
    """
    machine, speed = _machine(precision)
    return Planned(
        plan_fused(
            read_shape(folder, str(folder)),
            machine,
            speed,
            StepWork(((length,) * batch,), length, 100),
            PlanSettings(bits=4, rank=rank, layers="all", optimizer="adamw", fast=precision == "fp8"),
            "auto" if budget_bytes is None else f"{budget_bytes / 1e6:.1f}MB",
        )
    )


_ready: dict[str, Any] = {}  # how the loaded model lies, and what trains it


def _gradients(folder: Path, rows: list[Example], how: Plan, device: str, rank: int) -> FusedStep:
    """The engine over a model that lies as planned; loaded anew only where the last one lay otherwise."""
    lies = how.forms, how.table, rank
    if _ready.get("lies") != lies or len(rows[0]) > _ready.get("longest", len(rows[0])):
        _ready.clear()
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        model: Model = load_model(fetch_weights(str(folder)), bits=4, device=device, precision="bfloat16")
        add_adapter(model, rank=rank, alpha=16, layers="all", dropout=0, seed=1)
        _ready.update(lies=lies, model=model)
    job = Job(
        model=_ready["model"],
        tokenizer=None,
        train=rows,
        valid=[],
        adapter=Adapter(rank=rank),
        settings=Train(),
        seed=1,
        pad=0,
        micro_tokens=how.micro_tokens,
        recompute=False,
        precision="bfloat16",
        folder=folder,
        inputs={},
        layout=Layout(how.forms, how.keeps, how.chunk, how.table),
    )
    made: FusedStep | None = _ready.get("gradients")
    if made is None:
        made = FusedStep(job, how.micro_tokens)
        optimizer = adamw(list(made.trained.values()), RATE, 0.0)
        optimizer.step()  # over gradients of zero: its state is there before the graphs are recorded
        _ready.update(gradients=made, optimizer=optimizer, longest=len(rows[0]))
    made.fused.keeps = list(how.keeps)
    made.take(job)
    made.micro_tokens = how.micro_tokens
    made.graphs.clear()
    return made


def _allow(budget: int | None, device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if budget is None else min(1.0, budget / total))


def measure(
    folder: Path, batch: int, length: int, *, how: Planned, budget: int | None, device: str, rank: int = 16
) -> Timed:
    """Times whole optimizer steps of `batch` rows of `length` random tokens, laid out as `how` says.

    torch gets no more than `budget` bytes of the card, as in a fine-tune.
    """
    _allow(None, device)  # loading is not what is measured
    rows = [Example("row", (1,) * length, (True,) * length, 0)] * batch
    gradients = _gradients(folder, rows, how.plan, device, rank)
    optimizer = _ready["optimizer"]
    parameters = list(gradients.trained.values())
    draw = random_ids(batch, length, _ready["model"].network.config.vocab_size, device)
    _allow(budget, device)
    reset_peak(device)
    gradients.prepare([list(range(batch))])  # a graph's memory is allocated when it is recorded

    def step() -> None:
        drawn = [Example("row", tuple(ids), (True,) * length, 0) for ids in draw().tolist()]
        gradients.take(replace(gradients.job, train=drawn))
        gradients.step(range(batch))
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        gradients.updated()
        gradients.clear()

    made = timed(step, batch * length, device, reset=False)
    gradients.graphs.clear()
    return made
