"""Turns another trainer's configuration into a recipe, and lists what has no counterpart."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.commands.shared import Reporter, silent
from tunesmith.config.aliases import find_alias
from tunesmith.config.recipe import parse_yaml, read_recipe
from tunesmith.errors import RecipeError, RunError, TunesmithError
from tunesmith.runs.run import write_atomic

SECTIONS = ("base", "data", "prompt", "adapter", "train", "evaluate")
FORMATS = {"alpaca": "alpaca", "chat_template": "chat", "sharegpt": "sharegpt", "openai": "chat"}
CALLS = {  # functions and classes whose keyword arguments are settings
    "SFTConfig", "TrainingArguments", "SFTTrainer", "LoraConfig", "BitsAndBytesConfig", "from_pretrained",
    "get_peft_model", "UnslothTrainingArguments",
}  # fmt: skip
HANDLED = {"adapter", "finetuning_type", "stage", "type", "dataset_dir", "template", "use_peft",
           "datasets", "dataset"}  # fmt: skip


@dataclass(frozen=True)
class ImportedSettings:
    """The recipe that was written, its settings by dotted key, and one line per setting that has no counterpart."""

    path: Path
    settings: dict[str, Any]
    unmatched: list[str]


def import_settings(
    source: Path, name: str, path: Path, log: Reporter = silent, *, rows: str | None = None
) -> ImportedSettings:
    """Writes the recipe `name` to `path` from the configuration file or training script `source`.

    It reads configurations (YAML) of Axolotl and LLaMA-Factory, and Python scripts with TRL's SFTConfig, transformers'
    TrainingArguments, PEFT's LoraConfig or Unsloth's functions. Scripts are parsed, never run. `rows` replaces the data
    set that `source` names. Raises RunError when `path` exists, RecipeError for a file that cannot be read or names no
    base model or no rows, and MultipleErrors for values that no recipe may have.
    """
    if path.exists():
        raise RunError("the file exists and is not overwritten", where=str(path), next="Choose another name")
    values = _script_values(source) if source.suffix == ".py" else _yaml_values(source)
    settings, unmatched = convert_settings(values)
    settings |= _data_settings(values, source, unmatched)
    if rows is not None:
        settings["data.source"] = rows
    for key, option in (("base.model", "Write its name into the file first"), ("data.source", "Give --from FILE")):
        if key not in settings:
            raise RecipeError(f"it names nothing for {key}", where=str(source), next=option)
    write_atomic(path, _recipe_text(name, source, settings, unmatched))
    try:
        read_recipe(str(path))
    except TunesmithError:
        path.unlink()
        raise
    for line in unmatched:
        log(f"import: {line}")
    log(f"import: {path}, {len(settings)} settings. Next: tunesmith check {shlex.quote(str(path))}")
    return ImportedSettings(path, settings, unmatched)


def convert_settings(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our settings by dotted key for another trainer's `values`, and a line for each value without a counterpart."""
    settings: dict[str, Any] = {}
    unmatched: list[str] = []
    for name, value in values.items():
        alias = find_alias(name)
        if name in HANDLED or value is None:
            continue
        if alias is None or alias.key is None:
            unmatched.append(f"{name}: {(alias and alias.note) or 'nothing corresponds'}")
        elif alias.key != "train.batch":
            try:
                settings[alias.key] = alias.convert(value)
            except (ValueError, TypeError, AttributeError) as error:
                unmatched.append(f"{name}: {error}")
    if rows := _rows_per_step(values):
        settings["train.batch"] = f"{rows} rows"
    if values.get("adapter") == "qlora":
        settings["base.bits"] = 4
    elif "base.bits" not in settings:
        settings["base.bits"] = 16
    method = values.get("finetuning_type", values.get("adapter", "lora"))
    if method not in ("lora", "qlora", "dora") or str(values.get("stage", "sft")) != "sft":
        unmatched.append("full fine-tuning and stages other than sft: tunesmith trains LoRA adapters on answers")
    if values.get("template"):
        unmatched.append(f"template: {values['template']}: the tokenizer's own chat template is used (prompt.template)")
    return settings, unmatched


def _rows_per_step(values: dict[str, Any]) -> int | None:
    """Rows of one optimizer step on one GPU: rows per device times accumulation steps."""
    names = [name for name in values if (alias := find_alias(name)) and alias.key == "train.batch" and values[name]]
    product = 1
    for name in names:
        if isinstance(values[name], int):
            product *= values[name]
    return product if names else None


def _data_settings(values: dict[str, Any], source: Path, unmatched: list[str]) -> dict[str, Any]:
    """Where the rows are and what form they have, from Axolotl's `datasets`, LLaMA-Factory's `dataset`, or a script."""
    entries = values.get("datasets", values.get("dataset"))
    if isinstance(entries, str):
        entries = [{"path": word.strip()} for word in entries.split(",")]
    settings: dict[str, Any] = {}
    sources = []
    for entry in entries or []:
        entry = {"path": entry} if isinstance(entry, str) else dict(entry)
        registered = _registered(entry["path"], values, source)
        sources.append(_row_source(registered.get("path", entry["path"]), source))
        kind = str(entry.get("type") or registered.get("type") or "")
        if kind in FORMATS:
            settings["data.format"] = FORMATS[kind]
        elif kind:
            unmatched.append(f"type: {kind}: the format is detected from the columns (data.format)")
    if sources:
        settings["data.source"] = sources[0] if len(sources) == 1 else sources
    return settings


def _registered(name: str, values: dict[str, Any], source: Path) -> dict[str, Any]:
    """LLaMA-Factory's entry for a data set's `name` in dataset_info.json, as `path` and `type`; {} without one."""
    folder = source.parent / str(values.get("dataset_dir", "data"))
    try:
        entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    path = str(folder / entry["file_name"]) if "file_name" in entry else str(entry.get("hf_hub_url", name))
    return {"path": path, "type": entry.get("formatting", "alpaca")}


def _row_source(path: str, source: Path) -> str:
    """`path` as a recipe writes it: a file as it is, a hub name with the prefix hub:."""
    is_file = (source.parent / path).exists() or Path(path).exists() or Path(path).suffix != ""
    if is_file or path.startswith("hub:") or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return path
    return f"hub:{path}?split=train"


def _yaml_values(source: Path) -> dict[str, Any]:
    return parse_yaml(_read_text(source), str(source))[0]


def _read_text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: Exception) -> RecipeError:
    return RecipeError(f"cannot be read: {error}", where=str(source), next="Give a YAML file or a .py script")


def _script_values(source: Path) -> dict[str, Any]:
    """Literal keyword arguments of the calls in a script that hold settings, and the data set that it loads."""
    try:
        tree = ast.parse(_read_text(source), str(source))
    except (SyntaxError, ValueError) as error:
        raise _unreadable(source, error) from error
    constants = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    values: dict[str, Any] = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        arguments = list(_literals(call, constants))
        if function == "load_dataset":
            values |= _loaded_rows(arguments)
        elif function in CALLS:
            if function == "from_pretrained" and arguments and arguments[0][0] == "0" and "base_model" not in values:
                values["base_model"] = arguments[0][1]
            values |= {name: value for name, value in arguments if not name.isdigit()}
    values.pop("model", None)
    if values.get("use_peft") or "r" in values or "lora_r" in values:
        values.setdefault("finetuning_type", "lora")
    return values


def _literals(call: ast.Call, constants: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arguments of a call that are literals or names of constants; positional ones are called '0', '1', …"""
    arguments = [(str(index), node) for index, node in enumerate(call.args)]
    for name, node in [*arguments, *((word.arg, word.value) for word in call.keywords if word.arg)]:
        if isinstance(node, ast.Name) and node.id in constants:
            yield name, constants[node.id]
            continue
        try:
            yield name, ast.literal_eval(node)
        except ValueError:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                yield name, node.attr


def _loaded_rows(arguments: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(arguments)
    files = values.get("data_files")
    if isinstance(files, dict):
        files = files.get("train", next(iter(files.values()), None))
    path = files if files else values.get("0", values.get("path"))
    return {"datasets": [{"path": file} for file in ([path] if isinstance(path, str) else path or [])]}


def _recipe_text(name: str, source: Path, settings: dict[str, Any], unmatched: list[str]) -> str:
    plain: dict[str, Any] = {"name": name}
    for key, value in settings.items():
        section, _, field = key.partition(".")
        target = plain if not field else plain.setdefault(section, {})
        if field.startswith("split."):
            target, field = target.setdefault("split", {}), field.removeprefix("split.")
        target[field or section] = value
    ordered = {key: plain[key] for key in ("name", "seed", *SECTIONS) if key in plain}
    notes = [f"# - {line}" for line in unmatched]
    head = [f"# From {source.name}.", *(["# Without a counterpart:", *notes] if notes else [])]
    return "\n".join(head) + "\n" + yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=110)
