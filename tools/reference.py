"""Writes docs/recipe.md from the code: every setting with its type, default, limits and help."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tunesmith.find import entries, find, options
from tunesmith.recipe import Catalogue, Named, Recipe

HEAD = """# The recipe

<!-- Written by `make docs` from src/tunesmith/recipe.py. Change it there. -->

A recipe is a YAML file. A named thing is written `name` or `{name: {its options}}`. Any key can be set from the
command line: `--set train.epochs=3`. Paths are relative to the recipe's file. `--small` applies the `small` section,
whose keys are written with dots (`train.epochs: 3`), and adds `-small` to the run's name. An unknown key is an error.
`tunesmith schema` prints the same as JSON schema, for editors.
"""


def recipe_reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_section(Recipe, ""), *_catalogues()]).rstrip() + "\n"


def _section(model: type[BaseModel], path: str) -> list[str]:
    inner = {key: field.annotation for key, field in model.model_fields.items() if _is_section(field.annotation)}
    doc = (model.__doc__ or "").strip()
    lines = [f"## {path or 'The whole'}", "", doc, "", "| key | type | default | what it is |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        if key in inner:
            lines.append(f"| `{key}` | section | | see below |")
            continue
        lines.append(f"| `{key}` | {_kind(field)} | {_default(field)} | {field.description} |")
    lines.append("")
    for key, kind in inner.items():
        lines += _section(typing.cast(type[BaseModel], kind), f"{path}.{key}" if path else key)
    return lines


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kind(field: Any) -> str:
    text = _type(field.annotation, field.metadata)
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in SIGNS.items() if hasattr(m, name)]
    pattern = [f"`{m.pattern}`".replace("|", "\\|") for m in field.metadata if getattr(m, "pattern", None)]
    return ", ".join([text, *limits, *pattern])


SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _type(kind: Any, metadata: Any = ()) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Named:
        module = next((m.module for m in metadata if isinstance(m, Catalogue)), "")
        return f"one of [{module.rsplit('.', 1)[-1]}](#{module.rsplit('.', 1)[-1]})"
    if origin is typing.Annotated:
        return _type(args[0], args[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(arg) for arg in args if arg is not type(None))
    if origin is list:
        return f"list of {_type(args[0])}"
    return {str: "text", int: "whole number", float: "number", bool: "yes or no"}.get(kind, "mapping")


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "must be given" if field.default_factory is None else ""
    value = field.default
    if isinstance(value, list):
        return "`[" + ", ".join(item.name for item in value) + "]`"
    if isinstance(value, Named):
        return f"`{value.name}`"
    return "none" if value is None else f"`{value}`" if value != "" else ""


def _catalogues() -> list[str]:
    lines: list[str] = []
    for module in (
        "data.formats",
        "data.checks",
        "train.engines",
        "train.schedules",
        "train.optimizers",
        "evaluate.metrics",
    ):
        lines += [f"## {module.rsplit('.', 1)[-1]}", ""]
        for name in entries(f"tunesmith.{module}"):
            entry = find(f"tunesmith.{module}", name, function="train" if module == "train.engines" else "")
            source = __import__(f"tunesmith.{module}.{name}", fromlist=["x"]) if module == "train.engines" else entry
            doc = " ".join((source.__doc__ or "").split("\n\n")[0].split())
            given = ", ".join(
                f"`{key}`" if p.default is p.empty else f"`{key}` ({p.default})" for key, p in options(entry).items()
            )
            lines.append(f"- **{name}**: {doc}" + (f" Options: {given}." if given else ""))
        lines.append("")
    return lines


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "recipe.md").write_text(recipe_reference(), encoding="utf-8")
