"""A recipe is read, or everything wrong with it is said at once, each with its line and what to do."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from tunesmith.config.recipe import (
    Adapter,
    Data,
    Recipe,
    Section,
    Split,
    Train,
    find_recipe,
    is_recipe,
    parse_setting,
    parse_yaml,
    read_recipe,
    recipe_schema,
)
from tunesmith.config.registry import check_options, entries, entry_constant, nearest, resolve
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import MissingExtra, MultipleErrors, RecipeError, TunesmithError
from tunesmith.evaluation.score import TrainingAnswers, View
from tunesmith.generation.text_model import Reply

FORMATS, CHECKS = (", ".join(entries(f"tunesmith.data.{room}")) for room in ("formats", "checks"))

MINIMAL = """\
name: toy
base:
  model: tiny
data:
  source: rows.jsonl
  format: columns
"""  # what a test adds starts at line 7
Wrong = tuple[str, str, str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str, **options: Any) -> Recipe:
    Path("toy.yaml").write_text(text, encoding="utf-8")
    return read_recipe("toy.yaml", **options)


def wrong(text: str, **options: Any) -> list[Wrong]:
    """Everything that is wrong: (where, what, next)."""
    with pytest.raises(TunesmithError) as caught:
        read(text, **options)
    assert caught.value.exit_code == 2
    errors = caught.value.errors if isinstance(caught.value, MultipleErrors) else [caught.value]
    assert {type(error) for error in errors} == {RecipeError}
    return [(error.where, error.what, error.next) for error in errors]


def choose(section: Any, closest: str = "") -> str:
    """The hint for an unknown key: the nearest one, and all."""
    choices = f"Choose from: {', '.join(sorted(section.model_fields))}"
    return f"Did you mean '{closest}'? {choices}" if closest else choices


def helped(section: Any, key: str) -> str:
    return f"{key} is: {section.model_fields[key].description}"


def changed(old: str, new: str) -> str:
    assert MINIMAL.count(old) == 1
    return MINIMAL.replace(old, new)


CHECKS = f"Choose from: {CHECKS}"
METRICS = f"Choose from: {', '.join(entries('tunesmith.evaluation.metrics'))}"
NAMED = "must be 'name' or '{name: {options}}'"
ONE: dict[str, tuple[str, Wrong]] = {
    "misspelt key": (
        MINIMAL + "trian: {epochs: 2}\n",
        ("toy.yaml line 7, trian", "unknown key 'trian'", choose(Recipe, "train")),
    ),
    "unknown key, nothing near": (
        MINIMAL + "color: blue\n",
        ("toy.yaml line 7, color", "unknown key 'color'", choose(Recipe)),
    ),
    "misspelt nested key": (
        MINIMAL + "train:\n  epochs: 2\n  learnig_rate: 2e-4\n",
        ("toy.yaml line 9, train.learnig_rate", "unknown key 'learnig_rate'", choose(Train, "learning_rate")),
    ),
    "misspelt key two sections down": (
        MINIMAL + "  split:\n    test: 0.2\n    vaild: 0.2\n",
        ("toy.yaml line 9, data.split.vaild", "unknown key 'vaild'", choose(Split, "valid")),
    ),
    "a key called like a type": (
        MINIMAL + "str: 1\n",
        ("toy.yaml line 7, str", "unknown key 'str'", choose(Recipe)),
    ),
    "a key that is a number": (
        MINIMAL + "train:\n  1: 2\n",
        ("toy.yaml line 7, train.1", "keys should be strings, not 1", ""),
    ),
    "wrong type": (
        MINIMAL + "train:\n  epochs: two\n",
        ("toy.yaml line 8, train.epochs", "input should be a valid integer, not 'two'", helped(Train, "epochs")),
    ),
    "a number in quotes": (
        MINIMAL + "train: {epochs: '2'}\n",
        ("toy.yaml line 7, train.epochs", "input should be a valid integer, not '2'", helped(Train, "epochs")),
    ),
    "yes for a number": (
        MINIMAL + "train: {epochs: yes}\n",
        ("toy.yaml line 7, train.epochs", "input should be a valid integer, not True", helped(Train, "epochs")),
    ),
    "out of its limits": (
        MINIMAL + "adapter:\n  rank: 0\n",
        ("toy.yaml line 8, adapter.rank", "input should be greater than or equal to 1, not 0", helped(Adapter, "rank")),
    ),
    "none of the words": (
        MINIMAL + "train:\n\n  precision: bf16\n",
        (
            "toy.yaml line 9, train.precision",
            "input should be 'auto', 'float32', 'bfloat16', 'float16' or 'fast', not 'bf16'",
            helped(Train, "precision"),
        ),
    ),
    "not in the pattern": (
        MINIMAL + "train:\n  batch: 0 rows\n",
        (
            "toy.yaml line 8, train.batch",
            r"string should match pattern '^[1-9]\d* (rows|tokens)$', not '0 rows'",
            helped(Train, "batch"),
        ),
    ),
    "a value of none of two types is one mistake": (
        changed("rows.jsonl", "5"),
        (
            "toy.yaml line 5, data.source",
            "input should be a valid string or a valid list, not 5",
            helped(Data, "source"),
        ),
    ),
    "an item of a list": (
        changed("rows.jsonl", "[a.csv, 5]"),
        ("toy.yaml line 5, data.source.1", "input should be a valid string, not 5", ""),
    ),
    "not a section": (
        MINIMAL + "train: 5\n",
        ("toy.yaml line 7, train", "input should be a valid dictionary or instance of Train, not 5", ""),
    ),
    "missing key": (
        changed("name: toy\n", ""),
        ("toy.yaml, name", "'name' is missing", "Add name: …"),
    ),
    "missing nested key": (
        changed("  source: rows.jsonl\n", ""),
        ("toy.yaml line 4, data.source", "'source' is missing", "Add source: …"),
    ),
    "unknown catalog name": (
        changed("columns", "colums"),
        (
            "toy.yaml line 6, data.format",
            "unknown name 'colums'",
            f"Did you mean 'columns'? Choose from: {FORMATS}",
        ),
    ),
    "unknown catalog name, nothing near": (
        MINIMAL + "train: {schedule: zigzag}\n",
        ("toy.yaml line 7, train.schedule", "unknown name 'zigzag'", "Choose from: constant, cosine, linear"),
    ),
    "unknown catalog name in a list": (
        MINIMAL + "  checks:\n    - empty\n    - duplicates\n",
        ("toy.yaml line 9, data.checks.1", "unknown name 'duplicates'", f"Did you mean 'duplicate'? {CHECKS}"),
    ),
    "a helper is no check": (
        MINIMAL + "  checks: [normalise]\n",
        ("toy.yaml line 7, data.checks.0", "unknown name 'normalise'", CHECKS),
    ),
    "unknown file of a folder": (
        MINIMAL + "train: {engine: nativ}\n",
        ("toy.yaml line 7, train.engine", "unknown name 'nativ'", "Did you mean 'native'? Choose from: native, trl"),
    ),
    "no layers": (
        MINIMAL + "adapter: {layers: []}\n",
        (
            "toy.yaml line 7, adapter.layers",
            "the list is empty, so no layer would be adapted",
            "Write all, or names of linear layers such as [q_proj, v_proj]",
        ),
    ),
    "unknown option": (
        changed("columns", "\n    columns:\n      prompt: q\n      anser: a"),
        (
            "toy.yaml line 9, data.format.columns.anser",
            "unknown option 'anser'",
            "Did you mean 'answer'? Choose from: answer, group, prompt, system",
        ),
    ),
    "an option where there is none": (
        MINIMAL + "evaluate:\n  metrics:\n    - loss\n    - stops: {x: 1}\n",
        ("toy.yaml line 10, evaluate.metrics.1.stops.x", "unknown option 'x'", "There are no choices"),
    ),
    "an option of an entry with its own page": (
        MINIMAL + "train: {engine: {native: {x: 1}}}\n",
        ("toy.yaml line 7, train.engine.native.x", "unknown option 'x'", "There are no choices"),
    ),
    "a proposal nobody makes": (
        MINIMAL + "  checks: [empty, {leak: {do: delete}}]\n",
        (
            "toy.yaml line 7, data.checks.1.leak.do",
            "'do' must be one of keep, repair, quarantine, drop, not 'delete'",
            "",
        ),
    ),
    "an unknown option of a check": (
        MINIMAL + "  checks: [{near_leak: {treshold: 0.5}}]\n",
        (
            "toy.yaml line 7, data.checks.0.near_leak.treshold",
            "unknown option 'treshold'",
            "Did you mean 'threshold'? Choose from: do, threshold",
        ),
    ),
    "wrong type of an option": (
        MINIMAL + "  checks: [{too_long: {max_tokens: many}}]\n",
        ("toy.yaml line 7, data.checks.0.too_long.max_tokens", "'max_tokens' must be int or null, not 'many'", ""),
    ),
    "two names at once": (
        changed("columns", "{columns: {}, chat: {}}"),
        ("toy.yaml line 6, data.format", NAMED + ", not {'columns': {}, 'chat': {}}", helped(Data, "format")),
    ),
    "an option that is no word": (
        changed("columns", "{columns: {1: q}}"),
        ("toy.yaml line 6, data.format", NAMED + ", not {'columns': {1: 'q'}}", helped(Data, "format")),
    ),
    "duplicate key": (
        MINIMAL + "about: x\nname: other\n",
        ("toy.yaml line 8", "key 'name' is repeated", "Remove one"),
    ),
    "duplicate nested key": (
        MINIMAL + "train:\n  epochs: 1\n  clip: 1.0\n  epochs: 2\n",
        ("toy.yaml line 10", "key 'epochs' is repeated", "Remove one"),
    ),
    "not YAML": (
        MINIMAL + "train: [1\nevaluate: 2\n",
        ("toy.yaml line 8", "is not YAML: expected ',' or ']', but got ':'", ""),
    ),
    "a tab": (
        MINIMAL + "train:\n\tepochs: 2\n",
        ("toy.yaml line 8", "is not YAML: found character '\\t' that cannot start any token", ""),
    ),
    "two documents": (MINIMAL + "---\nname: x\n", ("toy.yaml line 7", "is not YAML: but found another document", "")),
    "an impossible date": (MINIMAL + "about: 2024-13-01\n", ("toy.yaml", "is not YAML: month must be in 1..12", "")),
    "a value inside itself": (
        MINIMAL + "small: &a {x: *a}\n",
        ("toy.yaml", "is not YAML: maximum recursion depth exceeded", ""),
    ),
    "code": (
        MINIMAL + "about: !!python/object/apply:os.system [ls]\n",
        (
            "toy.yaml line 7",
            "is not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'",
            "",
        ),
    ),
    "a list": ("- a\n- b\n", ("toy.yaml", "is not a mapping of keys to values", "See docs/recipe.md for an example")),
    "empty": ("", ("toy.yaml", "is not a mapping of keys to values", "See docs/recipe.md for an example")),
    "unseen groups without groups": (
        MINIMAL + "  split:\n    by: rows\n    unseen_groups: 2\n",
        ("toy.yaml line 9, data.split.unseen_groups", "unseen_groups requires groups", "Set data.split.by to group"),
    ),
    "nothing left to train on": (
        MINIMAL + "  split: {test: 0.5, valid: 0.5}\n",
        ("toy.yaml line 7, data.split", "test and valid together leave no training rows", ""),
    ),
    "a given split without its column": (
        MINIMAL + "  split: {by: given}\n",
        ("toy.yaml line 7, data.split.by", "by: given requires a column", "Add column: to data.split"),
    ),
    "primary not measured": (
        MINIMAL + "evaluate:\n  metrics: [loss, stops]\n  primary: numbered_steps\n",
        ("toy.yaml line 9, evaluate.primary", "'numbered_steps' is not measured", "Choose from: loss, stops"),
    ),
    "primary is a metric, not a score": (
        MINIMAL + "evaluate: {metrics: [rouge, length], primary: rouge}\n",
        (
            "toy.yaml line 7, evaluate.primary",
            "'rouge' is not measured",
            "Choose from: rouge1, rouge2, rougeL, rougeLsum, length",
        ),
    ),
    "default primary not measured": (
        MINIMAL + "evaluate:\n  metrics: [stops]\n",
        ("toy.yaml line 7, evaluate.primary", "'loss' is not measured", "Choose from: stops"),
    ),
}


@pytest.mark.parametrize("name", ONE)
def test_one_mistake_is_said_with_its_line_and_what_to_do(name: str) -> None:
    text, expected = ONE[name]
    assert wrong(text) == [expected]


def test_several_mistakes_are_said_at_once() -> None:
    text = """\
name: Toy
bse:
  model: tiny
base: {}
data:
  source: rows.jsonl
  format: {columns: {promt: q}}
  checks: [empty, leek]
train:
  epochs: 0
  optimizer: adam
evaluate:
  metrics: [rogue]
"""
    errors = wrong(text)
    assert len(errors) == 8
    assert {(where, problem) for where, problem, _ in errors} == {
        ("toy.yaml line 1, name", "string should match pattern '^[a-z0-9][a-z0-9._-]*$', not 'Toy'"),
        ("toy.yaml line 4, base.model", "'model' is missing"),
        ("toy.yaml line 10, train.epochs", "input should be greater than or equal to 1, not 0"),
        ("toy.yaml line 2, bse", "unknown key 'bse'"),
        ("toy.yaml line 7, data.format.columns.promt", "unknown option 'promt'"),
        ("toy.yaml line 8, data.checks.1", "unknown name 'leek'"),
        ("toy.yaml line 11, train.optimizer", "unknown name 'adam'"),
        ("toy.yaml line 13, evaluate.metrics.0", "unknown name 'rogue'"),
    }
    with pytest.raises(MultipleErrors) as caught:
        read(text)
    assert str(caught.value).split("\n") == [f"{where}: {problem}. {hint}." for where, problem, hint in errors]


# --- --set and --small ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.learning_rate=2e-4", "train.learning_rate", 0.0002),
        ("a=1.5E+3", "a", 1500.0),
        ("a=-2e3", "a", -2000.0),
        ("a=e4", "a", "e4"),
        (" a = b=c", "a", "b=c"),
        ("a=", "a", None),
        ("a=[x, 1]", "a", ["x", 1]),
        ("data.format={columns: {prompt: q}}", "data.format", {"columns": {"prompt": "q"}}),
    ],
)
def test_settings_are_yaml(text: str, key: str, value: Any) -> None:
    parsed = parse_setting(text)
    assert parsed == (key, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("train.epochs", "--set", "'train.epochs' is not a setting"),
        ("=3", "--set", "'=3' is not a setting"),
        ("a=[1", "--set a", "'[1' is not valid YAML"),
        ("a=2020-13-45", "--set a", "'2020-13-45' is not valid YAML"),
        ("a=!!bool x", "--set a", "'!!bool x' is not valid YAML"),
        ("a=!!python/name:os.system", "--set a", "'!!python/name:os.system' is not valid YAML"),
    ],
)
def test_bad_settings(text: str, where: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_setting(text)
    assert (caught.value.where, caught.value.what) == (where, problem)


@pytest.mark.parametrize(
    ("settings", "where", "problem"),
    [
        ({"train.epcohs": 3}, "--set, train.epcohs", "unknown key 'epcohs'"),
        ({"train.epochs": "x"}, "--set, train.epochs", "input should be a valid integer, not 'x'"),
        ({"data.format": "colums"}, "--set, data.format", "unknown name 'colums'"),
        ({"data": {"format": "auto"}}, "--set, data.source", "'source' is missing"),
        ({"name.x": 1}, "--set", "'name.x' is below a plain value"),
        ({"": 1}, "--set, ", "unknown key ''"),
    ],
)
def test_a_mistake_in_a_setting_is_said_of_the_setting(settings: dict[str, Any], where: str, problem: str) -> None:
    errors = wrong(MINIMAL + "train: {epochs: 1}\n", settings=settings)
    assert [item[:2] for item in errors] == [(where, problem)]


SMALL = """\
train: {epochs: 1, learning_rate: 2e-4}
small:
  base.model: smaller
  train.epochs: 5
  data.split: {test: 0.2}
"""


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert read(MINIMAL + SMALL).train.learning_rate == 0.0002


def test_small_is_applied_and_named() -> None:
    plain, small = read(MINIMAL + SMALL), read(MINIMAL + SMALL, small=True)
    assert (plain.name, plain.base.model, plain.train.epochs, plain.data.split.test) == ("toy", "tiny", 1, 0.1)
    assert (small.name, small.base.model, small.train.epochs, small.data.split.test) == ("toy-small", "smaller", 5, 0.2)
    assert small.train.learning_rate == plain.train.learning_rate
    assert small.small == plain.small == {"base.model": "smaller", "train.epochs": 5, "data.split": {"test": 0.2}}


def test_settings_win_over_small() -> None:
    recipe = read(MINIMAL + SMALL, small=True, settings={"train.epochs": 9, "name": "mine", "adapter.rank": 2})
    assert (recipe.train.epochs, recipe.name, recipe.adapter.rank) == (9, "mine", 2)
    assert recipe.base.model == "smaller"


@pytest.mark.parametrize(
    ("small", "where", "problem"),
    [
        ("train.epochs: x", "toy.yaml line 8, train.epochs", "input should be a valid integer, not 'x'"),
        ("train.epcohs: 1", "toy.yaml line 8, train.epcohs", "unknown key 'epcohs'"),
        ("data.split:\n    test: 0.1\n    tset: 0.1", "toy.yaml line 10, data.split.tset", "unknown key 'tset'"),
        ("name.x: 1", "toy.yaml line 8", "'name.x' is below a plain value"),
    ],
)
def test_a_mistake_in_small_has_its_own_line(small: str, where: str, problem: str) -> None:
    text = f"{MINIMAL}small:\n  {small}\ntrain: {{epochs: 1}}\n"
    assert read(text).name == "toy"
    assert [item[:2] for item in wrong(text, small=True)] == [(where, problem)]


def test_small_needs_a_section_and_a_name() -> None:
    assert wrong(MINIMAL, small=True) == [("toy.yaml", "has no 'small' section", "Omit --small, or add the section")]
    nameless = (MINIMAL + SMALL).replace("name: toy\n", "")
    assert [problem for _, problem, _ in wrong(nameless, small=True)] == ["'name' is missing"]


# --- where recipes lie ---------------------------------------------------------------------------------------


def test_recipes_are_found_by_path_or_name(here: Path) -> None:
    assert find_recipe("shopsphere").name == "shopsphere.yaml"
    (here / "folder.yaml").mkdir()
    (here / "latin.yaml").write_bytes(b"name: \xe9t\xe9\n")
    cases = {
        "nowhere.yaml": (
            "nowhere.yaml",
            "this recipe file does not exist",
            "Check the path, or list shipped recipes: tunesmith recipes",
        ),
        "folder.yaml": (
            "folder.yaml",
            "this recipe file does not exist",
            "Check the path, or list shipped recipes: tunesmith recipes",
        ),
        "latin.yaml": (
            "latin.yaml",
            "cannot be read: 'utf-8' codec can't decode byte 0xe9 in position 6: invalid continuation byte",
            "Save it as UTF-8 text",
        ),
    }
    for name, expected in cases.items():
        with pytest.raises(RecipeError) as caught:
            read_recipe(name)
        assert (caught.value.where, caught.value.what, caught.value.next) == expected
    with pytest.raises(
        RecipeError, match=r"^no recipe is called 'shopsfere'\. Give a \.yaml file\. Did you mean 'shopsphere'\?"
    ):
        read_recipe("shopsfere")


def test_a_recipe_may_start_with_a_byte_order_mark() -> None:
    assert read("\ufeff" + MINIMAL).name == "toy"


# --- what comes out ------------------------------------------------------------------------------------------


def test_dump_reads_back_to_an_equal_recipe(here: Path) -> None:
    (here / "tiny").mkdir()
    text = (
        MINIMAL
        + "prompt: {template: chat.jinja}\nevaluate: {probes: probes.jsonl, metrics: [{rouge: {stemmer: no}}, loss]}\n"
    )
    recipe = read(text + SMALL, small=True, settings={"base.model": "tiny", "data.source": ["a.csv", "b/*.csv"]})
    plain = recipe.dump()
    assert plain["data"]["source"] == [str(here / "a.csv"), str(here / "b/*.csv")]
    assert plain["base"] == {"model": str(here / "tiny"), "bits": 4, "revision": None}
    assert plain["prompt"]["template"] == str(here / "chat.jinja")
    assert plain["evaluate"]["probes"] == str(here / "probes.jsonl")
    assert plain["evaluate"]["metrics"] == [{"rouge": {"stemmer": False}}, "loss"]
    assert plain["train"]["optimizer"] == "adamw"
    elsewhere = here / "runs" / "toy"
    elsewhere.mkdir(parents=True)
    for path in (here / "again.yaml", elsewhere / "recipe.yaml"):
        path.write_text(yaml.safe_dump(plain, sort_keys=False))
        again = read_recipe(str(path))
        assert again.dump() == plain
        assert again.train == recipe.train
        assert again.data.format == recipe.data.format
    absolute = read_recipe(str(here / "again.yaml"))  # its paths are absolute already: nothing is left to change
    (here / "again.yaml").write_text(yaml.safe_dump(absolute.dump()))
    assert read_recipe(str(here / "again.yaml")) == absolute


def test_a_dump_keeps_data_sets_of_the_hub_and_says_where_the_pseudonym_map_lies(here: Path) -> None:
    sources = ["hub:owner/name@main?split=train", "a.csv"]
    recipe = read(MINIMAL, settings={"data.source": sources, "data.pseudonyms": "apart/book.json"})
    plain = recipe.dump()["data"]
    assert plain["source"] == [sources[0], str(here / "a.csv")]
    assert plain["pseudonyms"] == str(here / "apart/book.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("shopsphere", True), ("x.yaml", True), ("x.yml", True), ("runs/toy", True), ("rows.csv", False), ("rows", False)],
)
def test_a_recipe_is_told_from_a_file_of_rows(here: Path, name: str, expected: bool) -> None:
    (here / "runs/toy").mkdir(parents=True)
    (here / "runs/toy/recipe.yaml").touch()
    (here / "rows").mkdir()
    assert is_recipe(name) is expected


def test_a_folder_called_like_a_recipe_is_the_folder(here: Path) -> None:
    (here / "shopsphere").mkdir()
    assert not is_recipe("shopsphere")


def test_a_dumped_glob_still_finds_its_files(here: Path) -> None:
    from tunesmith.data.sources import locate as find_files

    (here / "a.csv").write_text("prompt,answer\nq,a\n")
    recipe = read(MINIMAL, settings={"data.source": "*.csv"})
    assert find_files("*.csv", recipe.folder) == [here / "a.csv"]
    assert find_files(recipe.dump()["data"]["source"][0], Path("/nowhere")) == [here / "a.csv"]


def settings(section: Any, path: str = "") -> Iterator[str]:
    for key, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from settings(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def leaves(part: dict[str, Any], defs: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in part["properties"].items():
        inner = defs[value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else value
        if "properties" in inner:
            yield from leaves(inner, defs, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def fits(value: Any, part: dict[str, Any], defs: dict[str, Any]) -> bool:
    """The words of JSON schema that pydantic writes for a recipe; an unknown word is an error."""
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    sizes = {"minItems", "maxItems", "minLength", "minProperties", "maxProperties"}
    notes = {"title", "description", "default", "$defs", "type", "properties", "required", "additionalProperties"}
    if "type" in part:
        names = [part["type"]] if isinstance(part["type"], str) else part["type"]
        if isinstance(value, bool):  # to Python a bool is an int, to JSON it is not
            return "boolean" in names
        if not any(isinstance(value, kinds[name]) for name in names if name != "boolean"):
            return False
    for word, expected_value in part.items():
        if word in notes:
            continue
        if word == "$ref":
            ok = fits(value, defs[expected_value.rsplit("/", 1)[1]], defs)
        elif word == "anyOf":
            ok = any(fits(value, option, defs) for option in expected_value)
        elif word in ("enum", "const"):
            ok = value in (expected_value if word == "enum" else [expected_value])
        elif word == "pattern":
            ok = re.search(expected_value, value) is not None
        elif word in ("minimum", "exclusiveMinimum"):
            ok = value > expected_value or (word == "minimum" and value == expected_value)
        elif word in ("maximum", "exclusiveMaximum"):
            ok = value < expected_value or (word == "maximum" and value == expected_value)
        elif word in sizes:
            ok = len(value) >= expected_value if word.startswith("min") else len(value) <= expected_value
        elif word == "items":
            ok = all(fits(item, expected_value, defs) for item in value)
        else:
            raise AssertionError(f"unknown word {word}")
        if not ok:
            return False
    if isinstance(value, dict) and part.get("type") == "object":
        inner, additional = part.get("properties", {}), part.get("additionalProperties", True)
        known_keys_fit = all(fits(item, inner[key], defs) for key, item in value.items() if key in inner)
        others = [item for key, item in value.items() if key not in inner]
        open_to_all = all(
            additional if isinstance(additional, bool) else fits(item, additional, defs) for item in others
        )
        return known_keys_fit and open_to_all and set(part.get("required", ())) <= value.keys()
    return True


def test_schema_describes_every_setting_once() -> None:
    json_schema = recipe_schema()
    assert json.loads(json.dumps(json_schema)) == json_schema
    documented = dict(leaves(json_schema, json_schema["$defs"]))
    assert {"name", "base.model", "data.split.unseen_groups", "evaluate.metrics", "small"} <= documented.keys()
    assert list(documented) == list(settings(Recipe))
    assert [key for key, value in documented.items() if not value.get("description", "").strip()] == []
    assert documented["train.optimizer"]["default"] == "adamw"  # as a recipe writes it
    assert documented["data.checks"]["default"] == ["empty", "broken_turns", "duplicate", "leak", "too_long"]
    used = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(json_schema)))
    assert used == set(json_schema["$defs"])


def test_schema_takes_recipes_and_refuses_mistakes() -> None:
    json_schema = recipe_schema()
    shipped = parse_yaml(find_recipe("shopsphere").read_text(), "")[0]
    good = [shipped, read(MINIMAL + SMALL).dump(), yaml.safe_load(MINIMAL)]
    assert [fits(plain, json_schema, json_schema["$defs"]) for plain in good] == [True, True, True]
    for changes in (
        {"trian": 1},
        {"name": "A B"},
        {"data": {"format": "auto"}},
        {"train": {"epochs": 0}},
        {"seed": "7"},
        {"seed": True},
        {"data": {"source": "a.csv", "repair": 1}},
    ):
        assert not fits(yaml.safe_load(MINIMAL) | changes, json_schema, json_schema["$defs"]), changes
    bad_names: tuple[Any, ...] = (5, ["columns", {}], {"columns": {}, "chat": {}}, {}, {"columns": 5})
    for bad_name in bad_names:
        plain = yaml.safe_load(MINIMAL)
        plain["data"]["format"] = bad_name
        assert not fits(plain, json_schema, json_schema["$defs"]), bad_name


# --- catalogs ----------------------------------------------------------------------------------------------

CONTRACTS = {  # catalog -> (function of its modules, the arguments every entry takes, some entries)
    "data.formats": ("", ["values"], {"alpaca", "chat", "columns", "sharegpt"}),
    "data.checks": ("find_defects", ["rows", "context"], {"duplicate", "empty", "leak", "too_long"}),
    "evaluation.metrics": ("", ["view"], {"expected", "length", "loss", "numbered_steps", "rouge", "stops"}),
    "training.schedules": ("", ["progress"], {"constant", "cosine", "linear"}),
    "training.optimizers": ("", ["parameters", "rate", "weight_decay"], {"adamw", "adamw_8bit", "paged_adamw_8bit"}),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_catalogue_lists_its_entries_and_no_helpers(name: str) -> None:
    function, arguments, expected_names = CONTRACTS[name]
    names = entries(f"tunesmith.{name}")
    assert names == sorted(names)
    assert expected_names <= set(names)
    for entry in names:
        resolved = resolve(f"tunesmith.{name}", entry, function=function)
        parameters = inspect.signature(resolved).parameters.values()
        assert [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY] == arguments, entry
        assert resolved.__doc__, entry
        assert not function or entry_constant(f"tunesmith.{name}", entry, "__doc__"), entry  # its page


def test_a_folder_is_a_catalogue_of_its_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert entries("tunesmith.training.engines") == ["native", "trl"]
    room = here / "room"
    room.mkdir()
    for name, text in {
        "__init__": "",
        "good": "def go(*, x: int): return x",
        "_hidden": "",
        "lacks": "import trl_is_not_here",
        "extra": "import trl",
    }.items():
        (room / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(here))
    assert entries("room") == ["extra", "good", "lacks"]
    assert resolve("room", "good", function="go")(x=3) == 3
    with pytest.raises(
        RecipeError, match=r"^here: unknown name 'goood'\. Did you mean 'good'\? Choose from: extra, good, lacks\.$"
    ):
        resolve("room", "goood", function="go", where="here")
    with pytest.raises(ModuleNotFoundError, match="trl_is_not_here"):  # our own bug is not the user's
        resolve("room", "lacks", function="go")
    monkeypatch.setitem(__import__("sys").modules, "trl", None)  # as if it were not installed
    with pytest.raises(MissingExtra) as caught:
        resolve("room", "extra", function="go", where="train.engine")
    assert str(caught.value) == (
        "train.engine: 'extra' needs the package 'trl', which is not installed. "
        "Install it: pip install 'tunesmith[trl]'"
    )
    assert caught.value.exit_code == 7


SHARE = "Did you mean 'share'? Choose from: count, names, note, share, way, wish"


@pytest.mark.parametrize(
    ("option_values", "expected"),
    [
        ({"count": 1}, []),
        ({"count": 1, "share": 1, "names": "x", "note": None}, []),
        ({}, [("count", "option 'count' is missing", "Add count: …")]),
        ({"count": True}, [("count", "'count' must be int, not True", "")]),
        ({"count": 1.0}, [("count", "'count' must be int, not 1.0", "")]),
        ({"count": 1, "note": 2}, [("note", "'note' must be str or null, not 2", "")]),
        ({"count": 1, "shaer": 1}, [("shaer", "unknown option 'shaer'", SHARE)]),
        ({"count": 1, "way": "up", "wish": None}, []),
        ({"count": 1, "way": "left"}, [("way", "'way' must be one of up, down, not 'left'", "")]),
        ({"count": 1, "way": None}, [("way", "'way' must be one of up, down, not None", "")]),
        ({"count": 1, "wish": "left"}, [("wish", "'wish' must be one of up, down, null, not 'left'", "")]),
    ],
)
def test_options_are_the_keyword_only_parameters(option_values: dict[str, Any], expected: list[Wrong]) -> None:
    def entry(
        rows: object,
        *,
        count: int,
        share: float = 0.5,
        names: list[str] | str = "",
        note: str | None = None,
        way: Literal["up", "down"] = "up",
        wish: Literal["up", "down"] | None = None,
    ) -> None:
        pass

    errors = check_options(entry, option_values, where=lambda name: name)
    assert [(error.where, error.what, error.next) for error in errors] == expected


def test_nearest() -> None:
    assert nearest("rogue", ["rouge", "loss"]) == "Did you mean 'rouge'? Choose from: loss, rouge"
    assert nearest("zzz", ["rouge", "loss"]) == "Choose from: loss, rouge"
    assert nearest("zzz", []) == "There are no choices"


@pytest.mark.parametrize("metric", entries("tunesmith.evaluation.metrics"))
def test_primary_may_be_any_score_that_a_metric_gives(metric: str) -> None:
    turns = (Turn("user", "q"), Turn("assistant", "1. a\n2. b"))
    row = Conversation("id", turns, Origin("f", 1), fields={"expect": "steps", "Experience": "3 years as a baker"})
    text = "1. I have 3 years of experience.\n2. b"
    reply, index = Reply(text, True, 1), TrainingAnswers(("1. I have 3 years of experience in baking.",))
    scores: Callable[..., Any] = resolve("tunesmith.evaluation.metrics", metric)
    names = [score.name for score in scores(View(row, reply, 1.0, index))]
    assert names
    for name in names:
        settings = {"evaluate.metrics": [metric], "evaluate.primary": name}
        assert read(MINIMAL, settings=settings).evaluate.primary == name
    errors = wrong(MINIMAL, settings={"evaluate.metrics": [metric], "evaluate.primary": "nonsense"})
    assert errors == [("--set, evaluate.primary", "'nonsense' is not measured", f"Choose from: {', '.join(names)}")]


def test_a_training_has_a_seed_of_its_own() -> None:
    assert read(MINIMAL + "seed: 11\n").training_seed == 11
    recipe = read(MINIMAL + "seed: 11\ntrain: {seed: 0}\n")
    assert (recipe.seed, recipe.training_seed) == (11, 0)
