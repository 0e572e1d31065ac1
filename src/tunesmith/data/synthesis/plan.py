"""The plan of rows to generate: topics and styles for a model, or templates and fields without one.

Read like a recipe: an unknown key is an error, and all errors are reported at once, each with its line.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from tunesmith.config.recipe import SHIPPED, Section, parse_yaml
from tunesmith.config.registry import nearest
from tunesmith.data.conversation import normalize
from tunesmith.data.sources import locate, read
from tunesmith.errors import DataError, MultipleErrors, RecipeError, TunesmithError
from tunesmith.runs.run import hash_file, hash_json

Place: TypeAlias = tuple[Any, ...]
Record: TypeAlias = Mapping[str, str]  # field name -> value
Line = Annotated[str, Field(min_length=1, pattern=r"\S")]
NOT_CONTENT: dict[str, Any] = {"out": True, "tries": True, "server": {"url", "key", "timeout", "retries", "plain_http"}}


class Topic(Section):
    """Something that people ask about."""

    name: Line = Field(description="the topic's name; the rows' group")
    about: str = Field("", description="what the topic covers, for the model")
    answer: Line | None = Field(None, description="the canonical answer; none: the model writes one, once")


class Server(Section):
    """The server of the model: any with an OpenAI-compatible chat completions API."""

    url: str = Field(description="such as http://127.0.0.1:8080/v1")
    model: Line = Field(description="the model's name, as the server knows it")
    key: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = Field(
        None, description="the NAME of the environment variable with the key; never the key itself"
    )
    timeout: float = Field(120.0, gt=0, description="seconds for one answer")
    retries: int = Field(4, ge=0, le=100, description="repetitions of a request after a temporary failure")
    plain_http: bool = Field(False, description="allow http, unencrypted, to another machine")
    temperature: float | None = Field(0.8, ge=0, le=2, description="higher varies more; null leaves it to the server")
    max_tokens: int = Field(512, ge=8, description="tokens that the model may write for one text")


class Template(Section):
    """Prompts with one answer; {name} is replaced by a field."""

    prompt: Line | list[Line] = Field(description="the prompt, or a list of phrasings of it")
    answer: Line = Field(description="the answer")
    topic: Line | None = Field(None, description="the rows' topic; none: the plan's name")
    style: str = Field("", description="the rows' style")

    @property
    def prompts(self) -> list[str]:
        """The phrasings."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class RowPlan(Section):
    """The plan of rows to generate."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the name of the plan")
    about: str = Field("", description="who writes the prompts, such as: users of a shopping app's help desk")
    seed: int = Field(7, ge=0, description="the seed of all random choices")
    out: str = Field(pattern=r"\.jsonl$", description="the file of rows, relative to the working directory")
    topics: list[Topic] = Field(default_factory=list, description="topics that a model writes prompts about")
    per_topic: int = Field(8, ge=1, le=100_000, description="rows for each topic")
    styles: list[Line] = Field(default_factory=lambda: ["plain"], min_length=1, description="ways of asking")
    instruction: str = Field("", description="the form of answers that the model writes")
    longest: int = Field(600, ge=10, description="characters that a generated prompt may have")
    alike: float = Field(0.8, gt=0, le=1, description="prompts with at least this Jaccard similarity count as repeated")
    language: Literal["en", "de", "fr", "es", "it", "pt", "nl", "pl"] | None = Field(
        None, description="texts that are clearly in another language are rejected; none: not checked"
    )
    tries: int = Field(4, ge=1, le=100, description="requests to the model for one text")
    server: Server | None = Field(None, description="the server of the model")
    templates: list[Template] = Field(default_factory=list, description="texts with fields, filled without a model")
    fields: dict[str, str | list[str | int | float]] = Field(
        default_factory=dict, description="lists of values by name; `file` is a table whose columns are fields"
    )
    rows: int = Field(200, ge=1, le=1_000_000, description="rows from templates, in equal shares")

    _folder: Path = PrivateAttr(default=Path())

    @property
    def lists(self) -> dict[str, list[str]]:
        """The fields that are lists of values."""
        return {name: list(map(str, value)) for name, value in self.fields.items() if isinstance(value, list)}

    @property
    def tables(self) -> list[Path]:
        """The files of the table that `fields` names."""
        source = self.fields.get("file")
        return locate(source, self._folder) if isinstance(source, str) else []

    def records(self) -> list[Record]:
        """The rows of the table. Raises DataError if it cannot be read."""
        return [
            {str(name): "" if value is None else str(value) for name, value in row.values.items()}
            for table in self.tables
            for row in read(table)
        ]

    def fingerprint(self) -> str:
        """SHA-256 of what determines the rows: the plan without its server's address, and the table."""
        plain = self.model_dump(mode="json", exclude=NOT_CONTENT)
        return hash_json([plain, [hash_file(table) for table in self.tables]])


def find_plan(name: str) -> Path:
    """The file of a plan, given by a path that ends in .yaml or by a shipped name. Raises RecipeError for others."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    shipped_plans = {file.stem: file for folder in SHIPPED for file in sorted((folder / "plans").glob("*.yaml"))}
    if name not in shipped_plans:
        raise RecipeError(f"there is no plan '{name}'", next=f"Give a .yaml file. {nearest(name, shipped_plans)}")
    return shipped_plans[name]


def read_plan(path: Path) -> RowPlan:
    """Reads a plan from a YAML file.

    Raises MultipleErrors with all errors, each with its line, and RecipeError if the file is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"cannot be read: {reason}", where=str(path), next="Check the path") from error
    plain, lines = parse_yaml(text, str(path))

    def where(loc: Place) -> str:
        line = next((lines[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in lines), None)
        location = f"{path} line {line}" if line else str(path)
        return f"{location}, {'.'.join(map(str, loc))}" if loc else location

    try:
        plan = RowPlan.model_validate(plain)
    except ValidationError as error:
        raise MultipleErrors([_explain(loc, detail, where(loc)) for loc, detail in _details(error)]) from None
    plan._folder = path.parent.resolve()
    errors = [_with_location(error_found, where(loc)) for loc, error_found in _conflicts(plan)]
    if errors:
        raise MultipleErrors(errors)
    return plan


def template_slots(text: str) -> list[tuple[str, str | None]]:
    """Splits a template into pairs of text and the field after it (None at the end); '{{' is a literal brace.

    A field is looked up by its name only: {a.b} is the field 'a.b'. Raises RecipeError for an unclosed brace or a
    format specifier.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise RecipeError(f"is not a template: {error}", next="Close each brace; write {{ for a literal one") from error
    if any(form or conversion for _, _, form, conversion in parts):
        raise RecipeError("has a format specifier", next="Write only {name} in braces; write {{ for a literal one")
    return [(before, name) for before, name, _, _ in parts]


def slot_names(text: str) -> list[str]:
    """The distinct fields of a template, in order."""
    return list(dict.fromkeys(name for _, name in template_slots(text) if name is not None))


def fill_template(text: str, values: Record) -> str:
    """Fills a template; a value is never read as a template. Raises KeyError for a missing field."""
    return "".join(before + ("" if name is None else values[name]) for before, name in template_slots(text))


# --- validation ----------------------------------------------------------------------------------------------


def _details(error: ValidationError) -> Iterator[tuple[Place, Any]]:
    """Each invalid value once, by the innermost location."""
    grouped: dict[Place, Any] = {}
    for detail in error.errors():
        loc = detail["loc"]
        if detail["type"] != "extra_forbidden":  # without pydantic's names of union members
            tags = {"str", "int", "float"}
            loc = tuple(p for n, p in enumerate(loc) if not (isinstance(p, str) and (p in tags or "[" in p) and n))
        grouped.setdefault(loc, detail)
    inner = {loc[:end] for loc in grouped for end in range(len(loc))}
    yield from ((loc, detail) for loc, detail in grouped.items() if loc not in inner)


def _explain(loc: Place, detail: Any, where: str) -> RecipeError:
    known_fields = _section(loc[:-1]).model_fields if loc else {}
    if detail["type"] == "extra_forbidden":
        return RecipeError(f"unknown key '{loc[-1]}'", where=where, next=nearest(str(loc[-1]), known_fields))
    if detail["type"] == "missing":
        return RecipeError(f"'{loc[-1]}' is missing", where=where, next=f"Add {loc[-1]}: …")
    field = known_fields.get(str(loc[-1])) if loc else None
    advice = f"{loc[-1]} is: {field.description}" if field and field.description else ""
    if loc == ("server", "key"):  # the value may be the key itself
        return RecipeError("is not a variable name in capitals", where=where, next=advice)
    return RecipeError(
        f"{detail['msg'][0].lower()}{detail['msg'][1:]}, not {detail['input']!r}", where=where, next=advice
    )


def _section(loc: Place) -> type[BaseModel]:
    """The section at `loc`."""
    model: type[BaseModel] = RowPlan
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = [kind for kind in _kinds(field.annotation if field else None) if issubclass(kind, BaseModel)]
        model = inner[0] if inner else model
    return model


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


def _with_location(error: TunesmithError, where: str) -> TunesmithError:
    return type(error)(error.what, where=where, next=error.next)


def _conflicts(plan: RowPlan) -> Iterator[tuple[Place, TunesmithError]]:
    """Yields errors that concern several values."""
    if bool(plan.topics) == bool(plan.templates):
        message = "has both topics and templates" if plan.topics else "has neither topics nor templates"
        yield (), RecipeError(message, next="Give topics, which need a model, or templates, which do not")
        return
    given_keys = plan.model_fields_set
    unused_keys = (
        {"rows", "fields"} if plan.topics else {"per_topic", "styles", "instruction", "server", "alike", "tries"}
    )
    for name in sorted(given_keys & unused_keys):
        kind = "topics" if plan.topics else "templates"
        yield (name,), RecipeError(f"'{name}' has no effect in a plan with {kind}", next="Remove it")
    yield from _topics(plan) if plan.topics else _templates(plan)


def _topics(plan: RowPlan) -> Iterator[tuple[Place, TunesmithError]]:
    if plan.server is None:
        yield (), RecipeError("'server' is missing", next="Add server: {url: http://127.0.0.1:8080/v1, model: …}")
    for key, texts in (("topics", [topic.name for topic in plan.topics]), ("styles", plan.styles)):
        for number in _repeated(texts):
            yield (key, number), RecipeError(f"'{texts[number]}' is listed twice", next="Remove one")


def _templates(plan: RowPlan) -> Iterator[tuple[Place, TunesmithError]]:
    columns: set[str] = set()
    for name, value in plan.fields.items():
        if isinstance(value, str) and name != "file":
            yield (
                ("fields", name),
                RecipeError(f"'{name}' is not a list", next="Write [a, b, c]; only `file` is a path"),
            )
        elif not value:
            yield ("fields", name), RecipeError(f"'{name}' has no value", next="Write [a, b, c]")
        for number in _repeated(plan.lists.get(name, [])):
            yield (
                ("fields", name, number),
                RecipeError(f"'{plan.lists[name][number]}' is listed twice", next="Remove one"),
            )
    try:
        columns = {name for record in plan.records()[:1] for name in record}
        if "file" in plan.fields and not columns:
            yield ("fields", "file"), DataError("the table has no rows", next="Name another file")
    except DataError as error:
        yield ("fields", "file"), DataError(f"{error.where}: {error.what}", next=error.next)
        return
    for name in sorted(columns & plan.lists.keys()):
        yield ("fields", name), RecipeError(f"'{name}' is also a column of the table", next="Rename one")
    used: set[str] = set()
    for number, template in enumerate(plan.templates):
        yield from _template(("templates", number), template, columns, plan.lists.keys(), used)
    for name in sorted(plan.lists.keys() - used):
        yield (
            ("fields", name),
            RecipeError(f"no template uses '{name}'", next="Remove it, or use it in a template"),
        )


def _template(
    loc: Place, template: Template, columns: set[str], lists: Any, used: set[str]
) -> Iterator[tuple[Place, TunesmithError]]:
    """Yields the errors of one template and adds its fields to `used`."""
    for key, texts in (("prompt", template.prompts), ("answer", [template.answer])):
        for index, text in enumerate(texts):
            location = (*loc, key, index) if isinstance(getattr(template, key), list) else (*loc, key)
            try:
                field_names = slot_names(text)
            except RecipeError as error:
                yield location, error
                return
            used.update(field_names)
            for name in field_names:
                if name not in columns and name not in lists:
                    yield location, RecipeError(f"there is no field '{name}'", next=nearest(name, [*columns, *lists]))
    for index, text in enumerate(template.prompts):
        for name in sorted((set(slot_names(template.answer)) - set(slot_names(text))) & set(lists)):
            location = (*loc, "prompt", index) if isinstance(template.prompt, list) else (*loc, "prompt")
            message = (
                f"the answer uses {{{name}}} from a list, but the prompt does not: this teaches the model to invent"
            )
            yield location, RecipeError(message, next=f"Use {{{name}}} in the prompt, or take it from a table")
    for index in _repeated(template.prompts):
        yield (*loc, "prompt", index), RecipeError("the phrasing is listed twice", next="Remove one")


def _repeated(texts: list[str]) -> list[int]:
    """The indices of texts that equal an earlier one after `normalize`."""
    first: dict[str, int] = {}
    return [index for index, text in enumerate(texts) if first.setdefault(normalize(text), index) != index]
