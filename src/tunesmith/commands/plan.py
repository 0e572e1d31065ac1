"""The verb that says beforehand what fits and how long it takes, and what training takes over from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tunesmith.commands.shared import Say, load_template_of, load_weights, silent
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import read_rows
from tunesmith.errors import RecipeError, ResourceError, TunesmithError, raise_all
from tunesmith.models.architecture import Architecture, architecture
from tunesmith.models.shape import ModelShape
from tunesmith.models.weights import Weights
from tunesmith.planning.autograd import Plan, show_bytes
from tunesmith.runs.run import Run, processes

SAMPLE = 64  # steps that the plan packs to see what a micro-batch size makes of them


@dataclass(frozen=True)
class Setup:
    """What is known before the model is loaded; `slow` are the reasons why the decoder is not fused.

    With `shard` each process keeps a part of the base.
    """

    machine: Any
    template: Any
    examples: dict[str, list[Any]]
    plan: Plan
    slow: list[str]
    shape: ModelShape
    shard: bool = False
    notes: tuple[str, ...] = ()  # on the template, and on what is loaded and adapted


def plan(recipe: Recipe, run: Run, say: Say = silent) -> Plan:
    """What a fine-tune of the prepared rows would need on this machine; loads no weights and writes nothing.

    Raises RunError when the rows are not prepared, ResourceError when nothing fits, and what `refuse_untrainable` does.
    """
    refuse_untrainable(recipe)
    run.fingerprint("prepare")
    made = set_up(recipe, run, load_weights(recipe, say))
    for line in describe(made):
        say(line)
    return made.plan


def check_devices(recipe: Recipe, machine: Any) -> list[TunesmithError]:
    """Returns what this `machine` (a hardware.Machine) or the recipe's engine cannot do: GPUs, precision, memory.

    Which optimizers a device has is said by train.checks.check_optimizer.
    """
    from tunesmith.hardware import precision_error
    from tunesmith.models.build import unfused_adapter
    from tunesmith.planning.autograd import parse_bytes
    from tunesmith.training.validation import check_engine

    train = recipe.train
    errors = check_engine(recipe)
    has_bfloat16 = machine.device == "cpu" or machine.precision != "float16"  # what auto chose, or what was checked
    kind = precision_error(train.precision, machine.device, machine.name, bfloat16=has_bfloat16, eight=machine.eight)
    if kind is not None:
        errors.append(kind)
    slow = unfused_adapter(recipe.adapter)
    if train.precision == "fast" and kind is None and train.engine.name == "native" and slow:
        errors.append(_fast_error(slow))
    if train.memory != "auto" and parse_bytes(train.memory) > machine.memory_total:
        what = f"the budget of {train.memory} is more than {machine.name} has, {show_bytes(machine.memory_total)}"
        errors.append(ResourceError(what, where="train.memory", next="Lower it, or set it to auto"))
    return errors + _check_gpus(recipe, machine)


def _check_gpus(recipe: Recipe, machine: Any) -> list[TunesmithError]:
    """Errors when there are more processes than GPUs, or processes that the engine cannot use."""
    many, here = processes(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if many == 1:
        if recipe.train.spread != "auto" and machine.gpus == 1 and recipe.train.engine.name == "native":
            what = f"train.spread {recipe.train.spread} needs several GPUs, and this machine has one"
            return [RecipeError(what, where="train.spread", next="Set it to auto")]
        return []
    errors: list[TunesmithError] = []
    if recipe.train.engine.name != "native":
        what = f"engine {recipe.train.engine.name} trains in one process, and torchrun started {many}"
        advice = "Set it to native, or start without --gpus and torchrun"
        errors.append(RecipeError(what, where="train.engine", next=advice))
    if machine.device == "cuda" and here > machine.gpus > 0:
        what = f"{here} processes were started on a machine with {machine.gpus} GPUs"
        errors.append(ResourceError(what, where="torchrun", next=f"Give --gpus {machine.gpus}"))
    return errors


def _fast_error(slow: Sequence[str]) -> RecipeError:
    what = f"8-bit products are those of the fused decoder, which cannot be used: {'; '.join(slow)}"
    return RecipeError(what, where="train.precision", next="Set it to auto")


def check_training(recipe: Recipe) -> list[TunesmithError]:
    """Returns the errors of `check_devices` and `check_optimizer` for the machine that this process runs on."""
    from tunesmith.hardware import look
    from tunesmith.training.validation import check_optimizer

    machine, train = look(), recipe.train
    errors = check_devices(recipe, machine)
    return errors + check_optimizer(train.optimizer.name, train.optimizer.options, machine.device, train.engine.name)


def refuse_untrainable(recipe: Recipe) -> None:
    """Raises the errors of `check_training`."""
    raise_all(check_training(recipe))


def set_up(recipe: Recipe, run: Run, weights: Weights) -> Setup:
    """Reads the run's rows as tokens, looks at the machine and plans.

    Raises ResourceError when nothing fits, and for a base or an adapter that cannot be trained what `check_adapter` of
    models/build.py says.
    """
    from tunesmith.hardware import look
    from tunesmith.models.build import check_adapter
    from tunesmith.models.fused_config import fused_layers
    from tunesmith.models.shape import shape_of
    from tunesmith.prompt.tokens import encode

    engine, spread = recipe.train.engine.name, recipe.train.spread
    raise_all(check_adapter(recipe.adapter, weights, engine=engine, spread=spread))
    machine = look(recipe.train.precision)
    said: list[str] = []
    template = load_template_of(recipe, weights, run, said.append)
    examples = {
        part: [encode(row, template, recipe.prompt.learn) for row in read_rows(run / f"data/{part}.jsonl")]
        for part in ("train", "valid")
    }
    _check_validation(recipe, len(examples["valid"]))
    base = architecture(weights)
    slow, shape = _slow(recipe, base), shape_of(base)
    layers = [] if slow else fused_layers(base.config.to_dict())
    made, why = _planned(recipe, machine, shape, examples, fused=layers)
    if recipe.train.precision == "fast" and (slow or why):
        raise _fast_error([*slow, *why])
    notes = (*said, *_notes(recipe, base, shape))
    return Setup(machine, template, examples, made, [*slow, *why], shape, shard=bool(why), notes=notes)


def _notes(recipe: Recipe, model: Architecture, shape: ModelShape) -> list[str]:
    """What is loaded and what is adapted, for people."""
    from tunesmith.models.shape import planned_trained

    groups = ", ".join(f"{name} {show_count(many)}" for name, many in shape.counts.items() if many)
    lines = [f"base: {show_count(shape.parameters)} parameters ({groups})"]
    lines += [f"base: {model.note}"] if model.note else []
    layers, experts = model.covered(recipe.adapter.layers, recipe.adapter.experts)
    names = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
    updated = (
        f"{show_count(planned_trained(model, recipe.adapter))} parameters on {len(layers)} linear layers ({names})"
    )
    updated += f" and the experts of {len({name.rpartition('.')[0] for name in experts})} layers" if experts else ""
    left = ["the head"] + (["routers"] if shape.experts else [])
    left += ["experts"] if shape.experts and not experts else []
    lines.append(f"adapter: {updated}; without an update: {', '.join(left)}")
    return lines


def _check_validation(recipe: Recipe, rows: int) -> None:
    """Raises RecipeError for a setting that needs validation rows where there are none."""
    train = recipe.train
    wishes = (("patience", train.patience), ("best", train.best == "score"), ("samples", train.samples))
    if named := [name for name, wish in wishes if wish and not rows]:
        raise RecipeError(
            f"train.{named[0]} needs validation rows, and there are none",
            where=f"train.{named[0]}",
            next="Raise data.split.valid and prepare again, or leave the setting out",
        )


def _planned(
    recipe: Recipe, machine: Any, shape: Any, examples: dict[str, list[Any]], *, fused: Sequence[Any]
) -> tuple[Plan, list[str]]:
    """On several cards the base whole on each, or in parts and the reason why: it does not fit, or should not.

    `fused` is the attention of each layer, empty where the decoder is not fused.
    """
    from tunesmith.training.distributed import size

    many = size()
    why = f"train.spread is fsdp, {many} processes"
    if recipe.train.spread != "fsdp":
        make = partial(_fused_plan, layers=fused) if fused else _autograd_plan
        try:
            return make(recipe, machine, shape, examples), []
        except ResourceError:
            if many == 1 or recipe.train.spread == "ddp":
                raise
        why = f"the base does not fit one card, so each of {many} keeps a part of it (fsdp)"
    return _autograd_plan(recipe, machine, shape, examples, shards=many), [why]


def _slow(recipe: Recipe, base: Architecture) -> list[str]:
    """Why the fused decoder cannot be used, for people."""
    from tunesmith.models.build import unfused_adapter
    from tunesmith.models.fused_config import unfused_config

    if recipe.train.engine.name != "native":
        return [f"engine {recipe.train.engine.name} goes its own way"]
    found = unfused_config(base.config.to_dict()) + unfused_adapter(recipe.adapter)
    pissa = recipe.adapter.start.name == "pissa"
    return found + (["adapter.start pissa takes its start from the base"] if pissa else [])


def _fused_plan(
    recipe: Recipe, machine: Any, shape: Any, examples: dict[str, list[Any]], *, layers: Sequence[Any]
) -> Plan:
    from tunesmith.hardware import measure
    from tunesmith.planning.fused import Wish, Work, fit
    from tunesmith.training.distributed import divided, size

    adapter, train = recipe.adapter, recipe.train
    wish = Wish(
        bits=recipe.base.bits,
        rank=adapter.rank,
        layers=adapter.layers if isinstance(adapter.layers, str) else tuple(adapter.layers),
        optimizer=train.optimizer.name,
        fast=train.precision == "fast",
        recompute=train.recompute,
    )
    steps = _steps(recipe, examples["train"])
    lengths = [len(example) for example in examples["train"]]
    parts = [tuple(lengths[row] for row in part) for rows in steps for part in divided(rows, lengths, size())[:1]]
    sample = sorted(parts, key=sum)[-1:] + parts[:SAMPLE]  # the largest step is among them
    every = [example for part in examples.values() for example in part]
    learnt = sum(sum(example.learnt) for example in every) / sum(map(len, every))
    work = Work(tuple(sample), max(map(len, every)), len(steps) * train.epochs, learnt)
    return fit(shape, machine, measure(machine), work, wish, train.memory, layers)


def _autograd_plan(
    recipe: Recipe, machine: Any, shape: Any, examples: dict[str, list[Any]], *, shards: int = 1
) -> Plan:
    from tunesmith.planning.autograd import plan as by_arithmetic
    from tunesmith.training.distributed import size

    lengths = [len(example) for part in examples.values() for example in part]
    made = by_arithmetic(
        shape,
        machine,
        bits=recipe.base.bits,
        rank=recipe.adapter.rank,
        layers=recipe.adapter.layers,
        experts=recipe.adapter.experts,
        optimizer=recipe.train.optimizer.name,
        longest=max(lengths),
        step_tokens=-(-_step_tokens(recipe.train.batch, lengths) // size()),
        shards=shards,
        memory=recipe.train.memory,
        recompute=recipe.train.recompute,
        pissa=recipe.adapter.start.name == "pissa",
        dora=recipe.adapter.dora,
        train_also=recipe.adapter.train_also,
    )
    return made if shards > 1 else _with_time(recipe, machine, shape, examples["train"], made)


def _with_time(recipe: Recipe, machine: Any, shape: Any, examples: Sequence[Any], made: Plan) -> Plan:
    """The plan with the seconds of a step and of the whole, from the micro-batches that some steps will have."""
    from tunesmith.hardware import measure
    from tunesmith.planning.step_time import MicroBatch, autograd_seconds
    from tunesmith.prompt.pack import micro_batches
    from tunesmith.training.autograd_step import OVERHEAD
    from tunesmith.training.distributed import divided, size

    lengths = [len(example) for example in examples]
    learnt = [sum(example.learnt[1:]) for example in examples]
    steps = _steps(recipe, examples)
    sample = []
    for rows in steps[:SAMPLE]:
        own = divided(rows, lengths, size())[0]
        parts = micro_batches(own, lengths, made.micro_tokens, overhead=OVERHEAD[machine.device])
        longest = [max(lengths[row] for row in part) for part in parts]
        sample.append(
            [
                MicroBatch(len(part) * most, most, sum(learnt[row] for row in part))
                for part, most in zip(parts, longest, strict=True)
            ]
        )
    seconds = autograd_seconds(
        shape, measure(machine), machine.device, sample,
        bits=recipe.base.bits, rank=recipe.adapter.rank, number=4 if machine.precision == "float32" else 2,
        recompute=made.recompute, dense=made.dense,
    )  # fmt: skip
    return replace(made, step_seconds=seconds, total_seconds=seconds * len(steps) * recipe.train.epochs)


def _steps(recipe: Recipe, examples: Sequence[Any]) -> list[list[int]]:
    from tunesmith.prompt import pack

    return pack.steps([len(example) for example in examples], recipe.train.batch, recipe.seed, 0)


def _step_tokens(batch: str, lengths: Sequence[int]) -> int:
    size, unit = batch.split()
    return int(size) if unit == "tokens" else int(size) * max(lengths)


def describe(setup: Setup) -> list[str]:
    """The plan in lines for people."""
    made, machine = setup.plan, setup.machine
    parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in made.parts.items())
    lines = [
        f"machine: {machine.name}, {machine.precision} ({machine.why})",
        *setup.notes,
        f"memory: about {show_bytes(made.peak)} of {show_bytes(made.budget)} ({parts})",
        f"micro-batches: {made.micro_tokens} tokens; {made.why}",
    ]
    if setup.slow:
        lines.append(f"not fused: {'; '.join(setup.slow)}")
    if made.step_seconds is not None and made.total_seconds is not None:
        lines.append(f"time: about {show_seconds(made.step_seconds)} a step, {show_seconds(made.total_seconds)} in all")
    return lines + ([f"better: {made.better}"] if made.better else [])


def show_count(many: float) -> str:
    """A number of parameters for people."""
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if many >= size:
            return f"{many / size:.3g} {unit}"
    return f"{many:.0f}"


def show_seconds(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
