"""Runs inside a recipe's run: the points of a learning curve, and further trainings with other seeds.

A sub-run is a folder like that of any other run. It has the held-out rows of the whole run, so it reuses the base
model's replies; it can be resumed, and a finished one is reused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tunesmith.commands.evaluate import evaluate
from tunesmith.commands.shared import DATE, SPLIT_PARTS, TEMPLATE, Reporter
from tunesmith.commands.train import train
from tunesmith.config.recipe import Judge, Recipe
from tunesmith.errors import RunError
from tunesmith.runs.run import Run

ROW_FILES = [*(f"data/{part}.jsonl" for part in SPLIT_PARTS), "audit.json"]
BASE_REPLIES = ("base", "base-perturbed", "base-abilities")
Watch = Callable[[dict[str, Any]], None]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SubRuns:
    """What all sub-runs share: the recipe, its run, and the callbacks."""

    recipe: Recipe
    run: Run
    watch: Watch | None
    on_progress: OnProgress | None
    again: bool


def sub_runs(
    recipe: Recipe, run: Run, watch: Watch | None, on_progress: OnProgress | None, *, again: bool = False
) -> SubRuns:
    """Returns the settings of sub-runs of `run`. They ask no judge: only `tunesmith evaluate` does."""
    without_judge = recipe.evaluate.model_copy(update={"judge": Judge.model_validate({})})
    return SubRuns(recipe.model_copy(update={"evaluate": without_judge}), run, watch, on_progress, again)


def with_prefix(log: Reporter, name: str) -> Reporter:
    """Returns a reporter that begins every line with the name of the sub-run."""
    return lambda text: log(f"{name}: {text}")


def row_inputs(run: Run) -> dict[str, str]:
    """Returns the inputs of the whole run's rows, and their fingerprint."""
    return {**(run.read_fingerprints("prepare") or {})["inputs"], "the whole run's rows": run.fingerprint("prepare")}


def copy_template(run: Run, part: Run) -> list[str]:
    """Copies the date and the chat template that the whole run's rows were prepared with. Returns the files' names."""
    names = [name for name in (DATE, TEMPLATE) if (run / name).is_file()]
    for name in names:
        part.write(name, (run / name).read_bytes())
    return names


def copy_rows(work: SubRuns, part: Run, recipe: Recipe, inputs: Mapping[str, str]) -> None:
    """Copies all prepared rows of the whole run to a sub-run of `recipe`."""
    start = time.time()
    for name in ROW_FILES:
        part.write(name, (work.run / name).read_bytes())
    copied = copy_template(work.run, part)
    part.write("recipe.yaml", sub_run_recipe_text(recipe, part))
    part.write_fingerprints("prepare", inputs, [*ROW_FILES, *copied], seconds=round(time.time() - start, 1))


def sub_run_recipe_text(recipe: Recipe, part: Run) -> str:
    """Returns the recipe.yaml of a sub-run: `recipe`, named after the folder too."""
    plain = recipe.dump() | {"name": f"{recipe.name}-{part.path.name}"}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def train_and_evaluate(work: SubRuns, part: Run, log: Reporter, recipe: Recipe | None = None) -> None:
    """Trains and evaluates a sub-run, or the whole run, if necessary. A sub-run reuses the base model's replies.

    `recipe` is that of the sub-run, by default that of the whole run. Raises RunError if the adapter has other
    settings, unless `work.again` is set: then a new one is trained and the old one kept in old/.
    """
    recipe = recipe or work.recipe
    if part is not work.run and (text := sub_run_recipe_text(recipe, part)) != (part / "recipe.yaml").read_text(
        encoding="utf-8"
    ):
        part.new_recipe = text
    try:
        train(recipe, part, log, work.watch)
    except RunError:
        if not work.again:
            raise
        train(recipe, part, log, work.watch, again=True)
    if part is not work.run:
        _copy_base_replies(work.run, part)
    evaluate(recipe, part, log, work.on_progress)


def _copy_base_replies(run: Run, part: Run) -> None:
    """Copies the base model's replies from the whole run to where the sub-run looks for partial replies."""
    from tunesmith.evaluation.comparison import read_row_replies
    from tunesmith.evaluation.reply_log import ReplyLog

    run_inputs = (run.read_fingerprints("evaluate") or {})["inputs"]
    inputs = run_inputs | {"adapter": part.fingerprint("train"), "data": part.fingerprint("prepare")}
    if part.changed("evaluate", inputs) == []:
        return
    for which in BASE_REPLIES:
        if (run / f"replies/{which}.jsonl").exists():
            copied = ReplyLog(part / f"replies/{which}.part", inputs)
            for item in read_row_replies(run / f"replies/{which}.jsonl"):
                if (item.part, item.id) not in copied.replies:
                    copied.add(item.part, item.id, item.reply)
            copied.close()
