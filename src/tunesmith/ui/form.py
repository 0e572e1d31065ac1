"""The recipe's form, generated from its schema: fields, their controls, and reading what the user enters.

No setting is named here: a new setting in recipe.py appears in the form automatically.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from tunesmith.config.recipe import Catalog, Recipe, recipe_schema
from tunesmith.config.registry import entries

Kind = Literal["choice", "choices", "boolean", "integer", "number", "text", "lines", "name", "names", "mapping"]
RecipeDict = dict[str, Any]
MISSING = object()


@dataclass(frozen=True)
class FormField:
    """One setting: its dotted `key`, kind of control, help, limits as text, and default.

    `choices` are the allowed values, or the names of a catalog. An `optional` setting may be empty (null).
    """

    key: str
    kind: Kind
    help: str
    default: Any
    choices: tuple[Any, ...] = ()
    optional: bool = False
    limits: str = ""

    @property
    def section(self) -> str:
        """The section of the setting; '' at the top level."""
        return self.key.rpartition(".")[0]

    @property
    def label(self) -> str:
        """The setting's name as a title."""
        return self.key.rpartition(".")[2].replace("_", " ")

    @property
    def info(self) -> str:
        """Help, limits and default, shown under the title."""
        default = "" if self.default is MISSING else f"Default: {display_value(self.default)}."
        words = f"{self.help.rstrip('.')}." if self.help else ""
        return " ".join(part for part in (words, self.limits, default) if part)


@cache
def fields() -> tuple[FormField, ...]:
    """Returns every setting of a recipe in the order of the schema."""
    schema = recipe_schema()
    return tuple(_fields(schema, schema, Recipe, ""))


@cache
def sections() -> dict[str, str]:
    """Returns the sections with their help in the order of the schema: {"": "…", "base": "The model …", …}."""
    help_texts: dict[str, str] = {}
    for field in fields():
        help_texts.setdefault(field.section, _section_help(field.section))
    return help_texts


def get_or_default(values: RecipeDict, field: FormField) -> Any:
    """Returns the field's value in `values`, else its default, else None."""
    value = get_value(values, field.key)
    if value is MISSING:
        return None if field.default is MISSING else field.default
    return value


def get_value(values: Any, key: str) -> Any:
    """Returns the value at a dotted key, or MISSING."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return MISSING
        values = values[part]
    return values


def set_value(values: RecipeDict, key: str, value: Any) -> None:
    """Sets the value at a dotted key and creates the sections above it."""
    *parents, last = key.split(".")
    for part in parents:
        child = values.get(part)
        if not isinstance(child, dict):
            child = values[part] = {}
        values = child
    values[last] = value


def to_controls(field: FormField, value: Any) -> tuple[Any, ...]:
    """Converts `value` for the field's controls: one value, or a name and its options."""
    match field.kind:
        case "choice":
            return (display_value(value),)
        case "choices":
            return (list(value) if isinstance(value, list) else [],)
        case "boolean":
            return (bool(value),)
        case "integer" | "number" | "text":
            return ("" if value is None else value if isinstance(value, str) else display_value(value),)
        case "lines":
            return ("\n".join(_quote_line(item) for item in ([value] if isinstance(value, str) else value or [])),)
        case "name":
            if isinstance(value, dict) and len(value) == 1:
                name, options = next(iter(value.items()))
                return str(name), "" if not options else _block_yaml(options)
            return "" if value is None else str(value), ""
        case "names":
            return ([item if isinstance(item, str) else inline_yaml(item) for item in value or []],)
        case "mapping":
            return ("" if not value else _block_yaml(value),)


def from_controls(field: FormField, *controls: Any) -> Any:
    """Converts the controls' values to the setting's value. Raises ValueError if they cannot be read.

    Values that can be read but are not valid (too large, an unknown name) are returned: the recipe rejects them.
    """
    entered = controls[0]
    match field.kind:
        case "choice":
            return next((item for item in field.choices if display_value(item) == entered), entered)
        case "choices" | "names":
            return [item if field.kind == "choices" else _parse_yaml(item, item) for item in entered or []]
        case "boolean":
            return bool(entered)
        case "text":
            text = "" if entered is None else str(entered)
            return None if field.optional and not text else text
        case "integer" | "number":
            text = str("" if entered is None else entered).strip()
            return None if not text and field.optional else _parse_number(text)
        case "lines":
            lines = [_unquote_line(line) for line in str(entered or "").split("\n") if line.strip()]
            if field.optional and not lines:
                return None
            return lines[0] if len(lines) == 1 and "one" in field.choices else lines
        case "name":
            options = _parse_yaml(controls[1], "the options") if controls[1] and str(controls[1]).strip() else None
            return {entered: options} if options else entered or ""
        case "mapping":
            return _parse_yaml(entered, "the value") if entered and str(entered).strip() else {}


def without_defaults(values: Mapping[str, Any]) -> RecipeDict:
    """Returns a recipe from the values of dotted keys, without those that have their default value."""
    recipe: RecipeDict = {}
    for field in fields():
        value = values.get(field.key, MISSING)
        if value is not MISSING and (field.default is MISSING or value != field.default):
            set_value(recipe, field.key, value)
    return recipe


def display_value(value: Any) -> str:
    """Returns a value as one line for display."""
    return "none" if value is None else "''" if value == "" else inline_yaml(value)


def inline_yaml(value: Any) -> str:
    """Returns a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


# --- the schema --------------------------------------------------------------------------------------------


def _fields(root: RecipeDict, node: RecipeDict, model: type[BaseModel], prefix: str) -> Iterator[FormField]:
    for name, child in node["properties"].items():
        key, info = f"{prefix}{name}", model.model_fields[name]
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(root, _resolve_ref(root, child), inner, f"{key}.")
            continue
        annotations = (*info.metadata, *getattr((get_args(inner) or (None,))[0], "__metadata__", ()))
        catalog = next((item for item in annotations if isinstance(item, Catalog)), None)
        yield _field(key, child, catalog, is_list=get_origin(inner) is list)


def _resolve_ref(root: RecipeDict, node: RecipeDict) -> RecipeDict:
    name = str(node.get("$ref") or node["allOf"][0]["$ref"]).rpartition("/")[2]
    definition: RecipeDict = root["$defs"][name]
    return definition


def _field(key: str, node: RecipeDict, catalog: Catalog | None, *, is_list: bool) -> FormField:
    default, help_text = (
        node.get("default", {} if node.get("type") == "object" else MISSING),
        node.get("description", ""),
    )
    if catalog:
        return FormField(key, "names" if is_list else "name", help_text, default, tuple(entries(catalog.module)))
    members = [member for member in node.get("anyOf", [node]) if member.get("type") != "null"]
    optional = len(members) < len(node.get("anyOf", [node]))
    first = members[0]
    if len(members) > 1:  # a text or a list of texts
        return FormField(key, "lines", f"{help_text}. One per line", default, ("one",), optional)
    if "enum" in first or "const" in first:
        return FormField(key, "choice", help_text, default, tuple(first.get("enum", [first.get("const")])), optional)
    if first["type"] == "array":
        item = first["items"]
        if "enum" in item:
            return FormField(key, "choices", help_text, default, tuple(item["enum"]), optional)
        return FormField(key, "lines", f"{help_text}. One per line", default, (), optional)
    kinds: dict[str, Kind] = {"boolean": "boolean", "integer": "integer", "number": "number", "object": "mapping"}
    return FormField(key, kinds.get(first["type"], "text"), help_text, default, (), optional, _limits(first))


def _limits(node: RecipeDict) -> str:
    """Returns the limits of a number as text."""
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    limits = [f"{word} {node[name]:g}" for name, word in words.items() if name in node]
    kind = {"integer": "A whole number", "number": "A number"}.get(node["type"], "")
    return f"{' '.join(part for part in (kind, ' and '.join(limits)) if part)}." if limits else ""


def _section_help(section: str) -> str:
    model: Any = Recipe
    for part in section.split(".") if section else []:
        model = model.model_fields[part].annotation
    return (model.__doc__ or "").strip().split("\n")[0] if section else "Name and description of the recipe."


# --- parsing of values -------------------------------------------------------------------------------------


def _parse_number(text: str) -> Any:
    """Returns an int or a float, or the text itself if it is neither, which the recipe then rejects."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _quote_line(text: Any) -> str:
    """Returns a text as one line, in quotes if it could not be read back otherwise."""
    is_plain = isinstance(text, str) and text == text.strip() and text and "\n" not in text and not text.startswith('"')
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _unquote_line(line: str) -> Any:
    if not line.lstrip().startswith('"'):
        return line.strip()
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{line} starts with a quote but is not a valid quoted text") from error


def _parse_yaml(text: str, name: str) -> Any:
    """Parses YAML in a field; numbers such as 2e-4 are read as in a recipe file."""
    from tunesmith.config.recipe import parse_setting
    from tunesmith.errors import RecipeError

    try:
        return parse_setting(f"x={text}")[1]
    except RecipeError as error:
        raise ValueError(f"{name} is not valid YAML") from error


def _block_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=None, allow_unicode=True, width=100, sort_keys=False).rstrip("\n")
