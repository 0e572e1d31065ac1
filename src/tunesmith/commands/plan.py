"""Plans memory and time of a training before anything is loaded; training uses the same plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tunesmith.commands.shared import Reporter, load_recipe_template, load_weights, silent
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import read_rows
from tunesmith.errors import RecipeError, ResourceError, TunesmithError, raise_all
from tunesmith.models.architecture import Architecture, architecture_from_weights
from tunesmith.models.shape import ModelShape
from tunesmith.models.weights import Weights
from tunesmith.planning.autograd import Plan
from tunesmith.runs.run import Run, process_count
from tunesmith.wording import show_bytes, show_seconds

SAMPLE_STEPS = 64  # steps that the plan packs into micro-batches to estimate memory and time


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that is known before the model is loaded; `slow` lists why the fused decoder is not used.

    With `shard` each process keeps a part of the base model.
    """

    machine: Any
    template: Any
    examples: dict[str, list[Any]]
    plan: Plan
    slow: list[str]
    shape: ModelShape
    shard: bool = False
    notes: tuple[str, ...] = ()  # about the template, the base model and the adapter


def plan(recipe: Recipe, run: Run, log: Reporter = silent) -> Plan:
    """Returns the memory and time that training on the prepared rows needs here. Loads no weights, writes nothing.

    Raises RunError if the rows are not prepared, ResourceError if nothing fits, and what `refuse_untrainable` raises.
    """
    require_trainable(recipe)
    run.fingerprint("prepare")
    setup = prepare_training(recipe, run, load_weights(recipe, log))
    for line in describe(setup):
        log(line)
    return setup.plan


def check_devices(recipe: Recipe, machine: Any) -> list[TunesmithError]:
    """Returns what the `machine` (a hardware.Machine) or the recipe's engine does not support: GPUs, precision, memory.

    Optimizers are checked by training.validation.check_optimizer.
    """
    from tunesmith.hardware import precision_error
    from tunesmith.models.build import unfused_adapter
    from tunesmith.planning.autograd import parse_bytes
    from tunesmith.training.validation import check_engine

    train = recipe.train
    errors = check_engine(recipe)
    has_bfloat16 = machine.device == "cpu" or machine.precision != "float16"  # chosen by auto, or already checked
    precision_problem = precision_error(
        train.precision, machine.device, machine.name, bfloat16=has_bfloat16, eight=machine.eight
    )
    if precision_problem is not None:
        errors.append(precision_problem)
    slow = unfused_adapter(recipe.adapter)
    if train.precision == "fast" and precision_problem is None and train.engine.name == "native" and slow:
        errors.append(_fast_error(slow))
    if train.memory != "auto" and parse_bytes(train.memory) > machine.memory_total:
        problem = (
            f"the budget of {train.memory} exceeds the memory of {machine.name}, {show_bytes(machine.memory_total)}"
        )
        errors.append(ResourceError(problem, where="train.memory", next="Lower it, or set it to auto"))
    return errors + _check_gpus(recipe, machine)


def _check_gpus(recipe: Recipe, machine: Any) -> list[TunesmithError]:
    """Returns errors if there are more processes than GPUs, or if the engine supports only one process."""
    world_size, local_world_size = process_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world_size == 1:
        if recipe.train.parallel != "auto" and machine.gpus == 1 and recipe.train.engine.name == "native":
            problem = f"train.parallel {recipe.train.parallel} needs several GPUs, and this machine has one"
            return [RecipeError(problem, where="train.parallel", next="Set it to auto")]
        return []
    errors: list[TunesmithError] = []
    if recipe.train.engine.name != "native":
        problem = f"engine {recipe.train.engine.name} supports one process, but torchrun started {world_size}"
        advice = "Set it to native, or run without --gpus and torchrun"
        errors.append(RecipeError(problem, where="train.engine", next=advice))
    if machine.device == "cuda" and local_world_size > machine.gpus > 0:
        problem = f"{local_world_size} processes were started on a machine with {machine.gpus} GPUs"
        errors.append(ResourceError(problem, where="torchrun", next=f"Use --gpus {machine.gpus}"))
    return errors


def _fast_error(slow: Sequence[str]) -> RecipeError:
    problem = f"8-bit products need the fused decoder, which cannot be used: {'; '.join(slow)}"
    return RecipeError(problem, where="train.precision", next="Set it to auto")


def check_training(recipe: Recipe) -> list[TunesmithError]:
    """Returns the errors of `check_devices` and `check_optimizer` for the machine that this process runs on."""
    from tunesmith.hardware import detect_hardware
    from tunesmith.training.validation import check_optimizer

    machine, train = detect_hardware(), recipe.train
    errors = check_devices(recipe, machine)
    return errors + check_optimizer(train.optimizer.name, train.optimizer.options, machine.device, train.engine.name)


def require_trainable(recipe: Recipe) -> None:
    """Raises the errors of `check_training`."""
    raise_all(check_training(recipe))


def prepare_training(recipe: Recipe, run: Run, weights: Weights) -> TrainingSetup:
    """Tokenizes the run's rows, detects the hardware and plans the training.

    Raises ResourceError if nothing fits, and the errors of models.build.check_adapter.
    """
    from tunesmith.hardware import detect_hardware
    from tunesmith.models.build import check_adapter
    from tunesmith.models.count_parameters import shape_of
    from tunesmith.models.fused_config import fused_layers
    from tunesmith.prompt.tokens import encode

    engine, parallel = recipe.train.engine.name, recipe.train.parallel
    raise_all(check_adapter(recipe.adapter, weights, engine=engine, parallel=parallel))
    machine = detect_hardware(recipe.train.precision)
    template_notes: list[str] = []
    template = load_recipe_template(recipe, weights, run, template_notes.append)
    examples = {
        part: [encode(row, template, recipe.prompt.learn) for row in read_rows(run / f"data/{part}.jsonl")]
        for part in ("train", "valid")
    }
    _check_validation(recipe, len(examples["valid"]))
    base = architecture_from_weights(weights)
    slow, shape = _unfused_reasons(recipe, base), shape_of(base)
    layers = [] if slow else fused_layers(base.config.to_dict())
    plan, sharding = _choose_plan(recipe, machine, shape, examples, fused=layers)
    if recipe.train.precision == "fast" and (slow or sharding):
        raise _fast_error([*slow, *sharding])
    notes = (*template_notes, *_model_lines(recipe, base, shape))
    return TrainingSetup(
        machine, template, examples, plan, [*slow, *sharding], shape, shard=bool(sharding), notes=notes
    )


def _model_lines(recipe: Recipe, model: Architecture, shape: ModelShape) -> list[str]:
    """Returns lines about the base model and the adapter."""
    from tunesmith.models.count_parameters import planned_trained

    groups = ", ".join(f"{name} {show_count(count)}" for name, count in shape.counts.items() if count)
    lines = [f"base: {show_count(shape.parameters)} parameters ({groups})"]
    lines += [f"base: {model.note}"] if model.note else []
    layers, experts = model.covered(recipe.adapter.layers, recipe.adapter.experts)
    names = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
    updated = (
        f"{show_count(planned_trained(model, recipe.adapter))} parameters in {len(layers)} linear layers ({names})"
    )
    updated += f" and the experts of {len({name.rpartition('.')[0] for name in experts})} layers" if experts else ""
    not_adapted = ["the head"] + (["routers"] if shape.experts else [])
    not_adapted += ["experts"] if shape.experts and not experts else []
    lines.append(f"adapter: {updated}; not adapted: {', '.join(not_adapted)}")
    return lines


def _check_validation(recipe: Recipe, rows: int) -> None:
    """Raises RecipeError if a setting needs validation rows and there are none."""
    train = recipe.train
    wishes = (("patience", train.patience), ("best", train.best == "score"), ("samples", train.samples))
    if names := [name for name, wish in wishes if wish and not rows]:
        raise RecipeError(
            f"train.{names[0]} needs validation rows, but there are none",
            where=f"train.{names[0]}",
            next="Raise data.split.valid and prepare again, or remove the setting",
        )


def _choose_plan(
    recipe: Recipe, machine: Any, shape: Any, examples: dict[str, list[Any]], *, fused: Sequence[Any]
) -> tuple[Plan, list[str]]:
    """Returns the plan, and the reason if the base model is sharded over GPUs (fsdp).

    `fused` is the attention of each layer, empty if the decoder is not fused.
    """
    from tunesmith.training.distributed import world_size

    shards = world_size()
    reason = f"train.parallel is fsdp, {shards} processes"
    if recipe.train.parallel != "fsdp":
        make = partial(_fused_plan, layers=fused) if fused else _autograd_plan
        try:
            return make(recipe, machine, shape, examples), []
        except ResourceError:
            if shards == 1 or recipe.train.parallel == "ddp":
                raise
        reason = f"the base model does not fit on one GPU, so each of {shards} keeps a part of it (fsdp)"
    return _autograd_plan(recipe, machine, shape, examples, shards=shards), [reason]


def _unfused_reasons(recipe: Recipe, base: Architecture) -> list[str]:
    """Returns the reasons why the fused decoder cannot be used."""
    from tunesmith.models.build import unfused_adapter
    from tunesmith.models.fused_config import unfused_config

    if recipe.train.engine.name != "native":
        return [f"engine {recipe.train.engine.name} does not use it"]
    reasons = unfused_config(base.config.to_dict()) + unfused_adapter(recipe.adapter)
    pissa = recipe.adapter.start.name == "pissa"
    return reasons + (["adapter.start pissa changes the base weights"] if pissa else [])


def _fused_plan(
    recipe: Recipe, machine: Any, shape: Any, examples: dict[str, list[Any]], *, layers: Sequence[Any]
) -> Plan:
    from tunesmith.hardware import measure_speed
    from tunesmith.planning.fused import PlanSettings, StepWork, plan_fused
    from tunesmith.training.distributed import divide_rows, world_size

    adapter, train = recipe.adapter, recipe.train
    wish = PlanSettings(
        bits=recipe.base.bits,
        rank=adapter.rank,
        layers=adapter.layers if isinstance(adapter.layers, str) else tuple(adapter.layers),
        optimizer=train.optimizer.name,
        fast=train.precision == "fast",
        recompute=train.recompute,
    )
    steps = _steps(recipe, examples["train"])
    lengths = [len(example) for example in examples["train"]]
    parts = [
        tuple(lengths[row] for row in part) for rows in steps for part in divide_rows(rows, lengths, world_size())[:1]
    ]
    sample = sorted(parts, key=sum)[-1:] + parts[:SAMPLE_STEPS]  # includes the largest step
    every = [example for part in examples.values() for example in part]
    learnt = sum(sum(example.loss_mask) for example in every) / sum(map(len, every))
    work = StepWork(tuple(sample), max(map(len, every)), len(steps) * train.epochs, learnt)
    return plan_fused(shape, machine, measure_speed(machine), work, wish, train.memory, layers)


def _autograd_plan(
    recipe: Recipe, machine: Any, shape: Any, examples: dict[str, list[Any]], *, shards: int = 1
) -> Plan:
    from tunesmith.planning.autograd import plan_autograd as plan_autograd
    from tunesmith.training.distributed import world_size

    lengths = [len(example) for part in examples.values() for example in part]
    result = plan_autograd(
        shape,
        machine,
        bits=recipe.base.bits,
        rank=recipe.adapter.rank,
        layers=recipe.adapter.layers,
        experts=recipe.adapter.experts,
        optimizer=recipe.train.optimizer.name,
        longest=max(lengths),
        step_tokens=-(-_step_tokens(recipe.train.batch, lengths) // world_size()),
        shards=shards,
        memory=recipe.train.memory,
        recompute=recipe.train.recompute,
        pissa=recipe.adapter.start.name == "pissa",
        dora=recipe.adapter.dora,
        train_also=recipe.adapter.train_also,
    )
    return result if shards > 1 else _estimate_time(recipe, machine, shape, examples["train"], result)


def _estimate_time(recipe: Recipe, machine: Any, shape: Any, examples: Sequence[Any], memory_plan: Plan) -> Plan:
    """Returns the plan with estimated seconds of a step and in total, from the micro-batches of some steps."""
    from tunesmith.hardware import measure_speed
    from tunesmith.planning.step_time import MicroBatch, autograd_seconds
    from tunesmith.prompt.pack import micro_batches
    from tunesmith.training.autograd_step import OVERHEAD
    from tunesmith.training.distributed import divide_rows, world_size

    lengths = [len(example) for example in examples]
    learnt = [sum(example.loss_mask[1:]) for example in examples]
    steps = _steps(recipe, examples)
    sample = []
    for rows in steps[:SAMPLE_STEPS]:
        own_rows = divide_rows(rows, lengths, world_size())[0]
        parts = micro_batches(own_rows, lengths, memory_plan.micro_tokens, overhead=OVERHEAD[machine.device])
        longest = [max(lengths[row] for row in part) for part in parts]
        sample.append(
            [
                MicroBatch(len(part) * longest_row, longest_row, sum(learnt[row] for row in part))
                for part, longest_row in zip(parts, longest, strict=True)
            ]
        )
    seconds = autograd_seconds(
        shape, measure_speed(machine), machine.device, sample,
        bits=recipe.base.bits, rank=recipe.adapter.rank, number=4 if machine.precision == "float32" else 2,
        recompute=memory_plan.recompute, dense=memory_plan.dense,
    )  # fmt: skip
    return replace(memory_plan, step_seconds=seconds, total_seconds=seconds * len(steps) * recipe.train.epochs)


def _steps(recipe: Recipe, examples: Sequence[Any]) -> list[list[int]]:
    from tunesmith.prompt import pack

    return pack.epoch_steps([len(example) for example in examples], recipe.train.batch, recipe.training_seed, 0)


def _step_tokens(batch: str, lengths: Sequence[int]) -> int:
    size, unit = batch.split()
    return int(size) if unit == "tokens" else int(size) * max(lengths)


def describe(setup: TrainingSetup) -> list[str]:
    """Returns the plan as lines of text."""
    memory_plan, machine = setup.plan, setup.machine
    parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in memory_plan.parts.items())
    lines = [
        f"machine: {machine.name}, {machine.precision} ({machine.why})",
        *setup.notes,
        f"memory: about {show_bytes(memory_plan.peak)} of {show_bytes(memory_plan.budget)} ({parts})",
        f"micro-batches: {memory_plan.micro_tokens} tokens; {memory_plan.why}",
    ]
    if setup.slow:
        lines.append(f"not fused: {'; '.join(setup.slow)}")
    if memory_plan.step_seconds is not None and memory_plan.total_seconds is not None:
        lines.append(
            f"time: about {show_seconds(memory_plan.step_seconds)} per step, "
            f"{show_seconds(memory_plan.total_seconds)} in total"
        )
    return lines + ([f"better: {memory_plan.better}"] if memory_plan.better else [])


def show_count(count: float) -> str:
    """Formats a number of parameters."""
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
