"""The recipe's form: all of the schema, there and back, and a text that is edited a setting at a time."""

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
    found: list[str] = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        deeper = isinstance(inner, type) and issubclass(inner, BaseModel)
        found += settings(inner, f"{above}{name}.") if deeper else [f"{above}{name}"]  # type: ignore[arg-type]
    return found


def field(key: str) -> form.FormField:
    return next(each for each in form.fields() if each.key == key)


def test_every_setting_is_a_field_with_help() -> None:
    assert [each.key for each in form.fields()] == settings(Recipe)
    assert all(each.help for each in form.fields())
    assert {each.section for each in form.fields()} == set(form.sections())
    assert all(form.sections().values())
    assert field("base.bits").choices == (4, 16)
    assert field("train.epochs").limits == "A whole number at least 1."
    assert field("data.split.test").limits == "A number at least 0 and less than 1."
    assert "whole_groups" in field("data.split.by").choices
    assert {"cosine", "linear"} <= set(field("train.schedule").choices)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_goes_through_the_form(name: str, small: bool, tmp_path: Path) -> None:
    wanted = read_recipe(name, small=small).dump() | ({"small": {}} if small else {})
    plain = recipe_text.plain_of(recipe_text.loaded(name, small=small))
    shown = {each.key: form.shown(each, form.value_of(plain, each)) for each in form.fields()}
    read = {each.key: form.read(each, *shown[each.key]) for each in form.fields()}
    text = yaml.safe_dump(form.filled(read), sort_keys=False, allow_unicode=True)
    found, errors = recipe_text.judged(text, tmp_path)
    assert errors == []
    assert found is not None and found.dump() == wanted


@pytest.mark.parametrize("name", SHIPPED)
def test_a_text_keeps_its_comments_when_settings_are_added(name: str, tmp_path: Path) -> None:
    text = recipe_text.loaded(name)
    comments = [line[line.index("#") :] for line in text.splitlines() if "#" in line]
    plain, wanted = recipe_text.plain_of(text), recipe_text.judged(text, tmp_path)[0]
    for each in [each for each in form.fields() if form.get(plain, each.key) is form.MISSING][::9]:
        text = recipe_text.with_value(text, each.key, form.value_of(plain, each))
    found, errors = recipe_text.judged(text, tmp_path)
    assert errors == [] and found is not None and wanted is not None
    assert found.dump() == wanted.dump()
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
    wanted = recipe_text.plain_of(COMMENTED)
    form.put(wanted, key, value)
    assert recipe_text.plain_of(edited) == wanted
    lost = {"data.checks": {"# first"}}.get(key, set())
    for comment in {"# why: all of it", "# short", "# these suit the rows", "# first", "# a fifth", "# the end"} - lost:
        assert comment in edited
    assert abs(len(edited.splitlines()) - len(COMMENTED.splitlines())) <= 2


def test_what_cannot_be_edited_in_place_is_written_anew() -> None:
    text = "base: &b {model: someone/base}\nname: x\ndata: {source: a.csv}\nsmall: *b\n"
    edited = recipe_text.with_value(text, "base.model", "other/base")
    assert recipe_text.plain_of(edited)["base"] == {"model": "other/base"}
    assert recipe_text.plain_of(edited)["small"] == {"model": "someone/base"}


@pytest.mark.parametrize(
    "value", [["a", "b"], ["\nUser:", " lead", '"quoted"', "tab\tin", "User:"], [""], ["ünï", "two\nlines\n"], []]
)
def test_lines_are_read_as_they_were(value: list[str]) -> None:
    each = field("prompt.stop")
    assert form.read(each, *form.shown(each, value)) == value


def test_what_is_entered_becomes_a_value_or_a_reason() -> None:
    assert form.read(field("train.learning_rate"), "2e-4") == 2e-4
    assert form.read(field("train.epochs"), "three") == "three"  # the recipe says what is wrong with it
    assert form.read(field("train.patience"), " ") is None
    assert form.read(field("base.bits"), "16") == 16
    assert form.read(field("data.format"), "columns", "columns: {prompt: q}") == {
        "columns": {"columns": {"prompt": "q"}}
    }
    assert form.read(field("data.format"), "auto", "") == "auto"
    assert form.read(field("export.files"), ["adapter", "{gguf: {types: [q8_0]}}"]) == [
        "adapter",
        {"gguf": {"types": ["q8_0"]}},
    ]
    with pytest.raises(ValueError, match="YAML"):
        form.read(field("data.format"), "columns", "{a: [}")
    with pytest.raises(ValueError, match="quote"):
        form.read(field("prompt.stop"), '"open')


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.learning_rate", "fast", "number"),
        ("data.checks", ["empti"], "unknown name 'empti'"),
        ("evaluate.primary", "beauty", "is not measured"),
        ("data.split.by", "given", "needs a column"),
        ("name", "No Name", "match"),
    ],
)
def test_an_error_is_told_at_its_field(key: str, value: Any, said: str, tmp_path: Path) -> None:
    recipe, errors = recipe_text.judged(recipe_text.with_value(COMMENTED, key, value), tmp_path)
    assert recipe is None
    (error,) = [each for each in errors if recipe_text.key_of(each) == key]
    assert said in error.what
    assert str(tmp_path) not in recipe_text.place_of(error)
    assert "line" in recipe_text.place_of(error)


def test_text_that_is_no_yaml(tmp_path: Path) -> None:
    recipe, errors = recipe_text.judged("name: [", tmp_path)
    assert recipe is None
    assert len(errors) == 1 and recipe_text.key_of(errors[0]) == ""
    with pytest.raises(RecipeError):
        recipe_text.with_value("name: [", "name", "x")


def test_a_recipe_from_elsewhere_means_the_same_here(tmp_path: Path) -> None:
    text = recipe_text.loaded("shopsphere")
    source = recipe_text.plain_of(text)["data"]["source"]
    assert Path(source).is_absolute() and Path(source).is_file()
    (tmp_path / "kept.yaml").write_text(text)
    assert read_recipe(str(tmp_path / "kept.yaml")).dump() == read_recipe("shopsphere").dump()
