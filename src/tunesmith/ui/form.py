"""The recipe's form, made from its schema: which fields there are, how each is shown, how what is entered is read.

Nothing here knows a setting by name: a setting that recipe.py gets is a field of the form at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from tunesmith.config.recipe import Catalogue, Recipe, schema
from tunesmith.config.registry import entries

Kind = Literal["choice", "some", "yes_no", "whole", "number", "text", "lines", "name", "names", "plain"]
Plain = dict[str, Any]
MISSING = object()


@dataclass(frozen=True)
class FormField:
    """One setting: `key` with dots, what kind of control it needs, its help and limits in words, its default.

    `choices` are the values of a choice, or a catalogue's names. With `empty` nothing may stand there (null).
    """

    key: str
    kind: Kind
    help: str
    default: Any
    choices: tuple[Any, ...] = ()
    empty: bool = False
    limits: str = ""

    @property
    def section(self) -> str:
        """The section it stands in; '' for those of the recipe itself."""
        return self.key.rpartition(".")[0]

    @property
    def label(self) -> str:
        """Its name as a title."""
        return self.key.rpartition(".")[2].replace("_", " ")

    @property
    def info(self) -> str:
        """Help, limits and default, for under the title."""
        default = "" if self.default is MISSING else f"Default: {shown_plainly(self.default)}."
        words = f"{self.help.rstrip('.')}." if self.help else ""
        return " ".join(each for each in (words, self.limits, default) if each)


@cache
def fields() -> tuple[FormField, ...]:
    """Every setting of a recipe, in the order of the schema."""
    made = schema()
    return tuple(_fields(made, made, Recipe, ""))


@cache
def sections() -> dict[str, str]:
    """The sections with what each is about, in the order of the schema: {"": "", "base": "The model …", …}."""
    found: dict[str, str] = {}
    for field in fields():
        found.setdefault(field.section, _about(field.section))
    return found


def value_of(plain: Plain, field: FormField) -> Any:
    """What `plain` says of the field, or its default; None where there is neither."""
    value = get(plain, field.key)
    if value is MISSING:
        return None if field.default is MISSING else field.default
    return value


def get(plain: Any, key: str) -> Any:
    """The value at a key with dots, or MISSING."""
    for part in key.split("."):
        if not isinstance(plain, dict) or part not in plain:
            return MISSING
        plain = plain[part]
    return plain


def put(plain: Plain, key: str, value: Any) -> None:
    """Sets the value at a key with dots; sections on the way are made."""
    *way, last = key.split(".")
    for part in way:
        inner = plain.get(part)
        if not isinstance(inner, dict):
            inner = plain[part] = {}
        plain = inner
    plain[last] = value


def shown(field: FormField, value: Any) -> tuple[Any, ...]:
    """`value` for the field's controls: one, or a name and its options."""
    match field.kind:
        case "choice":
            return (shown_plainly(value),)
        case "some":
            return (list(value) if isinstance(value, list) else [],)
        case "yes_no":
            return (bool(value),)
        case "whole" | "number" | "text":
            return ("" if value is None else value if isinstance(value, str) else shown_plainly(value),)
        case "lines":
            return ("\n".join(_line(each) for each in ([value] if isinstance(value, str) else value or [])),)
        case "name":
            if isinstance(value, dict) and len(value) == 1:
                name, options = next(iter(value.items()))
                return str(name), "" if not options else _block(options)
            return "" if value is None else str(value), ""
        case "names":
            return ([each if isinstance(each, str) else flow(each) for each in value or []],)
        case "plain":
            return ("" if not value else _block(value),)


def read(field: FormField, *given: Any) -> Any:
    """The value that the controls show. Raises ValueError, in words, for what cannot be one.

    What is of the right form and yet wrong (too large, an unknown name) is returned: the recipe says what is wrong.
    """
    entered = given[0]
    match field.kind:
        case "choice":
            return next((each for each in field.choices if shown_plainly(each) == entered), entered)
        case "some" | "names":
            return [each if field.kind == "some" else _yaml(each, each) for each in entered or []]
        case "yes_no":
            return bool(entered)
        case "text":
            text = "" if entered is None else str(entered)
            return None if field.empty and not text else text
        case "whole" | "number":
            text = str("" if entered is None else entered).strip()
            return None if not text and field.empty else _number(text)
        case "lines":
            lines = [_unline(line) for line in str(entered or "").split("\n") if line.strip()]
            return lines[0] if len(lines) == 1 and "one" in field.choices else lines
        case "name":
            options = _yaml(given[1], "the options") if given[1] and str(given[1]).strip() else None
            return {entered: options} if options else entered or ""
        case "plain":
            return _yaml(entered, "this") if entered and str(entered).strip() else {}


def filled(values: Mapping[str, Any]) -> Plain:
    """A recipe's plain values from a value for each key: what is as the default says is left out."""
    plain: Plain = {}
    for field in fields():
        value = values.get(field.key, MISSING)
        if value is not MISSING and (field.default is MISSING or value != field.default):
            put(plain, field.key, value)
    return plain


def shown_plainly(value: Any) -> str:
    """A plain value in one line, as a recipe writes it."""
    return "none" if value is None else "''" if value == "" else flow(value)


def flow(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


# --- the schema --------------------------------------------------------------------------------------------


def _fields(whole: Plain, part: Plain, model: type[BaseModel], above: str) -> Iterator[FormField]:
    for name, facts in part["properties"].items():
        key, info = f"{above}{name}", model.model_fields[name]
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(whole, _resolved(whole, facts), inner, f"{key}.")
            continue
        marks = (*info.metadata, *getattr((get_args(inner) or (None,))[0], "__metadata__", ()))
        catalogue = next((mark for mark in marks if isinstance(mark, Catalogue)), None)
        yield _field(key, facts, catalogue, several=get_origin(inner) is list)


def _resolved(whole: Plain, facts: Plain) -> Plain:
    name = str(facts.get("$ref") or facts["allOf"][0]["$ref"]).rpartition("/")[2]
    found: Plain = whole["$defs"][name]
    return found


def _field(key: str, facts: Plain, catalogue: Catalogue | None, *, several: bool) -> FormField:
    default, help_text = (
        facts.get("default", {} if facts.get("type") == "object" else MISSING),
        facts.get("description", ""),
    )
    if catalogue:
        return FormField(key, "names" if several else "name", help_text, default, tuple(entries(catalogue.module)))
    members = [each for each in facts.get("anyOf", [facts]) if each.get("type") != "null"]
    empty = len(members) < len(facts.get("anyOf", [facts]))
    one = members[0]
    if len(members) > 1:  # a text or several
        return FormField(key, "lines", f"{help_text}. One a line", default, ("one",), empty)
    if "enum" in one or "const" in one:
        return FormField(key, "choice", help_text, default, tuple(one.get("enum", [one.get("const")])), empty)
    if one["type"] == "array":
        item = one["items"]
        if "enum" in item:
            return FormField(key, "some", help_text, default, tuple(item["enum"]), empty)
        return FormField(key, "lines", f"{help_text}. One a line", default, (), empty)
    kinds: dict[str, Kind] = {"boolean": "yes_no", "integer": "whole", "number": "number", "object": "plain"}
    return FormField(key, kinds.get(one["type"], "text"), help_text, default, (), empty, _limits(one))


def _limits(facts: Plain) -> str:
    """The limits of a number in words."""
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    told = [f"{word} {facts[name]:g}" for name, word in words.items() if name in facts]
    kind = {"integer": "A whole number", "number": "A number"}.get(facts["type"], "")
    return f"{' '.join(each for each in (kind, ' and '.join(told)) if each)}." if told else ""


def _about(section: str) -> str:
    model: Any = Recipe
    for part in section.split(".") if section else []:
        model = model.model_fields[part].annotation
    return (model.__doc__ or "").strip().split("\n")[0] if section else "What it is called, and what it is about."


# --- what is entered ---------------------------------------------------------------------------------------


def _number(text: str) -> Any:
    """A whole number or one with a point; the text itself where it is none, which the recipe then refuses by name."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _line(text: Any) -> str:
    """A text as one line: as it is, or in quotes where it could not be read back."""
    plain = isinstance(text, str) and text == text.strip() and text and "\n" not in text and not text.startswith('"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unline(line: str) -> Any:
    if not line.lstrip().startswith('"'):
        return line.strip()
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{line} begins with a quote and does not end with one") from error


def _yaml(text: str, what: str) -> Any:
    """YAML in a field. Numbers such as 2e-4 are read as in a recipe's file."""
    from tunesmith.config.recipe import parse_setting
    from tunesmith.errors import RecipeError

    try:
        return parse_setting(f"x={text}")[1]
    except RecipeError as error:
        raise ValueError(f"{what} cannot be read as YAML") from error


def _block(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=None, allow_unicode=True, width=100, sort_keys=False).rstrip("\n")
