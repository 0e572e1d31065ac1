"""A plan says which rows are to be written: topics and styles for a model, or templates and fields for none.

Read like a recipe: an unknown key is an error, and everything wrong is told at once, each with its line.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from tunesmith.config.recipe import SHIPPED, Section, parse_yaml
from tunesmith.config.registry import nearest
from tunesmith.data.conversation import normalise
from tunesmith.data.sources import locate, read
from tunesmith.errors import DataError, RecipeError, Several, TunesmithError
from tunesmith.runs.run import hash_file, hash_plain

Place: TypeAlias = tuple[Any, ...]
Record: TypeAlias = Mapping[str, str]  # a field's name -> its value
Line = Annotated[str, Field(min_length=1, pattern=r"\S")]
NOT_CONTENT: dict[str, Any] = {"out": True, "tries": True, "server": {"url", "key", "timeout", "retries", "plain_http"}}


class Topic(Section):
    """Something that people ask about."""

    name: Line = Field(description="the topic's name; the rows' group")
    about: str = Field("", description="what belongs to it, for the model that writes")
    answer: Line | None = Field(None, description="the canonical answer; none: the model writes one, once")


class Server(Section):
    """Where the model is that writes: any server with OpenAI's chat completions."""

    url: str = Field(description="such as http://127.0.0.1:8080/v1")
    model: Line = Field(description="the model's name, as the server knows it")
    key: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = Field(
        None, description="the NAME of the environment variable that holds the key; never the key"
    )
    timeout: float = Field(120.0, gt=0, description="seconds for one answer")
    retries: int = Field(4, ge=0, le=100, description="times a request that fails for the moment is made again")
    plain_http: bool = Field(False, description="allow http, unencrypted, to another machine")
    temperature: float | None = Field(0.8, ge=0, le=2, description="higher varies more; null leaves it to the server")
    max_tokens: int = Field(512, ge=8, description="longest text the model may write")


class Template(Section):
    """Prompts with one answer; {name} stands for a field."""

    prompt: Line | list[Line] = Field(description="what is asked, or a list of phrasings of it")
    answer: Line = Field(description="what is answered")
    topic: Line | None = Field(None, description="the rows' topic; none: the plan's name")
    style: str = Field("", description="the rows' style")

    @property
    def prompts(self) -> list[str]:
        """The phrasings."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class RowPlan(Section):
    """Which rows are to be written."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="what the plan is called")
    about: str = Field("", description="whose prompts these are, such as: users of a shopping app's help desk")
    seed: int = Field(7, ge=0, description="everything random starts from this")
    out: str = Field(pattern=r"\.jsonl$", description="the file of rows, relative to where the command is given")
    topics: list[Topic] = Field(default_factory=list, description="what a model writes prompts about")
    per_topic: int = Field(8, ge=1, le=100_000, description="rows for each topic")
    styles: list[Line] = Field(default_factory=lambda: ["plain"], min_length=1, description="ways of asking")
    instruction: str = Field("", description="how an answer that the model writes must look")
    longest: int = Field(600, ge=10, description="characters that a written prompt may have")
    alike: float = Field(0.8, gt=0, le=1, description="prompts as alike as this (Jaccard) count as repeated")
    language: Literal["en", "de", "fr", "es", "it", "pt", "nl", "pl"] | None = Field(
        None, description="texts that clearly are in another language are rejected; none: not looked at"
    )
    tries: int = Field(4, ge=1, le=100, description="times the model is asked for one text")
    server: Server | None = Field(None, description="the model that writes")
    templates: list[Template] = Field(default_factory=list, description="texts with fields, without a model")
    fields: dict[str, str | list[str | int | float]] = Field(
        default_factory=dict, description="lists of values by name, and with `file` a table whose columns are fields"
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
        """The table's rows. Raises DataError for a table that cannot be read."""
        return [
            {str(name): "" if value is None else str(value) for name, value in row.values.items()}
            for table in self.tables
            for row in read(table)
        ]

    def fingerprint(self) -> str:
        """SHA-256 of what decides about the rows: the plan without its server's address, and the table."""
        plain = self.model_dump(mode="json", exclude=NOT_CONTENT)
        return hash_plain([plain, [hash_file(table) for table in self.tables]])


def find_plan(name: str) -> Path:
    """The file of a plan: a path that ends in .yaml, or the name of a shipped one. Raises RecipeError for neither."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    shipped = {file.stem: file for folder in SHIPPED for file in sorted((folder / "plans").glob("*.yaml"))}
    if name not in shipped:
        raise RecipeError(f"no plan is called '{name}'", next=f"Give a .yaml file. {nearest(name, shipped)}")
    return shipped[name]


def read_plan(path: Path) -> RowPlan:
    """The plan in the YAML file `path`.

    Raises Several with everything that is wrong, each with its line, and RecipeError for what is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"cannot be read: {reason}", where=str(path), next="Check the path") from error
    plain, lines = parse_yaml(text, str(path))

    def where(loc: Place) -> str:
        line = next((lines[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in lines), None)
        named = f"{path} line {line}" if line else str(path)
        return f"{named}, {'.'.join(map(str, loc))}" if loc else named

    try:
        plan = RowPlan.model_validate(plain)
    except ValidationError as error:
        raise Several([_explain(loc, detail, where(loc)) for loc, detail in _details(error)]) from None
    plan._folder = path.parent.resolve()
    wrong = [_told(each, where(loc)) for loc, each in _senseless(plan)]
    if wrong:
        raise Several(wrong)
    return plan


def slots(text: str) -> list[tuple[str, str | None]]:
    """A template as pieces: text, and the field behind it (None at the end). '{{' stands for a brace.

    A slot is looked up by its name and nothing else: {a.b} is the field called 'a.b'. Raises RecipeError for a template
    that does not close or asks for a format.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise RecipeError(f"is no template: {error}", next="Close each brace; write {{ for a brace") from error
    if any(form or conversion for _, _, form, conversion in parts):
        raise RecipeError("asks for a format", next="Only {name} may stand in braces; write {{ for a brace")
    return [(before, name) for before, name, _, _ in parts]


def names(text: str) -> list[str]:
    """The fields that a template uses, each once, in order."""
    return list(dict.fromkeys(name for _, name in slots(text) if name is not None))


def fill(text: str, values: Record) -> str:
    """The template with its slots filled; a value is never read as a template. Raises KeyError for a missing field."""
    return "".join(before + ("" if name is None else values[name]) for before, name in slots(text))


# --- what is wrong -------------------------------------------------------------------------------------------


def _details(error: ValidationError) -> Iterator[tuple[Place, Any]]:
    """Each wrong value once; a list's item says more than the list."""
    grouped: dict[Place, Any] = {}
    for detail in error.errors():
        loc = detail["loc"]
        if detail["type"] != "extra_forbidden":  # without the names that pydantic gives to a union's members
            tags = {"str", "int", "float"}
            loc = tuple(p for n, p in enumerate(loc) if not (isinstance(p, str) and (p in tags or "[" in p) and n))
        grouped.setdefault(loc, detail)
    inner = {loc[:end] for loc in grouped for end in range(len(loc))}
    yield from ((loc, detail) for loc, detail in grouped.items() if loc not in inner)


def _explain(loc: Place, detail: Any, where: str) -> RecipeError:
    known = _section(loc[:-1]).model_fields if loc else {}
    if detail["type"] == "extra_forbidden":
        return RecipeError(f"unknown key '{loc[-1]}'", where=where, next=nearest(str(loc[-1]), known))
    if detail["type"] == "missing":
        return RecipeError(f"'{loc[-1]}' is missing", where=where, next=f"Add {loc[-1]}: …")
    field = known.get(str(loc[-1])) if loc else None
    advice = f"{loc[-1]} is: {field.description}" if field and field.description else ""
    if loc == ("server", "key"):  # what stands there may be the key itself
        return RecipeError("is no variable's name in capitals", where=where, next=advice)
    return RecipeError(
        f"{detail['msg'][0].lower()}{detail['msg'][1:]}, not {detail['input']!r}", where=where, next=advice
    )


def _section(loc: Place) -> type[BaseModel]:
    """The section that `loc` leads to."""
    model: type[BaseModel] = RowPlan
    for part in loc:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = [kind for kind in _kinds(field.annotation if field else None) if issubclass(kind, BaseModel)]
        model = inner[0] if inner else model
    return model


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for each in get_args(annotation):
        yield from _kinds(each)


def _told(error: TunesmithError, where: str) -> TunesmithError:
    return type(error)(error.what, where=where, next=error.next)


def _senseless(plan: RowPlan) -> Iterator[tuple[Place, TunesmithError]]:
    """What no single value is to blame for."""
    if bool(plan.topics) == bool(plan.templates):
        what = "has both topics and templates" if plan.topics else "has neither topics nor templates"
        yield (), RecipeError(what, next="A model writes about topics; templates are filled without one")
        return
    given = plan.model_fields_set
    foreign = {"rows", "fields"} if plan.topics else {"per_topic", "styles", "instruction", "server", "alike", "tries"}
    for name in sorted(given & foreign):
        kind = "topics" if plan.topics else "templates"
        yield (name,), RecipeError(f"'{name}' has no meaning in a plan with {kind}", next="Remove it")
    yield from _topics(plan) if plan.topics else _templates(plan)


def _topics(plan: RowPlan) -> Iterator[tuple[Place, TunesmithError]]:
    if plan.server is None:
        yield (), RecipeError("'server' is missing", next="Add server: {url: http://127.0.0.1:8080/v1, model: …}")
    for key, texts in (("topics", [topic.name for topic in plan.topics]), ("styles", plan.styles)):
        for number in _repeated(texts):
            yield (key, number), RecipeError(f"'{texts[number]}' stands twice", next="Remove one")


def _templates(plan: RowPlan) -> Iterator[tuple[Place, TunesmithError]]:
    columns: set[str] = set()
    for name, value in plan.fields.items():
        if isinstance(value, str) and name != "file":
            yield ("fields", name), RecipeError(f"'{name}' is no list", next="Write [a, b, c]; only `file` is a path")
        elif not value:
            yield ("fields", name), RecipeError(f"'{name}' has no value", next="Write [a, b, c]")
        for number in _repeated(plan.lists.get(name, [])):
            yield ("fields", name, number), RecipeError(f"'{plan.lists[name][number]}' stands twice", next="Remove one")
    try:
        columns = {name for record in plan.records()[:1] for name in record}
        if "file" in plan.fields and not columns:
            yield ("fields", "file"), DataError("the table has no row", next="Name another")
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
            RecipeError(f"no template uses '{name}'", next="Remove it, or write it into a template"),
        )


def _template(
    loc: Place, template: Template, columns: set[str], lists: Any, used: set[str]
) -> Iterator[tuple[Place, TunesmithError]]:
    """What is wrong with one template; adds what it uses to `used`."""
    for key, texts in (("prompt", template.prompts), ("answer", [template.answer])):
        for place, text in enumerate(texts):
            here = (*loc, key, place) if isinstance(getattr(template, key), list) else (*loc, key)
            try:
                wanted = names(text)
            except RecipeError as error:
                yield here, error
                return
            used.update(wanted)
            for name in wanted:
                if name not in columns and name not in lists:
                    yield here, RecipeError(f"no field is called '{name}'", next=nearest(name, [*columns, *lists]))
    for place, text in enumerate(template.prompts):
        for name in sorted((set(names(template.answer)) - set(names(text))) & set(lists)):
            here = (*loc, "prompt", place) if isinstance(template.prompt, list) else (*loc, "prompt")
            what = f"the answer draws {{{name}}} from a list and the prompt does not say it, which teaches to invent"
            yield here, RecipeError(what, next=f"Write {{{name}}} into the prompt, or take it from a table")
    for place in _repeated(template.prompts):
        yield (*loc, "prompt", place), RecipeError("the phrasing stands twice", next="Remove one")


def _repeated(texts: list[str]) -> list[int]:
    """The places of texts that stand before, by `normalise`."""
    first: dict[str, int] = {}
    return [place for place, text in enumerate(texts) if first.setdefault(normalise(text), place) != place]
