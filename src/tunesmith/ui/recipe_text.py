"""A recipe's text, edited a setting at a time: its comments and its order stay as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe, parse_yaml, read_recipe
from tunesmith.errors import Several, TunesmithError
from tunesmith.ui.form import MISSING, Plain, fields, filled, flow, get, put, value_of


def loaded(name: str, *, small: bool = False) -> str:
    """The text of a recipe, so that it means the same wherever it is kept: its paths absolute.

    With `small` the section of that name is applied, and the comments are gone. Raises RecipeError, Several.
    """
    from tunesmith.config.recipe import locate

    recipe = read_recipe(name, small=small)
    if small:
        plain = recipe.dump() | {"small": {}}
        return written(plain)
    text = locate(name).read_text(encoding="utf-8-sig")
    plain, moved = parse_yaml(text, name)[0], recipe.dump()
    for key in ("data.source", "data.pseudonyms", "evaluate.probes", "prompt.template", "base.model"):
        before, after = get(plain, key), get(moved, key)
        if before is not MISSING and before != after and [before] != after:
            text = with_value(text, key, after[0] if isinstance(before, str) and isinstance(after, list) else after)
    return text


def written(plain: Plain) -> str:
    """A recipe's text from plain values; what is as the default says is left out."""
    values = {field.key: value_of(plain, field) for field in fields()}
    return yaml.safe_dump(filled(values), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def plain_of(text: str) -> Plain:
    """The plain values of a recipe's text. Raises RecipeError for text that is no YAML mapping."""
    return parse_yaml(text, "recipe")[0]


def with_value(text: str, key: str, value: Any) -> str:
    """`text` with `value` at `key`: the value's own characters are replaced, or a line is added to its section."""
    wanted = _apart(plain_of(text))
    put(wanted, key, value)
    edited = _edited(text, key.split("."), value)
    try:
        if edited is not None and plain_of(edited) == wanted:
            return edited
    except TunesmithError:
        pass
    return written(wanted)  # an anchor, a tag or another rarity: the values are right, the comments are gone


def judged(text: str, scratch: Path) -> tuple[Recipe | None, list[TunesmithError]]:
    """The recipe of `text`, or everything that is wrong with it. `scratch` is a folder for a moment's file."""
    file = scratch / "recipe.yaml"
    scratch.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    try:
        return read_recipe(str(file)), []
    except Several as error:
        return None, error.errors
    except TunesmithError as error:
        return None, [error]


def key_of(error: TunesmithError) -> str:
    """The setting that an error is about, with dots; '' where it is about none."""
    place = error.where.rpartition(", ")[2] if ", " in error.where else ""
    keys = {field.key for field in fields()}
    parts = place.split(".")
    return next((".".join(parts[:end]) for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in keys), "")


def place_of(error: TunesmithError) -> str:
    """Where an error is, without the name of the moment's file."""
    return re.sub(r"^.*recipe\.yaml(?=$| line|,)", "", error.where).strip(", ")


def _edited(text: str, way: list[str], value: Any) -> str | None:
    """`text` with the value written into it; None where that is not plain to do."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, name in enumerate(way):
        if not isinstance(node, yaml.MappingNode):
            return None
        found = next(((k, v) for k, v in node.value if k.value == name), None)
        if found is None:
            return _added(text, node, way[depth:], value)
        node = found[1]
    if node is None:
        return None
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        end = start + len(_without_trailing_comments(text[start:end]))
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        end = start + len(text[start:end].rstrip("\n"))
    before = text[:start].rstrip(" \n") + " " if text[:start].rstrip(" ").endswith("\n") else text[:start]
    before = before if not before or before[-1] in " \n[{," else f"{before} "
    return before + _inner(value) + text[end:]


def _added(text: str, node: yaml.MappingNode, way: list[str], value: Any) -> str | None:
    """A new key at the end of a mapping."""
    for name in reversed(way[1:]):
        value = {name: value}
    item = f"{way[0]}: {_inner(value)}"
    if node.flow_style:
        end = node.end_mark.index - 1
        return f"{text[:end].rstrip()}{', ' if node.value else ''}{item}{text[end:]}"
    if not node.value:
        return None
    start, end = node.start_mark.index, node.end_mark.index
    body = _without_trailing_comments(text[start:end])
    return f"{text[:start]}{body}\n{' ' * node.start_mark.column}{item}{text[start + len(body) :] or chr(10)}"


def _inner(value: Any) -> str:
    """The value in one line, quoted so that it may stand inside brackets; as JSON where a text has several lines."""
    text = flow([value])
    return (json.dumps([value], ensure_ascii=False) if "\n" in text else text)[1:-1]


def _apart(value: Any) -> Any:
    """A copy in which nothing stands at two places, as an alias of YAML does."""
    if isinstance(value, dict):
        return {key: _apart(each) for key, each in value.items()}
    return [_apart(each) for each in value] if isinstance(value, list) else value


def _without_trailing_comments(text: str) -> str:
    lines = text.rstrip().split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return "\n".join(lines).rstrip()
