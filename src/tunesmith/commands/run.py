"""Runs all stages of a recipe: check, prepare, train, evaluate, export, report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tunesmith.commands.check import CheckResult, check
from tunesmith.commands.evaluate import evaluate
from tunesmith.commands.export import check_export, export
from tunesmith.commands.prepare import prepare
from tunesmith.commands.report import report
from tunesmith.commands.seeds import check_seeds, train_seeds
from tunesmith.commands.shared import Reporter, load_recipe_template, load_weights, require_same_rows, silent
from tunesmith.commands.train import train
from tunesmith.config.recipe import Recipe
from tunesmith.errors import Paused, TunesmithError, raise_all
from tunesmith.runs.run import Run

Training = Callable[[], AbstractContextManager[Callable[[dict[str, Any]], None]]]
Answering = Callable[[str], AbstractContextManager[Callable[[str, int, int], None]]]


def run_stages(
    recipe: Recipe,
    run: Run,
    log: Reporter = silent,
    *,
    on_check: Callable[[CheckResult], None],
    training: Training,
    answering: Answering,
    again: bool = False,
    seeds: int = 1,
    command: str = "",
) -> TunesmithError | None:
    """Runs the stages that are not up to date. Returns the error of a failed export, after the report is written.

    `training()` and `answering(command)` show the progress of training and of generated replies. With `again` a new
    adapter is trained and the old one is kept in old/. With `seeds` above 1 the recipe is then trained so many times in
    all, with different seeds, and judged over all trainings; only the first adapter is exported. Raises what the other
    stages raise.
    """
    check_seeds(seeds)
    if not again:
        require_same_rows(recipe, run)
    prepared = run.read_fingerprints("prepare") is not None
    if not prepared:
        on_check(check(recipe, log, run))
    prepare(recipe, run, log)
    if prepared:
        _check_export(recipe, run, log)
    with training() as watch:
        train(recipe, run, log, watch, again=again)
    with answering("evaluate") as on_progress:
        evaluate(recipe, run, log, on_progress)
    failure = None
    try:
        with answering("export") as on_progress:
            export(recipe, run, log, on_progress)
    except Paused:
        raise
    except TunesmithError as error:
        failure = error
    report(recipe, run, log, command=command)
    if seeds > 1:
        with training() as watch, answering("evaluate") as on_progress:
            train_seeds(recipe, run, seeds, log, watch, on_progress, again=again)
        report(recipe, run, log, command=command)
    return failure


def _check_export(recipe: Recipe, run: Run, log: Reporter) -> None:
    """Raises what would stop the export later, before anything is trained."""
    if recipe.export.files and run.read_fingerprints("train") is None:
        weights = load_weights(recipe, log)
        raise_all(check_export(recipe, weights, load_recipe_template(recipe, weights, run), run))
