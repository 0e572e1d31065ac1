"""Checks before any work starts whether the engine and the optimizer support a recipe."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from tunesmith.config.extras import missing_extra
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import check_options, entries, nearest, resolve
from tunesmith.errors import RecipeError, TunesmithError

OPTIMIZERS = "tunesmith.training.optimizers"
ENGINES = "tunesmith.training.engines"
OPTIMIZER_SETTING = "train.optimizer"


def check_optimizer(name: str, options: Mapping[str, Any], device: str, engine: str) -> list[TunesmithError]:
    """Returns the errors of optimizer `name` with `options` on `device` ("cpu" or "cuda").

    All engines use the same optimizers, so `engine` only has to exist.
    """
    errors: list[TunesmithError] = []
    if engine not in entries(ENGINES):
        errors.append(
            RecipeError(f"unknown name '{engine}'", where="train.engine", next=nearest(engine, entries(ENGINES)))
        )
    try:
        build = resolve(OPTIMIZERS, name, where=OPTIMIZER_SETTING)
    except TunesmithError as error:
        return [*errors, error]
    option_errors = check_options(build, options, where=lambda option: f"{OPTIMIZER_SETTING}.{name}.{option}")
    errors += option_errors or _check_values(name, options)
    if name.startswith("paged") and not device.startswith("cuda"):
        errors.append(paged_error(name))
    return errors


def _check_values(name: str, options: Mapping[str, Any]) -> list[TunesmithError]:
    errors: list[TunesmithError] = []
    for option, value in options.items():
        where = f"{OPTIMIZER_SETTING}.{name}.{option}"
        if option.startswith("beta") and not 0 <= value < 1:
            errors.append(RecipeError(f"'{option}' must be from 0 to below 1, not {value!r}", where=where))
        if option == "eps" and not 0 < value < math.inf:
            errors.append(RecipeError(f"'eps' must be a number above 0, not {value!r}", where=where))
    return errors


def paged_error(name: str) -> RecipeError:
    """Returns the error for a paged optimizer without a CUDA device; it suggests the unpaged one."""
    advice = f"Set it to {name.removeprefix('paged_')} or adamw"
    return RecipeError(
        f"{name} needs a CUDA device to page its state to the host", where=OPTIMIZER_SETTING, next=advice
    )


def packed_error(variant: str, where: str) -> RecipeError:
    """Returns the error that PEFT cannot train `variant` over a base in NF4."""
    return RecipeError(
        f"engine trl cannot do {variant} over NF4: PEFT would read the packed codes as the weight",
        where=where,
        next="Set train.engine to native, or base.bits to 16",
    )


def check_engine(recipe: Recipe) -> list[TunesmithError]:
    """Returns an error for each setting that the recipe's engine, or any engine, does not support."""
    train, adapter = recipe.train, recipe.adapter
    errors: list[TunesmithError] = []
    if train.best == "score" and recipe.evaluate.primary in ("loss", "perplexity"):
        advice = "Set it to loss, or evaluate.primary to a metric of replies, such as rougeL"
        message = f"'{recipe.evaluate.primary}' is not a score of replies"
        errors.append(RecipeError(message, where="train.best", next=advice))
    engine = train.engine.name
    if engine == "native":
        return errors
    if engine == "trl" and importlib.util.find_spec("trl") is None:
        errors.append(missing_extra("trl", "trl", where="train.engine"))
    for setting, is_set, advice in (
        ("train.best", train.best == "score", "Set it to loss"),
        ("train.samples", train.samples > 0, "Set it to 0"),
    ):
        if is_set:
            message = f"engine {engine} cannot generate replies during training"
            errors.append(RecipeError(message, where=setting, next=f"{advice}, or train.engine to native"))
    if train.parallel != "auto":
        message = f"engine {engine} trains in one process, so it ignores train.parallel {train.parallel}"
        errors.append(RecipeError(message, where="train.engine", next="Set it to native, or train.parallel to auto"))
    if train.precision == "fast":
        message = f"engine {engine} has no 8-bit products"
        errors.append(RecipeError(message, where="train.precision", next="Set it to auto, or train.engine to native"))
    if recipe.base.bits == 4:
        errors += [packed_error("dora", "adapter.dora")] if adapter.dora else []
        errors += [packed_error("pissa", "adapter.start")] if adapter.start.name == "pissa" else []
    return errors
