"""The recipe form: every setting of the schema, round trips, and in-place edits of the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import RecipeError
from tunesmith.ui import form, recipe_text

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))
COMMENTED = """# why: all of it
name: mine            # short
base: {model: someone/base}
data:
  source: rows.csv
  # these suit the rows
  checks:
    - empty           # first
    - too_long
  split: {by: rows, test: 0.2}  # a fifth
train:
  batch: 4 rows

# the end
"""


def settings(model: type[BaseModel], above: str = "") -> list[str]:
    recipe: list[str] = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            recipe += settings(inner, f"{above}{name}.")
        else:
            recipe.append(f"{above}{name}")
    return recipe


def field(key: str) -> form.FormField:
    return next(item for item in form.fields() if item.key == key)


def test_every_setting_is_a_field_with_help() -> None:
    assert [item.key for item in form.fields()] == settings(Recipe)
    assert all(item.help for item in form.fields())
    assert {item.section for item in form.fields()} == set(form.sections())
    assert all(form.sections().values())
    assert field("base.bits").choices == (4, 16)
    assert field("train.epochs").limits == "A whole number at least 1."
    assert field("data.split.test").limits == "A number at least 0 and less than 1."
    assert "whole_groups" in field("data.split.by").choices
    assert {"cosine", "linear"} <= set(field("train.schedule").choices)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_goes_through_the_form(name: str, small: bool, tmp_path: Path) -> None:
    expected = read_recipe(name, small=small).dump() | ({"small": {}} if small else {})
    plain = recipe_text.parse_text(recipe_text.load_text(name, small=small))
    controls = {item.key: form.to_controls(item, form.get_or_default(plain, item)) for item in form.fields()}
    read = {item.key: form.from_controls(item, *controls[item.key]) for item in form.fields()}
    text = yaml.safe_dump(form.without_defaults(read), sort_keys=False, allow_unicode=True)
    recipe, errors = recipe_text.validate(text, tmp_path)
    assert errors == []
    assert recipe is not None and recipe.dump() == expected


@pytest.mark.parametrize("name", SHIPPED)
def test_a_text_keeps_its_comments_when_settings_are_added(name: str, tmp_path: Path) -> None:
    text = recipe_text.load_text(name)
    comments = [line[line.index("#") :] for line in text.splitlines() if "#" in line]
    plain, expected = recipe_text.parse_text(text), recipe_text.validate(text, tmp_path)[0]
    for item in [item for item in form.fields() if form.get_value(plain, item.key) is form.MISSING][::9]:
        text = recipe_text.with_value(text, item.key, form.get_or_default(plain, item))
    recipe, errors = recipe_text.validate(text, tmp_path)
    assert errors == [] and recipe is not None and expected is not None
    assert recipe.dump() == expected.dump()
    assert all(comment in text for comment in comments)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "other"),
        ("data.checks", ["duplicate", {"near_duplicate": {"threshold": 0.7}}]),
        ("data.split.test", 0.3),
        ("data.split.valid", 0.05),
        ("data.sample.train", 12),
        ("train.batch", "8 rows"),
        ("train.epochs", 3),
        ("prompt.system", "Be brief: no more.\nTwo lines, # and 'quotes'."),
        ("prompt.stop", ["\nUser:", " a", '"']),
        ("adapter.layers", ["q_proj", "v_proj"]),
        ("evaluate.judge.criteria", "short, clear: true"),
    ],
)
def test_one_setting_is_changed_and_the_rest_stays(key: str, value: Any) -> None:
    edited = recipe_text.with_value(COMMENTED, key, value)
    expected = recipe_text.parse_text(COMMENTED)
    form.set_value(expected, key, value)
    assert recipe_text.parse_text(edited) == expected
    lost = {"data.checks": {"# first"}}.get(key, set())
    for comment in {"# why: all of it", "# short", "# these suit the rows", "# first", "# a fifth", "# the end"} - lost:
        assert comment in edited
    assert abs(len(edited.splitlines()) - len(COMMENTED.splitlines())) <= 2


def test_rare_yaml_is_rewritten() -> None:
    text = "base: &b {model: someone/base}\nname: x\ndata: {source: a.csv}\nsmall: *b\n"
    edited = recipe_text.with_value(text, "base.model", "other/base")
    assert recipe_text.parse_text(edited)["base"] == {"model": "other/base"}
    assert recipe_text.parse_text(edited)["small"] == {"model": "someone/base"}


@pytest.mark.parametrize(
    "value", [["a", "b"], ["\nUser:", " lead", '"quoted"', "tab\tin", "User:"], [""], ["ünï", "two\nlines\n"], []]
)
def test_lines_round_trip(value: list[str]) -> None:
    item = field("prompt.stop")
    assert form.from_controls(item, *form.to_controls(item, value)) == value


def test_input_becomes_a_value_or_an_error() -> None:
    assert form.from_controls(field("train.learning_rate"), "2e-4") == 2e-4
    assert form.from_controls(field("train.epochs"), "three") == "three"  # the recipe rejects it
    assert form.from_controls(field("train.patience"), " ") is None
    assert form.from_controls(field("base.bits"), "16") == 16
    assert form.from_controls(field("data.format"), "columns", "columns: {prompt: q}") == {
        "columns": {"columns": {"prompt": "q"}}
    }
    assert form.from_controls(field("data.format"), "auto", "") == "auto"
    assert form.from_controls(field("export.files"), ["adapter", "{gguf: {types: [q8_0]}}"]) == [
        "adapter",
        {"gguf": {"types": ["q8_0"]}},
    ]
    with pytest.raises(ValueError, match="YAML"):
        form.from_controls(field("data.format"), "columns", "{a: [}")
    with pytest.raises(ValueError, match="quote"):
        form.from_controls(field("prompt.stop"), '"open')


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.learning_rate", "fast", "number"),
        ("data.checks", ["empti"], "unknown name 'empti'"),
        ("evaluate.primary", "beauty", "is not measured"),
        ("data.split.by", "given", "requires a column"),
        ("name", "No Name", "match"),
    ],
)
def test_an_error_is_shown_at_its_field(key: str, value: Any, message: str, tmp_path: Path) -> None:
    recipe, errors = recipe_text.validate(recipe_text.with_value(COMMENTED, key, value), tmp_path)
    assert recipe is None
    (error,) = [item for item in errors if recipe_text.setting_of(item) == key]
    assert message in error.what
    assert str(tmp_path) not in recipe_text.location_of(error)
    assert "line" in recipe_text.location_of(error)


def test_invalid_yaml(tmp_path: Path) -> None:
    recipe, errors = recipe_text.validate("name: [", tmp_path)
    assert recipe is None
    assert len(errors) == 1 and recipe_text.setting_of(errors[0]) == ""
    with pytest.raises(RecipeError):
        recipe_text.with_value("name: [", "name", "x")


def test_a_recipe_from_elsewhere_means_the_same_here(tmp_path: Path) -> None:
    text = recipe_text.load_text("shopsphere")
    source = recipe_text.parse_text(text)["data"]["source"]
    assert Path(source).is_absolute() and Path(source).is_file()
    (tmp_path / "kept.yaml").write_text(text)
    assert read_recipe(str(tmp_path / "kept.yaml")).dump() == read_recipe("shopsphere").dump()
