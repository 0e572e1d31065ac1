"""Writes the model card of an evaluated run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from tunesmith.commands.runs import PRODUCT_CHAIN, outdated_product
from tunesmith.commands.shared import (
    Reporter,
    hash_template,
    is_up_to_date,
    load_recipe_template,
    load_weights,
    require_same_settings,
    silent,
    template_file,
)
from tunesmith.config.recipe import Recipe
from tunesmith.errors import ModelError, RunError, TunesmithError
from tunesmith.runs.run import Run, hash_json


def card(recipe: Recipe, run: Run, log: Reporter = silent, *, license: str = "") -> Path:
    """Writes card.md, the README.md of a model repository, from the run's measurements.

    `license` is an identifier of the Hub. Raises RunError if the run is not evaluated, or its scores belong to another
    adapter.
    """
    require_same_settings(recipe, run)
    inputs = {
        "scores": run.fingerprint("evaluate"),
        "adapter": run.fingerprint("train"),
        "data": run.fingerprint("prepare"),
        "recipe": hash_json(_without_paths(recipe, run)),
        "license": license,
    }
    if stale := outdated_product(run, PRODUCT_CHAIN[:2]):
        raise RunError(stale, where=str(run.path), next=f"Run: tunesmith run {shlex.quote(str(run.path))}")
    if is_up_to_date(run, "card", inputs, log):
        return run / "card.md"
    from tunesmith.reporting.model_card import model_card

    records = {name: run.read_fingerprints(name) or {} for name in ("prepare", "train", "evaluate")}
    template = _template(recipe, run, records["train"].get("weights"), log)
    text = model_card(recipe, run.path, records=records, template=template, license=license)
    run.write("card.md", text)
    run.write_fingerprints("card", inputs, ["card.md"])
    log(f"card: {run / 'card.md'}")
    return run / "card.md"


def _without_paths(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Returns the recipe's values without paths of files: their content is in the fingerprints of the products."""
    values = recipe.dump()
    hub_sources = [source for source in values["data"].pop("source") if source.startswith("hub:")]
    values["data"].pop("pseudonyms")
    values["evaluate"].pop("probes")
    values["prompt"]["template"] = hash_template(template_file(recipe, run))
    return {**values, "sources": hub_sources}


def _template(recipe: Recipe, run: Run, trained: Any, log: Reporter) -> Any:
    """Returns the template that the model was trained with, or None, logged, if the base model is not available."""
    try:
        weights = load_weights(recipe, log)
        if trained and weights.fingerprint != trained:
            raise ModelError("the base model is not the one that the adapter was trained on", where=recipe.base.model)
        return load_recipe_template(recipe, weights, run)
    except TunesmithError as error:
        log(f"card: the card does not show the chat template: {error.what}")
        return None
