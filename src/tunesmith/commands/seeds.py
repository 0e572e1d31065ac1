"""Trains a recipe several times with different seeds, and judges the recipe over all trainings.

The first training is the recipe's own run. Each other one is a sub-run in seeds/2, seeds/3 and so on that differs in
train.seed alone.
"""

from __future__ import annotations

from tunesmith.commands.shared import Reporter, evaluated_groups, is_up_to_date, silent
from tunesmith.commands.sub_runs import (
    OnProgress,
    SubRuns,
    Watch,
    copy_rows,
    row_inputs,
    sub_runs,
    train_and_evaluate,
    with_prefix,
)
from tunesmith.config.recipe import Recipe
from tunesmith.errors import RecipeError
from tunesmith.evaluation.over_trainings import Training, compare_trainings
from tunesmith.runs.run import Run


def check_seeds(seeds: int) -> None:
    """Raises RecipeError unless `seeds` is a number of trainings."""
    if seeds < 1:
        raise RecipeError(f"{seeds} is not a number of trainings", where="--seeds", next="Give 1 or more, such as 3")


def train_seeds(
    recipe: Recipe,
    run: Run,
    seeds: int,
    log: Reporter = silent,
    watch: Watch | None = None,
    on_progress: OnProgress | None = None,
    *,
    again: bool = False,
) -> None:
    """Trains and evaluates the recipe `seeds` - 1 more times, each with its own train.seed; writes seeds.json.

    The recipe's own run must be evaluated. All trainings have its prepared rows and its base model's replies. Stopped
    trainings are resumed, and those that are up to date are skipped. With `again`, trainings with other settings are
    repeated and the old ones kept in old/. Raises RunError if a training has other settings or another process is using
    it.
    """
    work = sub_runs(recipe, run, watch, on_progress, again=again)
    trainings = [Training(".", recipe.training_seed, run.read_json("scores.json"))]
    for number in range(2, seeds + 1):
        log_line = with_prefix(log, f"training {number} of {seeds}")
        trainings.append(_train_seed(work, number, recipe.training_seed + number - 1, log_line))
    inputs = {training.run: Run(run / training.run).fingerprint("evaluate") for training in trainings}
    if not is_up_to_date(run, "seeds", inputs, log):
        run.write_json("seeds.json", compare_trainings(trainings, evaluated_groups(recipe, run), seed=recipe.seed))
        run.write_fingerprints("seeds", inputs, ["seeds.json"])
    log(f"seeds: {run.read_json('seeds.json')['verdict']}")


def _train_seed(work: SubRuns, number: int, seed: int, log: Reporter) -> Training:
    """Trains and evaluates one sub-run with the given train.seed."""
    folder = f"seeds/{number}"
    part = Run(work.run / folder)
    settings = work.recipe.train.model_copy(update={"seed": seed})
    recipe = work.recipe.model_copy(update={"train": settings})
    with part.lock():
        inputs = row_inputs(work.run)
        if not is_up_to_date(part, "prepare", inputs, log):
            copy_rows(work, part, recipe, inputs)
        log(f"train.seed {seed}, in {part.path}")
        train_and_evaluate(work, part, log, recipe)
        return Training(folder, seed, part.read_json("scores.json"))
