"""Fine-tunes the base model on the prepared rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.commands.plan import describe, prepare_training, require_trainable
from tunesmith.commands.shared import (
    Reporter,
    hash_data_settings,
    load_weights,
    raise_changed,
    require_same_settings,
    silent,
    training_inputs,
    training_settings,
)
from tunesmith.config.recipe import OPTIMIZERS, Recipe
from tunesmith.config.registry import packages, resolve
from tunesmith.data.conversation import read_rows
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.models.weights import Weights
from tunesmith.planning.autograd import Plan
from tunesmith.runs.run import Run, command_for_product, hash_json, is_main_process

CHECKPOINT_FORMAT = 3  # checkpoints of another format are not resumed


def train(
    recipe: Recipe,
    run: Run,
    log: Reporter = silent,
    watch: Callable[[dict[str, Any]], None] | None = None,
    *,
    again: bool = False,
) -> Path:
    """Fine-tunes on data/train.jsonl and writes adapter/. Resumes an interrupted training.

    Under torchrun all processes train this run together; only the main process writes and logs.
    """
    from tunesmith.training import distributed

    if not is_main_process():
        log, watch = silent, None
    with distributed.process_group():
        if again or run.read_fingerprints("train") is None:  # a finished adapter can be used on any machine
            require_trainable(recipe)
        with distributed.main_process_first():
            weights = load_weights(recipe, log)
        inputs = _adapter_inputs(recipe, run, weights)
        if distributed.broadcast_object(lambda: _must_train(recipe, run, inputs, log, again=again)):
            _train(recipe, run, weights, inputs, log, watch, again=again)
        return run / "adapter"


def _adapter_inputs(recipe: Recipe, run: Run, weights: Weights) -> dict[str, str]:
    """Returns the inputs of the adapter. The number of GPUs and the samples shown are not among them."""
    prepared = run.fingerprint("prepare")  # raises when the rows are not prepared
    _check_leaks(recipe, run)
    return {
        "data": prepared,
        "base": hash_json([weights.fingerprint, recipe.base.bits]),
        **training_settings(recipe, run),
        **packages(OPTIMIZERS, [recipe.train.optimizer.name]),
    }


def _must_train(recipe: Recipe, run: Run, inputs: Mapping[str, str], log: Reporter, *, again: bool) -> bool:
    """Returns whether the adapter must be trained. Raises RunError if the run has other settings or data."""
    if not again:
        require_same_settings(recipe, run)
        trained_inputs, problem = training_inputs(run)
        changed = run.changed("train", inputs)
        if changed is None and trained_inputs is not None:
            changed = [f"{name} changed" for name, value in inputs.items() if trained_inputs.get(name) != value]
        elif changed == []:
            log(f"train: up to date, {run / 'adapter'} is kept")
            return False
        raise_changed(recipe, run, problem, changed or [])
    prepared = (run.read_fingerprints("prepare") or {})["inputs"]
    current = {"data": hash_data_settings(recipe), "prompt": inputs["prompt"], "seed": inputs["seed"]}
    if changes := [name for name, value in current.items() if prepared.get(name, value) != value]:
        raise RunError(
            f"the rows were prepared with other settings: {', '.join(f'{name} changed' for name in changes)}",
            where=str(run.path),
            next="Undo the change, or run the same command with prepare instead of train first",
        )
    return True


def _check_leaks(recipe: Recipe, run: Run) -> None:
    """Raises DataError if training rows are also test rows, which makes scores meaningless."""
    leaks = run.read_json("audit.json").get("leaks")
    if leaks is None:
        raise RunError(
            "the rows were prepared by an older version",
            where=str(run.path),
            next=command_for_product("prepare", run.path),
        )
    leaking = max(leaks["prompts"], leaks.get("near_prompts", 0))
    if leaking and not recipe.data.allow_leaks:
        where = f" ({leaks['example']})" if "example" in leaks else ""
        raise DataError(
            f"{leaking} training rows have the same or nearly the same prompt as a held-out row{where}",
            where=str(run / "audit.html"),
            next="Add leak and near_leak to data.checks, or set data.allow_leaks to train anyway",
        )


def _train(
    recipe: Recipe,
    run: Run,
    weights: Weights,
    inputs: Mapping[str, str],
    log: Reporter,
    watch: Callable[[dict[str, Any]], None] | None,
    *,
    again: bool,
) -> None:
    from tunesmith.hardware import versions, watch_memory
    from tunesmith.models.build import load_model
    from tunesmith.models.count_parameters import check_loaded
    from tunesmith.prompt import pack
    from tunesmith.training import distributed
    from tunesmith.training.job import Job, Layout

    start = time.time()
    world_size = distributed.world_size()
    if world_size == 1 and recipe.train.parallel != "auto":
        log(f"train: train.parallel is {recipe.train.parallel}, but there is one process; use --gpus for several GPUs")
    setup = prepare_training(recipe, run, weights)
    memory_plan, slow, shard = distributed.broadcast_object(
        lambda: (setup.plan, setup.slow, setup.shard)
    )  # as planned on the main process
    setup = replace(setup, plan=memory_plan, slow=slow, shard=shard)
    machine, template, examples = setup.machine, setup.template, setup.examples
    if world_size > 1:
        log(f"train: {world_size} processes, each with {'a part' if shard else 'all'} of the base model")
    pack.check_batch(pack.collate(examples["train"][:2], template.tokenizer.pad_token_id), examples["train"][0].stop)
    for line in describe(setup):
        log(f"train: {line}")
    measure = watch_memory(machine.device, memory_plan.budget if recipe.train.memory != "auto" else None)
    device = "cpu" if shard and world_size > 1 else machine.device  # loaded to the GPUs in parts
    model = load_model(weights, bits=recipe.base.bits, device=device, precision=machine.precision)
    number = 4 if machine.precision == "float32" else 2
    loaded = check_loaded(setup.shape, model, bits=recipe.base.bits, bytes_per_element=number)
    if memory_plan.dense:
        model.keep_dense()
    scorer = _scorer(recipe, run, model, template, shard) if recipe.train.best == "score" else None
    sampler = _sampler(recipe, run, model, template, shard) if recipe.train.samples else None
    machine_record = {**machine.describe(), "versions": versions(), "processes": world_size}
    job = Job(
        model=model,
        tokenizer=template.tokenizer,
        train=examples["train"],
        valid=examples["valid"],
        adapter=recipe.adapter,
        settings=recipe.train.model_copy(update={"parallel": "fsdp" if shard else "ddp"}),
        seed=recipe.training_seed,
        pad=template.tokenizer.pad_token_id,
        micro_tokens=memory_plan.micro_tokens,
        recompute=memory_plan.recompute,
        precision=machine.precision,
        folder=run.path,
        inputs={
            **inputs,
            "precision of this machine": machine.precision,
            "way of writing checkpoints": str(CHECKPOINT_FORMAT),
            "base in parts": "yes" if shard else "no",
        },
        keeping=lambda: _before_checkpoint(run, machine_record),
        watcher=watch,
        layout=Layout(memory_plan.forms, memory_plan.keeps, memory_plan.chunk, memory_plan.table),
        scorer=scorer,
        sampler=sampler,
    )
    engine = resolve("tunesmith.training.engines", recipe.train.engine.name, function="train", where="train.engine")
    distributed.broadcast_object(
        lambda: _move_aside(run, log) if again else None
    )  # after all checks that need no training
    outcome = engine(job, **recipe.train.engine.options)
    if is_main_process():
        _save(run, memory_plan, outcome, measure(), loaded, inputs, weights, round(time.time() - start, 1), log)
    distributed.barrier()


def _before_checkpoint(run: Run, machine: Mapping[str, Any]) -> None:
    """Writes recipe.yaml and machine.json, which a checkpoint depends on, before the first checkpoint."""
    run.write_recipe()
    run.write_json("machine.json", machine)


def _scorer(recipe: Recipe, run: Run, model: Any, template: Any, shard: bool) -> Callable[[Any], float]:
    """Returns a function for the primary score of replies to validation rows, where more is better.

    Raises RecipeError if replies do not have this score.
    """
    from tunesmith.evaluation.comparison import sample_rows, score_row
    from tunesmith.evaluation.score import TrainingAnswers

    settings = recipe.evaluate
    parts = sample_rows({"valid": read_rows(run / "data/valid.jsonl")}, recipe.train.best_rows, recipe.seed)
    rows = {row.id: row for row in parts["valid"]}
    index = TrainingAnswers(tuple(row.answer for row in read_rows(run / "data/train.jsonl")))
    write = _reply_generator(recipe, model, template, "train.best", shard=shard)

    def scored(fused: Any) -> float:
        scores = [
            score_row(rows[item.id], item, settings.metrics, index).get(settings.primary)
            for item in write(fused, parts)
        ]
        values = [score_value for score_value in scores if score_value is not None]
        if not values:
            advice = "Set it to loss, or evaluate.primary to a score of replies"
            raise RecipeError(f"'{settings.primary}' is not a score of replies", where="train.best", next=advice)
        mean = sum(score_value.value for score_value in values) / len(values)
        return -mean if values[0].better == "lower" else mean

    return scored


def _sampler(recipe: Recipe, run: Run, model: Any, template: Any, shard: bool) -> Callable[[Any], list[dict[str, str]]]:
    """Returns a function that generates replies to some validation rows. Raises RecipeError if the engine cannot."""
    from tunesmith.evaluation.comparison import sample_rows

    parts = sample_rows({"valid": read_rows(run / "data/valid.jsonl")}, recipe.train.samples, recipe.seed)
    prompts = {row.id: row.prompt[-1].text for row in parts["valid"]}
    write = _reply_generator(recipe, model, template, "train.samples", shard=shard)

    def sampled(fused: Any) -> list[dict[str, str]]:
        return [{"prompt": prompts[item.id], "reply": item.reply.text} for item in write(fused, parts)]

    return sampled


def _reply_generator(
    recipe: Recipe, model: Any, template: Any, setting: str, *, shard: bool
) -> Callable[[Any, Any], list[Any]]:
    """Returns a function that generates replies between training steps. Raises RecipeError if the engine cannot."""
    from tunesmith.evaluation.comparison import generate_replies
    from tunesmith.generation.decoder import Decoder
    from tunesmith.generation.from_weights import WeightsModel

    if recipe.train.engine.name != "native" or shard:
        how = "fsdp" if shard else f"engine {recipe.train.engine.name}"
        advice = "Set it to loss" if setting == "train.best" else "Set it to 0"
        raise RecipeError(f"{how} cannot generate replies between training steps", where=setting, next=advice)
    text = WeightsModel(model, template, tuned=True, stop=recipe.prompt.stop)
    most, batch = recipe.evaluate.max_new_tokens, recipe.evaluate.batch

    def write(fused: Any, parts: Any) -> list[Any]:
        if fused is not None and (model.decoder is None or model.decoder.fused is not fused):
            model.decoder = Decoder(model, fused)
        return generate_replies(
            text, parts, max_new_tokens=most, batch=batch, losses=None, on_progress=lambda count, total: None
        )

    return write


def _save(
    run: Run,
    plan: Plan,
    outcome: Any,
    measured: int,
    loaded: dict[str, dict[str, int]],
    inputs: Mapping[str, str],
    weights: Weights,
    seconds: float,
    log: Reporter,
) -> None:
    """Writes the adapter and plan.json, and records that training is finished."""
    from tunesmith.models.adapter import write_adapter
    from tunesmith.models.architecture import architecture_from_weights
    from tunesmith.runs.run import atomic_folder

    with atomic_folder(run / "adapter") as folder:
        write_adapter(folder, outcome.config, outcome.tensors)
    per_step = outcome.summary["seconds"] / outcome.summary["steps"] if outcome.summary.get("seconds") else None
    measurements = {"measured": measured, "measured_step_seconds": per_step, "base_bytes": loaded}
    measurements["loader"] = architecture_from_weights(
        weights
    ).loader  # the transformers class that loads the base model
    run.write_recipe()
    run.write_json("plan.json", {**plan.describe(), **measurements, "trained": outcome.trained})
    run.write_fingerprints(
        "train", inputs, ["adapter"], seconds=seconds, summary=outcome.summary, weights=weights.fingerprint
    )
    log(f"train: {outcome.summary['steps']} steps in {seconds:.0f} s. The adapter is {run / 'adapter'}")


ADAPTER_PRODUCTS = (
    "checkpoints", "adapter", "journal.jsonl", "tensorboard", "replies", "reviews", "scores.json", "judge.json",
    "reviews.json", "report.html", "card.md", "curve.json",
    "curve.html",
)  # fmt: skip


def _move_aside(run: Run, log: Reporter) -> None:
    """Moves an adapter or its checkpoints, and everything derived from them, to old/."""
    if run.read_fingerprints("train") is None and not (run / "checkpoints").exists():
        return
    aside = run / f"old/{time.strftime('%Y%m%d-%H%M%S')}"
    aside.mkdir(parents=True)
    for name in ADAPTER_PRODUCTS:
        if (run / name).exists():
            (run / name).rename(aside / name)
    for product in ("train", "evaluate", "judge", "review", "report", "card", "curve"):
        (run / f".fingerprints/{product}.json").unlink(missing_ok=True)
    log(f"train: the old adapter and its scores are in {aside}")
