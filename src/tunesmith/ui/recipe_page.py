"""Recipe: a form made from the schema, the same as YAML, and beside them what it would do here."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError, TunesmithError
from tunesmith.ui import form, planned, recipe_text, text_html
from tunesmith.ui.form import FormField
from tunesmith.ui.state import QUIET, SLOW, State

OPEN = ("", "base", "data")  # sections that are open at first
NARROW = ("choice", "yes_no", "whole", "number")  # kinds of settings of which two stand in a row
SMALL = " --small"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def page(state: State) -> None:
    """The page, inside its tab."""
    import gradio as gr

    with gr.Row(equal_height=True):
        which = gr.Dropdown(
            _known(state),
            value=None,
            label="Begin with",
            elem_id="recipe-which",
            scale=3,
            min_width=260,
            info="A shipped recipe, one that was saved here, or a run's.",
        )
        save_as = gr.Textbox(
            label="Save as",
            elem_id="recipe-name",
            scale=2,
            min_width=180,
            info=f"A file in {state.recipes.name}/; the end .yaml is added.",
        )
        with gr.Column(scale=2, min_width=220):
            save = gr.Button("Save", elem_id="recipe-save")
            make = gr.Button("Make a run of it", variant="primary", elem_id="recipe-run")
    with (
        gr.Accordion("Or draft one from rows of your own", open=False, elem_id="recipe-draft-box") as box,
        gr.Row(equal_height=False),
    ):
        source = gr.Textbox(
            label="Rows", info="A data file's path, a folder or hub:OWNER/NAME", scale=3, elem_id="recipe-source"
        )
        named = gr.Textbox(label="Name", info="Small letters, digits, hyphens", scale=2, elem_id="recipe-new-name")
        draft = gr.Button("Draft", elem_id="recipe-draft", scale=1, min_width=120)
    trouble = gr.HTML(elem_id="recipe-trouble")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320), gr.Tabs(elem_id="recipe-views"):
            with gr.Tab("Form", id="form"):
                controls, marks = _form(gr)
            with gr.Tab("YAML", id="yaml"):
                text = gr.Code(
                    "", language="yaml", label="The recipe", lines=24, elem_id="recipe-yaml", wrap_lines=True
                )
        with gr.Column(scale=2, min_width=300, elem_classes="ts-beside"):
            told = gr.HTML(_welcome(), elem_id="recipe-told")
            look = gr.Button("Read the rows and plan", elem_id="recipe-look", visible=False)
    flat = [each for group in controls for each in group]

    def from_form(before: str, *given: Any) -> Any:
        if not before.strip():
            return [gr.skip()] * (2 + len(marks))
        after, wrong = _changed(before, given)
        if after == before and not wrong:
            return [gr.skip()] * (2 + len(marks))
        errors = [*wrong, *_judge(state, after)[1]]
        return [after, planned.problems(errors) if errors else gr.skip(), *_marks(errors)]

    def from_text(after: str) -> Any:
        _, errors = _judge(state, after)
        shown = planned.problems(errors) if errors else gr.skip()
        return [shown, *_marks(errors), *_values(after)]

    def choose(name: str | None) -> Any:
        if not name:
            return [gr.skip()] * (4 + len(marks) + len(flat))
        try:
            after = recipe_text.loaded(_place(state, name), small=name.endswith(SMALL))
        except TunesmithError as error:
            return [text_html.trouble(error), *[gr.skip()] * (3 + len(marks) + len(flat))]
        called = str(recipe_text.plain_of(after).get("name", ""))
        return ["", after, called, *from_text(after)]

    def drafted(rows: str, name: str) -> Any:
        try:
            path = _draft(state, rows.strip(), name.strip())
        except TunesmithError as error:
            return text_html.trouble(error), gr.skip()
        return "", gr.Dropdown(choices=_known(state), value=path.name)

    def saved(content: str, name: str) -> Any:
        try:
            path = _save(state, content, name.strip())
        except TunesmithError as error:
            return text_html.trouble(error), gr.skip()
        told = text_html.part(
            text_html.paragraph(f"Saved as {path}. In a terminal: tunesmith run {shlex.quote(str(path))}", "good")
        )
        return told, gr.Dropdown(choices=_known(state))

    def made(content: str) -> Any:
        try:
            name = _make_run(state, content)
        except TunesmithError as error:
            return text_html.trouble(error), gr.skip(), gr.skip()
        return "", state.chosen(name), gr.Tabs(selected="train")

    def plan(content: str, *, wanted: bool) -> Iterator[Any]:
        if not content.strip():
            yield _welcome(), gr.Button(visible=False)
            return
        recipe, errors = _judge(state, content)
        if recipe is None or errors:
            yield planned.problems(errors), gr.Button(visible=False)
            return
        if not wanted and not planned.is_here(recipe):
            note = "The base model may have to be fetched first, so rows and plan are not looked at by themselves."
            yield planned.overview(recipe, note), gr.Button(visible=True)
            return
        yield planned.overview(recipe, "Reading the rows …"), gr.Button(visible=False)
        try:
            yield planned.overview(recipe) + planned.look(recipe, state.home / "plans"), gr.Button(visible=False)
        except TunesmithError as error:
            yield planned.overview(recipe) + text_html.trouble(error), gr.Button(visible=True)

    def plan_again(content: str) -> Iterator[Any]:
        yield from plan(content, wanted=False)

    def plan_now(content: str) -> Iterator[Any]:
        yield from plan(content, wanted=True)

    one: dict[str, Any] = {**QUIET, "concurrency_id": "recipe", "concurrency_limit": 1}
    for group in controls:
        for each in group:
            heard = each.blur if isinstance(each, gr.Textbox) else each.input
            heard(from_form, [text, *flat], [text, told, *marks], **one)
            if isinstance(each, gr.Textbox):
                each.submit(from_form, [text, *flat], [text, told, *marks], **one)
    text.blur(from_text, text, [told, *marks, *flat], **one)
    text.change(
        plan_again, text, [told, look], trigger_mode="always_last", concurrency_id="plan", concurrency_limit=1, **QUIET
    )
    look.click(plan_now, text, [told, look], concurrency_id="plan", concurrency_limit=1, **SLOW)
    which.change(choose, which, [trouble, text, save_as, told, *marks, *flat], **one)
    draft.click(drafted, [source, named], [trouble, which], **SLOW)
    save.click(saved, [text, save_as], [trouble, which], **QUIET)
    make.click(made, text, [trouble, state.run, state.tabs], **QUIET)
    state.blocks.load(lambda: gr.Dropdown(choices=_known(state)), None, which, **QUIET)
    state.rows.change(
        lambda rows: (rows, _name_for(rows), gr.Accordion(open=True)), state.rows, [source, named, box], **QUIET
    )


# --- the form ----------------------------------------------------------------------------------------------


def _form(gr: Any) -> tuple[list[list[Any]], list[Any]]:
    """The controls of each setting, and for each the place where it is said what is wrong with it."""
    controls: list[list[Any]] = []
    marks: list[Any] = []
    for section, about in form.sections().items():
        title = section.replace(".", ": ") or "the recipe"
        with gr.Accordion(
            title[:1].upper() + title[1:], open=section in OPEN, elem_id=f"section-{section or 'recipe'}"
        ):
            gr.HTML(text_html.part(text_html.paragraph(about, "soft")))
            with gr.Column(elem_classes="ts-fields"):
                for field in (each for each in form.fields() if each.section == section):
                    with gr.Column(elem_classes="ts-field" if field.kind in NARROW else "ts-wide", min_width=120):
                        controls.append(_controls(gr, field))
                        marks.append(gr.HTML(visible=False, elem_id=f"wrong-{_id(field)}"))
    order = [each for section in form.sections() for each in form.fields() if each.section == section]
    place = {field.key: number for number, field in enumerate(order)}
    return [controls[place[field.key]] for field in form.fields()], [marks[place[field.key]] for field in form.fields()]


def _controls(gr: Any, field: FormField) -> list[Any]:
    given: dict[str, Any] = {
        "label": field.label,
        "info": field.info,
        "elem_id": f"field-{_id(field)}",
        "interactive": True,
    }
    first = form.shown(field, None if field.default is form.MISSING else field.default)
    match field.kind:
        case "choice":
            return [
                gr.Dropdown(
                    [form.shown_plainly(each) for each in field.choices],
                    value=first[0] or None,
                    filterable=False,
                    **given,
                )
            ]
        case "some":
            return [gr.CheckboxGroup(list(field.choices), value=first[0], **given)]
        case "yes_no":
            return [gr.Checkbox(value=first[0], **given)]
        case "names":
            return [
                gr.Dropdown(list(field.choices), value=first[0], multiselect=True, allow_custom_value=True, **given)
            ]
        case "name":
            with gr.Row(equal_height=True):
                name = gr.Dropdown(
                    list(field.choices),
                    value=first[0] or None,
                    allow_custom_value=True,
                    scale=3,
                    min_width=180,
                    **given,
                )
                options = gr.Textbox(
                    first[1],
                    label=f"{field.label}: options",
                    info="Its own settings, as YAML.",
                    scale=2,
                    min_width=160,
                    lines=1,
                    max_lines=12,
                    elem_id=f"options-{_id(field)}",
                )
            return [name, options]
        case "lines" | "plain":
            return [gr.Textbox(first[0], lines=2, max_lines=12, **given)]
        case _:
            hint = "none" if field.empty else ""
            return [
                gr.Textbox(first[0], lines=1, max_lines=10 if field.kind == "text" else 1, placeholder=hint, **given)
            ]


def _id(field: FormField) -> str:
    return field.key.replace(".", "-")


def _values(text: str) -> list[Any]:
    """The form's values for a text; skips where it is no YAML."""
    import gradio as gr

    try:
        plain = recipe_text.plain_of(text)
    except TunesmithError:
        return [gr.skip() for field in form.fields() for _ in form.shown(field, None)]
    return [each for field in form.fields() for each in _shown(field, form.value_of(plain, field))]


def _shown(field: FormField, value: Any) -> tuple[Any, ...]:
    """`form.shown`, and for a value that the field cannot show, which the recipe refuses, what it is in words."""
    try:
        found = form.shown(field, value)
    except (TypeError, ValueError, AttributeError):
        found = form.shown(field, None)
    if field.kind == "choice" and found[0] not in map(form.shown_plainly, field.choices):
        return (None,)
    if field.kind == "some":
        return ([each for each in found[0] if each in field.choices],)
    return found


def _marks(errors: Sequence[TunesmithError]) -> list[Any]:
    """What is wrong, at each field."""
    import gradio as gr

    by_key: dict[str, list[TunesmithError]] = {}
    for error in errors:
        by_key.setdefault(recipe_text.key_of(error), []).append(error)
    return [
        gr.HTML(planned.field_trouble(by_key[field.key]) if field.key in by_key else "", visible=field.key in by_key)
        for field in form.fields()
    ]


def _changed(text: str, given: Sequence[Any]) -> tuple[str, list[TunesmithError]]:
    """`text` with what the form says otherwise, and what in the form cannot be read. Raises nothing."""
    from tunesmith.errors import RecipeError

    try:
        plain = recipe_text.plain_of(text)
    except TunesmithError as error:
        return text, [error]
    wrong: list[TunesmithError] = []
    left = list(given)
    for field in form.fields():
        before = _shown(field, form.value_of(plain, field))
        now, left = left[: len(before)], left[len(before) :]
        if _same(before, now):
            continue
        try:
            text = recipe_text.with_value(text, field.key, form.read(field, *now))
        except ValueError as error:
            wrong.append(
                RecipeError(str(error), where=f"recipe.yaml, {field.key}", next=f"{field.label}: {field.help}")
            )
    return text, wrong


def _same(before: Sequence[Any], now: Sequence[Any]) -> bool:
    return [each or "" for each in before] == [each or "" for each in now]


# --- recipes -----------------------------------------------------------------------------------------------


def _known(state: State) -> list[str]:
    """Recipes to begin with: saved here, shipped (whole and small), of runs."""
    from tunesmith.config.recipe import SHIPPED

    saved = sorted(file.name for file in state.recipes.glob("*.yaml")) if state.recipes.is_dir() else []
    shipped = sorted({file.stem for folder in SHIPPED if folder.is_dir() for file in folder.glob("*.yaml")})
    return [
        *saved,
        *(f"{name}{end}" for name in shipped for end in ("", SMALL)),
        *(f"run {name}" for name in state.names()),
    ]


def _place(state: State, name: str) -> str:
    """What `read_recipe` is to be given for a choice. Raises RunError for one that was not offered."""
    if name not in _known(state):
        raise RunError(f"there is no recipe '{name}'", where=str(state.recipes), next="Choose one of the list")
    if name.startswith("run "):
        return str(state.folder(name.removeprefix("run ")))
    return str(state.recipes / name) if name.endswith(".yaml") else name.removesuffix(SMALL)


def _judge(state: State, text: str) -> tuple[Any, list[TunesmithError]]:
    with tempfile.TemporaryDirectory(dir=state.home) as scratch:
        return recipe_text.judged(text, Path(scratch))


def _save(state: State, text: str, name: str) -> Path:
    """Writes the recipe into the folder of recipes. Raises RunError for a name that is none, or is another recipe's."""
    from tunesmith.runs.run import write_atomic

    stem = name.removesuffix(".yaml")
    if not _NAME.fullmatch(stem):
        raise RunError(
            f"'{name}' is no name for a file", where="Save as", next="Use small letters, digits, dots and hyphens"
        )
    path = state.recipes / f"{stem}.yaml"
    if path.exists() and recipe_text.plain_of(path.read_text(encoding="utf-8")).get("name") != recipe_text.plain_of(
        text
    ).get("name"):
        raise RunError("there is another recipe of this file name", where=str(path), next="Choose another name")
    recipe_text.plain_of(text)
    write_atomic(path, text)
    return path


def _make_run(state: State, text: str) -> str:
    """Makes the run's folder for a recipe that is well-formed; returns its name. Raises Several, RunError."""
    import tunesmith
    from tunesmith.errors import Several

    recipe, errors = _judge(state, text)
    if recipe is None or errors:
        raise Several(errors)
    folder = state.runs / recipe.name
    if (folder / ".seals").is_dir() and (folder / "recipe.yaml").is_file():
        from tunesmith.config.recipe import read_recipe

        if read_recipe(str(folder)).dump() != recipe.dump():
            raise RunError(
                "there is a run of this name, made with another recipe",
                where=str(folder),
                next="Give the recipe another name, in the field 'name'",
            )
    run = tunesmith.open_run(recipe, state.runs)
    run.keep_recipe()
    return run.path.name


def _draft(state: State, rows: str, name: str) -> Path:
    import tunesmith

    if not rows:
        raise RunError("no rows are named", where="Rows", next="Name a data file, or look at some on the page Data")
    state.recipes.mkdir(parents=True, exist_ok=True)
    return tunesmith.new(name, rows, state.recipes / f"{name}.yaml")


def _name_for(rows: str) -> str:
    stem = re.sub(r"\.cleaned$", "", re.sub(r"\.[a-z]+(\.gz)?$", "", Path(rows).name.lower()))
    return re.sub(r"[^a-z0-9-]+", "-", stem).strip("-") or "mine"


def _welcome() -> str:
    return text_html.part(
        text_html.heading("Plan and warnings"),
        text_html.paragraph(
            "They stand here as soon as there is a recipe: choose one above, or draft one from rows of your own.",
            "soft",
        ),
    )
