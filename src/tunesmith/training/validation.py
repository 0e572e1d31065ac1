"""What an engine or an optimizer cannot do with a recipe, as errors, before any work starts."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import check_options, entries, missing_extra, nearest, resolve
from tunesmith.errors import RecipeError, TunesmithError

OPTIMIZERS = "tunesmith.training.optimizers"
ENGINES = "tunesmith.training.engines"
WHERE = "train.optimizer"


def check_optimizer(name: str, options: Mapping[str, Any], device: str, engine: str) -> list[TunesmithError]:
    """Returns what is wrong with the optimizer `name` and its `options` on `device` ("cpu" or "cuda").

    Every engine builds its optimizer here, so `engine` only has to exist.
    """
    errors: list[TunesmithError] = []
    if engine not in entries(ENGINES):
        errors.append(
            RecipeError(f"unknown name '{engine}'", where="train.engine", next=nearest(engine, entries(ENGINES)))
        )
    if name not in entries(OPTIMIZERS):
        return [*errors, RecipeError(f"unknown name '{name}'", where=WHERE, next=nearest(name, entries(OPTIMIZERS)))]
    wrong = check_options(resolve(OPTIMIZERS, name), options, where=lambda option: f"{WHERE}.{name}.{option}")
    errors += wrong or _check_values(name, options)
    if name.startswith("paged") and not device.startswith("cuda"):
        errors.append(paged_error(name))
    return errors


def _check_values(name: str, options: Mapping[str, Any]) -> list[TunesmithError]:
    errors: list[TunesmithError] = []
    for option, value in options.items():
        where = f"{WHERE}.{name}.{option}"
        if option.startswith("beta") and not 0 <= value < 1:
            errors.append(RecipeError(f"'{option}' must be from 0 to below 1, not {value!r}", where=where))
        if option == "eps" and not 0 < value < math.inf:
            errors.append(RecipeError(f"'eps' must be a number above 0, not {value!r}", where=where))
    return errors


def paged_error(name: str) -> RecipeError:
    """The error that a paged optimizer has no CUDA device; the same state without paging works on every device."""
    advice = f"Set it to {name.removeprefix('paged_')} or adamw"
    return RecipeError(f"{name} needs a CUDA device, which pages its state out to the host", where=WHERE, next=advice)


def packed_error(what: str, where: str) -> RecipeError:
    """The error that PEFT cannot train the variant `what` over a base in NF4."""
    return RecipeError(
        f"engine trl cannot do {what} over NF4, for PEFT would read the packed codes as the weight",
        where=where,
        next="Set train.engine to native, or base.bits to 16",
    )


def check_engine(recipe: Recipe) -> list[TunesmithError]:
    """Returns what the recipe's engine cannot do with it, and what no engine can do."""
    train, adapter = recipe.train, recipe.adapter
    errors: list[TunesmithError] = []
    if train.best == "score" and recipe.evaluate.primary in ("loss", "perplexity"):
        advice = "Set it to loss, or evaluate.primary to a score that replies have"
        what = f"'{recipe.evaluate.primary}' cannot be told of replies alone"
        errors.append(RecipeError(what, where="train.best", next=advice))
    engine = train.engine.name
    if engine == "native":
        return errors
    if engine == "trl" and importlib.util.find_spec("trl") is None:
        errors.append(missing_extra("trl", "trl", where="train.engine"))
    for setting, wish, advice in (
        ("train.best", train.best == "score", "Set it to loss"),
        ("train.samples", train.samples > 0, "Set it to 0"),
    ):
        if wish:
            what = f"engine {engine} cannot write replies between its steps"
            errors.append(RecipeError(what, where=setting, next=f"{advice}, or train.engine to native"))
    if train.spread != "auto":
        what = f"engine {engine} trains in one process, so train.spread {train.spread} has no effect"
        errors.append(RecipeError(what, where="train.engine", next="Set it to native, or train.spread to auto"))
    if train.precision == "fast":
        what = f"engine {engine} has no 8-bit products"
        errors.append(RecipeError(what, where="train.precision", next="Set it to auto, or train.engine to native"))
    if recipe.base.bits == 4:
        errors += [packed_error("dora", "adapter.dora")] if adapter.dora else []
        errors += [packed_error("pissa", "adapter.start")] if adapter.start.name == "pissa" else []
    return errors
