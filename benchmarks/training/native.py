"""This project's engine, as the harness drives it: a model, a plan for a budget, whole optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from benchmarks.training.clock import CLIP, RATE, Timed, random_ids, timed

from tunesmith.hardware import look
from tunesmith.memory import RUNTIME, Plan, plan
from tunesmith.model.build import Model, add_adapter, load
from tunesmith.model.shape import read_shape
from tunesmith.model.weights import fetch
from tunesmith.prompt.pack import Batch
from tunesmith.train.loss import summed_loss
from tunesmith.train.optimizers import adamw

PRECISIONS = {"native": "bfloat16", "native-fast": "fp8"}


@dataclass(frozen=True)
class Planned:
    """How a step is run: rows of a micro-batch, whether activations are recomputed, the bytes that this takes.

    The bytes are those that torch allocates; the card's context is not among them. Two budgets with the same plan
    need one measurement.
    """

    rows: int
    recompute: bool
    dense: bool
    peak: int


def planned(folder: Path, batch: int, length: int, *, budget_bytes: int | None, rank: int) -> Planned:
    """What the planner chooses for steps of `batch` rows of `length` tokens, `budget_bytes` being torch's share.

    Raises ResourceError when not even one row fits.
    """
    machine = look()
    context = RUNTIME[machine.device]
    machine = replace(machine, memory_free=machine.memory_total)  # the model may lie in it already
    memory = "auto" if budget_bytes is None else f"{(budget_bytes + context) / 1e6:.0f}MB"
    made: Plan = plan(
        read_shape(folder, str(folder)),
        machine,
        bits=4,
        rank=rank,
        optimizer="adamw",
        longest=length,
        step_tokens=batch * length,
        memory=memory,
        recompute="auto",
    )
    rows = max(1, min(batch, made.micro_tokens // length))
    return Planned(rows, made.recompute, made.dense, made.peak - context)


@cache
def make_model(folder: Path, precision: str, device: str, rank: int) -> tuple[Model, torch.optim.Optimizer]:
    """The model of `folder` in NF4 with its adapter and optimizer; one a process."""
    if precision != "bfloat16":
        raise ValueError(f"the engine has no products in {precision}")
    model = load(fetch(str(folder)), bits=4, device=device, precision=precision)
    add_adapter(model, rank=rank, alpha=16, layers="all", dropout=0, seed=1)
    model.network.train()
    return model, adamw(list(model.trainable().values()), RATE, 0.0)


def measure(
    folder: Path, batch: int, length: int, *, how: Planned, precision: str, device: str, rank: int = 16
) -> Timed:
    """Times whole optimizer steps of `batch` rows of `length` random tokens, run as `how` says."""
    model, optimizer = make_model(folder, precision, device, rank)
    _recompute(model, how.recompute)
    if how.dense:
        model.keep_dense()
    draw = random_ids(batch, length, model.network.config.vocab_size, device)

    def step() -> None:
        _step(model, optimizer, draw().tolist(), how.rows)

    return timed(step, batch * length, device)


def _step(model: Model, optimizer: torch.optim.Optimizer, ids: list[list[int]], rows: int) -> None:
    """Forward and backward a micro-batch at a time, then clip and AdamW."""
    learnt = len(ids) * (len(ids[0]) - 1)
    for start in range(0, len(ids), rows):
        part = ids[start : start + rows]
        batch = Batch(part, [[1] * len(row) for row in part], part)
        loss: Any = summed_loss(model, batch) / learnt
        loss.backward()
    torch.nn.utils.clip_grad_norm_(list(model.trainable().values()), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _recompute(model: Model, wanted: bool) -> None:
    if wanted and not model.network.is_gradient_checkpointing:
        model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.network.enable_input_require_grads()
    elif not wanted and model.network.is_gradient_checkpointing:
        model.network.gradient_checkpointing_disable()
        model.network.disable_input_require_grads()
