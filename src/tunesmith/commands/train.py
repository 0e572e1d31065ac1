"""The verb that trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.commands.plan import describe, refuse_untrainable, set_up
from tunesmith.commands.shared import (
    Say,
    began_with,
    load_weights,
    prepared_with,
    raise_changed,
    refuse_changed,
    silent,
    trained_with,
)
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import find
from tunesmith.data.conversation import read_rows
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.models.weights import Weights
from tunesmith.planning.autograd import Plan
from tunesmith.runs.run import Run, first, hash_plain, how_to_make

CHECKPOINTS = 3  # how a checkpoint is written; one of another kind is not read


def train(
    recipe: Recipe,
    run: Run,
    say: Say = silent,
    watch: Callable[[dict[str, Any]], None] | None = None,
    *,
    again: bool = False,
) -> Path:
    """Fine-tunes on data/train.jsonl and writes adapter/. Goes on where a stopped or killed run was.

    Under torchrun all its processes train this one run together, and the first of them writes and says.
    """
    from tunesmith.training import distributed

    if not first():
        say, watch = silent, None
    with distributed.joined():
        if again or run.read_seal("train") is None:  # a finished adapter is served on any machine
            refuse_untrainable(recipe)
        with distributed.in_turn():
            weights = load_weights(recipe, say)
        made_from = _made_from(recipe, run, weights)
        if distributed.from_first(lambda: _begin(recipe, run, made_from, say, again=again)):
            _train(recipe, run, weights, made_from, say, watch, again=again)
        return run / "adapter"


def _made_from(recipe: Recipe, run: Run, weights: Weights) -> dict[str, str]:
    """What the adapter depends on. Over how many cards it is trained, and who looks on, is not among it."""
    prepared = run.fingerprint("prepare")  # raises when the rows are not prepared
    _refuse_leaks(recipe, run)
    return {
        "data": prepared,
        "base": hash_plain([weights.fingerprint, recipe.base.bits]),
        **trained_with(recipe, run),
    }


def _begin(recipe: Recipe, run: Run, made_from: Mapping[str, str], say: Say, *, again: bool) -> bool:
    """Whether there is something to train. Raises RunError where that is not what the run has."""
    if not again:
        refuse_changed(recipe, run)
        began, what = began_with(run)
        changed = run.changed("train", made_from)
        if changed is None and began is not None:
            changed = [f"{name} changed" for name, value in made_from.items() if began.get(name) != value]
        elif changed == []:
            say(f"train: fresh, {run / 'adapter'} is kept")
            return False
        raise_changed(run, what, changed or [])
    prepared = (run.read_seal("prepare") or {})["made_from"]
    current = {"data": prepared_with(recipe), "prompt": made_from["prompt"], "seed": made_from["seed"]}
    if other := [name for name, value in current.items() if prepared.get(name, value) != value]:
        raise RunError(
            f"the rows were prepared with something else: {', '.join(f'{name} changed' for name in other)}",
            where=str(run.path),
            next="Undo the change, or give the same command with prepare in the place of train first",
        )
    return True


def _refuse_leaks(recipe: Recipe, run: Run) -> None:
    """Raises DataError when training rows stand in the test, where scores would be memory; RunError if none counted."""
    found = run.read_json("audit.json").get("leaks")
    if found is None:
        raise RunError(
            "the rows were prepared by an older version", where=str(run.path), next=how_to_make("prepare", run.path)
        )
    leaking = max(found["prompts"], found.get("near_prompts", 0))
    if leaking and not recipe.data.allow_leaks:
        where = f" ({found['example']})" if "example" in found else ""
        raise DataError(
            f"{leaking} training rows have a prompt that is also, or nearly, a held-out row's{where}",
            where=str(run / "audit.html"),
            next="Add leak and near_leak to data.checks, or set data.allow_leaks to train all the same",
        )


def _train(
    recipe: Recipe,
    run: Run,
    weights: Weights,
    made_from: Mapping[str, str],
    say: Say,
    watch: Callable[[dict[str, Any]], None] | None,
    *,
    again: bool,
) -> None:
    from tunesmith.hardware import versions, watch_memory
    from tunesmith.models.build import load
    from tunesmith.models.shape import check_loaded
    from tunesmith.prompt import pack
    from tunesmith.training import distributed
    from tunesmith.training.job import Job, Layout

    began = time.time()
    many = distributed.size()
    if many == 1 and recipe.train.spread != "auto":
        say(f"train: train.spread is {recipe.train.spread} and one process trains; give --gpus to train on several")
    setup = set_up(recipe, run, weights)
    made, slow, shard = distributed.from_first(
        lambda: (setup.plan, setup.slow, setup.shard)
    )  # as the first one's card has
    setup = replace(setup, plan=made, slow=slow, shard=shard)
    machine, template, examples = setup.machine, setup.template, setup.examples
    if many > 1:
        say(f"train: {many} processes train together, {'each with a part' if shard else 'each with all'} of the base")
    pack.check_batch(pack.collate(examples["train"][:2], template.tokenizer.pad_token_id), examples["train"][0].stop)
    for line in describe(setup):
        say(f"train: {line}")
    measure = watch_memory(machine.device, made.budget if recipe.train.memory != "auto" else None)
    device = "cpu" if shard and many > 1 else machine.device  # it reaches the cards in parts
    model = load(weights, bits=recipe.base.bits, device=device, precision=machine.precision)
    number = 4 if machine.precision == "float32" else 2
    loaded = check_loaded(setup.shape, model, bits=recipe.base.bits, bytes_per_element=number)
    if made.dense:
        model.keep_dense()
    scorer = _scorer(recipe, run, model, template, shard) if recipe.train.best == "score" else None
    sampler = _sampler(recipe, run, model, template, shard) if recipe.train.samples else None
    begun = {**machine.describe(), "versions": versions(), "processes": many}
    job = Job(
        model=model,
        tokenizer=template.tokenizer,
        train=examples["train"],
        valid=examples["valid"],
        adapter=recipe.adapter,
        settings=recipe.train.model_copy(update={"spread": "fsdp" if shard else "ddp"}),
        seed=recipe.seed,
        pad=template.tokenizer.pad_token_id,
        micro_tokens=made.micro_tokens,
        recompute=made.recompute,
        precision=machine.precision,
        folder=run.path,
        made_from={
            **made_from,
            "precision of this machine": machine.precision,
            "way of writing checkpoints": str(CHECKPOINTS),
            "base in parts": "yes" if shard else "no",
        },
        keeping=lambda: _begun(run, begun),
        watcher=watch,
        layout=Layout(made.forms, made.keeps, made.chunk, made.table),
        scorer=scorer,
        sampler=sampler,
    )
    engine = find("tunesmith.training.engines", recipe.train.engine.name, function="train", where="train.engine")
    distributed.from_first(
        lambda: _set_aside(run, say) if again else None
    )  # nothing that can be known stands in the way now
    outcome = engine(job, **recipe.train.engine.options)
    if first():
        _keep(run, made, outcome, measure(), loaded, made_from, weights, round(time.time() - began, 1), say)
    distributed.wait()


def _begun(run: Run, machine: Mapping[str, Any]) -> None:
    """Lays down what a checkpoint depends on, before the first one is written."""
    run.keep_recipe()
    run.write_json("machine.json", machine)


def _scorer(recipe: Recipe, run: Run, model: Any, template: Any, shard: bool) -> Callable[[Any], float]:
    """The primary score of replies to some validation rows, more being better. Raises RecipeError where none is had."""
    from tunesmith.evaluation.comparison import choose, score
    from tunesmith.evaluation.score import Known

    wish = recipe.evaluate
    parts = choose({"valid": read_rows(run / "data/valid.jsonl")}, recipe.train.best_rows, recipe.seed)
    rows = {row.id: row for row in parts["valid"]}
    known = Known(tuple(row.answer for row in read_rows(run / "data/train.jsonl")))
    write = _writer(recipe, model, template, "train.best", shard=shard)

    def scored(fused: Any) -> float:
        made = [score(rows[item.id], item, wish.metrics, known).get(wish.primary) for item in write(fused, parts)]
        values = [each for each in made if each is not None]
        if not values:
            advice = "Set it to loss, or evaluate.primary to a score that replies have"
            raise RecipeError(f"'{wish.primary}' cannot be told of replies alone", where="train.best", next=advice)
        mean = sum(each.value for each in values) / len(values)
        return -mean if values[0].better == "lower" else mean

    return scored


def _sampler(recipe: Recipe, run: Run, model: Any, template: Any, shard: bool) -> Callable[[Any], list[dict[str, str]]]:
    """Prompts of some validation rows with the replies of the moment. Raises RecipeError where none can be written."""
    from tunesmith.evaluation.comparison import choose

    parts = choose({"valid": read_rows(run / "data/valid.jsonl")}, recipe.train.samples, recipe.seed)
    asked = {row.id: row.prompt[-1].text for row in parts["valid"]}
    write = _writer(recipe, model, template, "train.samples", shard=shard)

    def sampled(fused: Any) -> list[dict[str, str]]:
        return [{"prompt": asked[item.id], "reply": item.reply.text} for item in write(fused, parts)]

    return sampled


def _writer(recipe: Recipe, model: Any, template: Any, wish: str, *, shard: bool) -> Callable[[Any, Any], list[Any]]:
    """Answers rows with the model as it is between two steps. Raises RecipeError for engines that cannot."""
    from tunesmith.evaluation.comparison import answer
    from tunesmith.generation.decoder import Decoder
    from tunesmith.generation.from_weights import FromWeights

    if recipe.train.engine.name != "native" or shard:
        how = "a base in parts (fsdp)" if shard else f"engine {recipe.train.engine.name}"
        advice = "Set it to loss" if wish == "train.best" else "Set it to 0"
        raise RecipeError(f"{how} cannot write replies between its steps", where=wish, next=advice)
    text = FromWeights(model, template, tuned=True, stop=recipe.prompt.stop)
    most, batch = recipe.evaluate.max_new_tokens, recipe.evaluate.batch

    def write(fused: Any, parts: Any) -> list[Any]:
        if fused is not None and (model.decoder is None or model.decoder.fused is not fused):
            model.decoder = Decoder(model, fused)
        return answer(text, parts, max_new_tokens=most, batch=batch, losses=None, on_progress=lambda done, of: None)

    return write


def _keep(
    run: Run,
    made: Plan,
    outcome: Any,
    measured: int,
    loaded: dict[str, dict[str, int]],
    made_from: Mapping[str, str],
    weights: Weights,
    seconds: float,
    say: Say,
) -> None:
    """Writes what came out."""
    from tunesmith.models.adapter import write_adapter
    from tunesmith.models.architecture import architecture
    from tunesmith.runs.run import new_folder

    with new_folder(run / "adapter") as folder:
        write_adapter(folder, outcome.config, outcome.tensors)
    per_step = outcome.summary["seconds"] / outcome.summary["steps"] if outcome.summary.get("seconds") else None
    seen = {"measured": measured, "measured_step_seconds": per_step, "base_bytes": loaded}
    seen["loader"] = architecture(weights).loader  # the class that reads the base for the adapter
    run.keep_recipe()
    run.write_json("plan.json", {**made.describe(), **seen, "trained": outcome.trained})
    run.seal("train", made_from, ["adapter"], seconds=seconds, summary=outcome.summary, weights=weights.fingerprint)
    say(f"train: {outcome.summary['steps']} steps in {seconds:.0f} s. The adapter is {run / 'adapter'}")


OF_AN_ADAPTER = (
    "checkpoints", "adapter", "journal.jsonl", "tensorboard", "replies", "reviews", "scores.json", "judge.json",
    "reviews.json", "report.html", "card.md", "curve.json",
    "curve.html",
)  # fmt: skip


def _set_aside(run: Run, say: Say) -> None:
    """Moves an adapter, or half of one, and what was made of it into old/."""
    if run.read_seal("train") is None and not (run / "checkpoints").exists():
        return
    aside = run / f"old/{time.strftime('%Y%m%d-%H%M%S')}"
    aside.mkdir(parents=True)
    for name in OF_AN_ADAPTER:
        if (run / name).exists():
            (run / name).rename(aside / name)
    for product in ("train", "evaluate", "judge", "review", "report", "card", "curve"):
        (run / f".seals/{product}.json").unlink(missing_ok=True)
    say(f"train: the old adapter and scores are now in {aside}")
