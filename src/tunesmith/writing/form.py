"""Derives the form of a recipe, and builds the same conversation from its values as training does."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tunesmith.claims.fields import guess_side
from tunesmith.config.recipe import NamedSetting, Recipe
from tunesmith.config.registry import nearest
from tunesmith.data import formats
from tunesmith.data.conversation import Turn
from tunesmith.data.formats import detect_row_format
from tunesmith.data.messages import ROLES, message_list
from tunesmith.data.rows import Row
from tunesmith.data.sources import open_sources
from tunesmith.errors import DataError, TunesmithError, raise_all

REQUEST_FIELD = "request"  # the one field of recipes for chat
MAX_LINE = 200  # characters of a one-line field
CHARACTERS_PER_TOKEN = 4  # lower bound of the average in English
GROUNDING_CHECKS = ("grounded", "contradicted", "ungrounded")  # metrics and checks
_ONE_LINE = re.compile(
    r"\b(?:name|title|company|employer|organi[sz]ation|role|position|date|place|city|tone|language|school|product)\b",
    re.IGNORECASE,
)
_REQUIRED = re.compile(r"\b(?:name|title|company|employer|organi[sz]ation)\b", re.IGNORECASE)
_CONTROL_TOKEN = re.compile(  # control tokens of current models
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|mask)>|<[a-zA-Z]{1,20}_\w{1,30}>|<(?:filename|reponame|unused\d+)>"
    r"|\[/?[A-Z_]{3,20}\]|<</?SYS>>"
    r"|<｜[^<>\s]{1,40}｜>"
)

Kind = Literal["text", "lines"]


@dataclass(frozen=True)
class Field:
    """One value of the form: one line (`text`) or several (`lines`). `longest` is in characters."""

    name: str
    label: str
    help: str
    kind: Kind
    required: bool
    longest: int


@dataclass(frozen=True)
class Form:
    """The fields and settings of a recipe's form.

    `system` is the system message, `example` the values of a row if there is one. `max_tokens` is the limit of replies
    in the evaluation. `checked`: claims are checked against `facts`, names of fields. `document`: the reply is one
    document, not a chat answer. `prompt_lines` are lines of the prompt that belong to no field: instruction and system
    message.
    """

    name: str
    about: str
    fields: tuple[Field, ...]
    system: str | None
    example: Mapping[str, str]
    max_tokens: int
    checked: bool = False
    facts: tuple[str, ...] = ()
    document: bool = False
    prompt_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Shape:
    """A format with its options, as in `data/formats`, and the columns that make up a prompt."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = (REQUEST_FIELD,)
    optional: frozenset[str] = frozenset()


def build_form(recipe: Recipe) -> Form:
    """Return the recipe's form: the columns of a `fields` format or of a prompt template, else one field.

    The example, and the columns for the format `auto`, come from the first row of the data if it is on this machine.
    Nothing is downloaded.
    """
    row = _first_row(recipe)
    shape = _prompt_shape(recipe, row)
    from_fields = shape.name == "fields"
    longest = max(1000, recipe.prompt.max_tokens * CHARACTERS_PER_TOKEN)
    fields = tuple(
        _field(name, from_fields=from_fields, required=name not in shape.optional, longest=longest)
        for name in shape.columns
    )
    example = {name: text for name in shape.columns if (text := _example(row, shape, name)) and len(text) <= longest}
    checkers = [item for item in (*recipe.evaluate.metrics, *recipe.data.checks) if item.name in GROUNDING_CHECKS]
    fact_names = {str(name) for checker in checkers for name in checker.options.get("fields") or ()}
    instruction = str(shape.options.get("instruction") or "") if from_fields else ""
    return Form(
        recipe.name,
        recipe.about,
        fields,
        recipe.prompt.system,
        example,
        recipe.evaluate.max_new_tokens,
        bool(checkers),
        tuple(field.name for field in fields if not fact_names or field.name in fact_names) if checkers else (),
        from_fields,
        tuple(line for line in (*instruction.split("\n"), *(recipe.prompt.system or "").split("\n")) if line.strip()),
    )


def build_prompt(recipe: Recipe, values: Mapping[str, str], system: str | None = None) -> tuple[Turn, ...]:
    """Return the turns that a row with these values has in training, without its answer.

    `system` None takes the recipe's system message, '' none. Control tokens in values (`<|im_end|>`) are broken by a
    space. Raises DataError, or MultipleErrors, for fields that are missing, unknown or too long.
    """
    check_values(build_form(recipe), values)
    shape = _prompt_shape(recipe, _first_row(recipe))
    cleaned = {name: break_control_tokens(values.get(name, "")) for name in shape.columns}
    turns = _turns(shape, cleaned)
    message = recipe.prompt.system if system is None else system
    if system is not None and turns[0].role == "system":
        turns = turns[1:]
    if message and turns[0].role != "system":
        turns = (Turn("system", break_control_tokens(message)), *turns)
    return turns


def check_values(form: Form, values: Mapping[str, str]) -> None:
    """Raise DataError, or MultipleErrors, for values that are unknown to the form, missing or too long."""
    raise_all(list(_problems(form, values)))


def break_control_tokens(text: str) -> str:
    """Insert a space into each written-out control token, so that no tokenizer reads it as one."""
    return _CONTROL_TOKEN.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def _problems(form: Form, values: Mapping[str, str]) -> Iterator[TunesmithError]:
    fields = {field.name: field for field in form.fields}
    where = f"the form {form.name}"
    for name, text in values.items():
        if name not in fields:
            yield DataError(f"the form has no field '{str(name)[:80]}'", where=where, next=nearest(str(name), fields))
        elif not isinstance(text, str):
            yield DataError(
                f"'{name}' is a {type(text).__name__}, not a string", where=where, next="Pass it as a string"
            )
        elif len(text) > fields[name].longest:
            message = f"'{name}' has {len(text):,} characters, more than {fields[name].longest:,}"
            yield DataError(message, where=where, next="Shorten it")
    empty = [field.label for field in form.fields if field.required and not str(values.get(field.name) or "").strip()]
    if not empty and not any(isinstance(text, str) and text.strip() for text in values.values()):
        yield DataError("no field is filled in", where=where, next="Fill in at least one field")
    if empty:
        yield DataError(
            f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} missing",
            where=where,
            next="Fill it in" if len(empty) == 1 else "Fill them in",
        )


def _field(name: str, *, from_fields: bool, required: bool, longest: int) -> Field:
    plain = re.sub(r"[_\-]+|(?<=[a-z])(?=[A-Z])", " ", name).strip() or name
    label = plain[:1].upper() + plain[1:]
    if not from_fields:
        text = "What the model should do or answer." if required else "Details for the request, if any."
        return Field(name, label, text, "lines", required, longest)
    kind: Kind = "text" if _ONE_LINE.search(plain) else "lines"
    is_required = required and bool(_REQUIRED.search(plain))
    return Field(name, label, _help(name, kind), kind, is_required, MAX_LINE if kind == "text" else longest)


def _help(name: str, kind: Kind) -> str:
    side_help = {
        "writer": "Facts about the writer. The text may state only facts from such fields.",
        "reader": "From the advert or about the reader. Its requirements are not facts about the writer.",
        "both": "May support any statement of the text.",
    }[guess_side(name)]
    return side_help if kind == "text" else f"{side_help} Several lines are read as one."


# --- formats ----------------------------------------------------------------------------------------------------


def _prompt_shape(recipe: Recipe, row: Mapping[str, Any]) -> _Shape:
    data_format: NamedSetting = recipe.data.format
    if data_format.name != "auto":
        return _shape_of(data_format.name, data_format.options)
    if not row:
        return _Shape("chat")
    try:
        recognized = detect_row_format(row)
    except DataError:
        return _Shape("chat")
    return _shape_of(recognized.name, recognized.options)


def _shape_of(name: str, options: Mapping[str, Any]) -> _Shape:
    format_options = {key: value for key, value in options.items() if key != "group"}
    if name == "fields":
        return _Shape(name, format_options, tuple(map(str, options["fields"])))
    if name == "columns":
        templates = [str(options.get("prompt", "prompt")), *([str(options["system"])] if options.get("system") else [])]
        return _Shape(
            name,
            format_options,
            tuple(dict.fromkeys(column for template in templates for column in _columns(template))),
        )
    if name == "alpaca":
        question, details = str(options.get("instruction", "instruction")), str(options.get("input", "input"))
        return _Shape(name, format_options, (question, details), frozenset([details]))
    if name == "lines":
        column = options.get("prompt")
        return _Shape(name, {**format_options, "prompt": column or REQUEST_FIELD}, (str(column or REQUEST_FIELD),))
    return _Shape("chat")


def _columns(template: str) -> list[str]:
    """Return the columns that an option of the format `columns` names: the option itself, or those in its braces."""
    if "{" not in template:
        return [template]
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _turns(shape: _Shape, values: Mapping[str, str]) -> tuple[Turn, ...]:
    """Return the turns without the answer, built by the function that builds training rows."""
    options = dict(shape.options)
    if shape.name == "fields":
        parsed = formats.fields({**values, options["answer"]: ""}, **options)
    elif shape.name == "columns":
        parsed = formats.columns({**values, options.get("answer", "answer"): ""}, **options)
    elif shape.name == "alpaca":
        parsed = formats.alpaca({**values, options.get("output", "output"): ""}, **options)
    elif shape.name == "lines":
        parsed = formats.lines({**values, options.get("line", "line"): ""}, **options)
    else:
        messages = [{"role": "user", "content": values[REQUEST_FIELD]}, {"role": "assistant", "content": ""}]
        parsed = formats.chat({"messages": messages})
    return parsed[0][:-1]


# --- first row of the data --------------------------------------------------------------------------------------


def _first_row(recipe: Recipe) -> Mapping[str, Any]:
    """Return the first row of the data, or of the small sample, if it is on this machine.

    With `data.pseudonyms` there is none: the file still holds the real names.
    """
    if recipe.data.pseudonyms:
        return {}
    source_names = recipe.data.source
    sources = [source_names] if isinstance(source_names, str) else list(source_names)
    sample = recipe.small.get("data.source")
    for source in [*sources, *([sample] if isinstance(sample, str) else [])]:
        if not source.startswith("hub:") and (row := _read_first(str(recipe.path(source)))):
            return row
    return {}


@lru_cache(maxsize=32)
def _read_first(path: str) -> Mapping[str, Any]:
    try:
        for source in open_sources(path, Path("/")):
            for row in source.rows():
                if isinstance(row, Row):
                    return dict(row.values)
    except TunesmithError:  # the data of an old run may be gone; then there is no example
        pass
    return {}


def _example(row: Mapping[str, Any], shape: _Shape, name: str) -> str:
    value = row.get(name)
    if value is None and shape.name == "chat":
        value = _first_question(row)
    return " ".join(value.split()) if isinstance(value, str) and shape.name == "fields" else str(value or "").strip()


def _first_question(row: Mapping[str, Any]) -> str:
    """Return the first user message of a row of messages."""
    for value in row.values():
        for message in message_list(value) or ():
            if isinstance(message, dict):
                role = message.get("role", message.get("from"))
                content = message.get("content", message.get("value"))
                if ROLES.get(str(role)) == "user" and isinstance(content, str):
                    return content
    return ""
