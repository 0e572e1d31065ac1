"""Page Recipe: a form generated from the schema, the same recipe as YAML, and a preview of its plan."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError, TunesmithError
from tunesmith.ui import form, html, recipe_text
from tunesmith.ui.form import FormField
from tunesmith.ui.state import QUIET, SLOW, State

OPEN_SECTIONS = ("", "base", "data")  # sections that are initially open
NARROW_KINDS = ("choice", "boolean", "integer", "number")  # kinds of fields that fit two in a row
SMALL_SUFFIX = " --small"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def page(state: State) -> None:
    """Builds the page inside its tab."""
    import gradio as gr

    with gr.Row(equal_height=True):
        recipe_choice = gr.Dropdown(
            _recipe_choices(state),
            value=None,
            label="Start from",
            elem_id="recipe-which",
            scale=3,
            min_width=260,
            info="A shipped recipe, a saved one, or that of a run.",
        )
        file_name = gr.Textbox(
            label="Save as",
            elem_id="recipe-name",
            scale=2,
            min_width=180,
            info=f"File name in {state.recipes.name}/; .yaml is added.",
        )
        with gr.Column(scale=2, min_width=220):
            save_button = gr.Button("Save", elem_id="recipe-save")
            run_button = gr.Button("Create a run", variant="primary", elem_id="recipe-run")
    with (
        gr.Accordion("Or draft one from your own rows", open=False, elem_id="recipe-draft-box") as draft_section,
        gr.Row(equal_height=False),
    ):
        source = gr.Textbox(
            label="Rows", info="Path of a data file or folder, or hub:OWNER/NAME", scale=3, elem_id="recipe-source"
        )
        new_name = gr.Textbox(
            label="Name", info="Lowercase letters, digits, hyphens", scale=2, elem_id="recipe-new-name"
        )
        draft_button = gr.Button("Draft", elem_id="recipe-draft", scale=1, min_width=120)
    error_box = gr.HTML(elem_id="recipe-trouble")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320), gr.Tabs(elem_id="recipe-views"):
            with gr.Tab("Form", id="form"):
                controls, field_errors = _form(gr)
            with gr.Tab("YAML", id="yaml"):
                text = gr.Code(
                    "", language="yaml", label="The recipe", lines=24, elem_id="recipe-yaml", wrap_lines=True
                )
        with gr.Column(scale=2, min_width=300, elem_classes="ts-beside"):
            preview = gr.HTML(_welcome(), elem_id="recipe-preview")
            plan_button = gr.Button("Compute the plan", elem_id="recipe-plan", visible=False)
    all_controls = [control for group in controls for control in group]

    def from_form(before: str, *entered: Any) -> Any:
        if not before.strip():
            return [gr.skip()] * (2 + len(field_errors))
        after, unreadable = _apply_form(before, entered)
        if after == before and not unreadable:
            return [gr.skip()] * (2 + len(field_errors))
        errors = [*unreadable, *_validate(state, after)[1]]
        return [after, recipe_text.errors_html(errors) if errors else gr.skip(), *_field_errors(errors)]

    def from_text(after: str) -> Any:
        _, errors = _validate(state, after)
        problems = recipe_text.errors_html(errors) if errors else gr.skip()
        return [problems, *_field_errors(errors), *_form_values(after)]

    def choose(name: str | None) -> Any:
        if not name:
            return [gr.skip()] * (4 + len(field_errors) + len(all_controls))
        try:
            after = recipe_text.load_text(_recipe_path(state, name), small=name.endswith(SMALL_SUFFIX))
        except TunesmithError as error:
            return [html.error_boxes(error), *[gr.skip()] * (3 + len(field_errors) + len(all_controls))]
        recipe_name = str(recipe_text.parse_text(after).get("name", ""))
        return ["", after, recipe_name, *from_text(after)]

    def draft(rows: str, name: str) -> Any:
        try:
            path = _draft(state, rows.strip(), name.strip())
        except TunesmithError as error:
            return html.error_boxes(error), gr.skip()
        return "", gr.Dropdown(choices=_recipe_choices(state), value=path.name)

    def save(content: str, name: str) -> Any:
        try:
            path = _save(state, content, name.strip())
        except TunesmithError as error:
            return html.error_boxes(error), gr.skip()
        text = f"Saved as {path}. To run it in a terminal: tunesmith run {shlex.quote(str(path))}"
        return html.part(html.paragraph(text, "good")), gr.Dropdown(choices=_recipe_choices(state))

    def make_run(content: str) -> Any:
        try:
            name = _make_run(state, content)
        except TunesmithError as error:
            return html.error_boxes(error), gr.skip(), gr.skip()
        return "", state.select_run(name), gr.Tabs(selected="train")

    def plan(content: str, *, force: bool) -> Iterator[Any]:
        if not content.strip():
            yield _welcome(), gr.Button(visible=False)
            return
        recipe, errors = _validate(state, content)
        if recipe is None or errors:
            yield recipe_text.errors_html(errors), gr.Button(visible=False)
            return
        if not force and not recipe_text.is_base_local(recipe):
            note = "The base model may have to be downloaded first, so the plan is not computed automatically."
            yield recipe_text.overview(recipe, note), gr.Button(visible=True)
            return
        yield recipe_text.overview(recipe, "Reading the rows …"), gr.Button(visible=False)
        try:
            yield (
                recipe_text.overview(recipe) + recipe_text.preview(recipe, state.home / "plans"),
                gr.Button(visible=False),
            )
        except TunesmithError as error:
            yield recipe_text.overview(recipe) + html.error_boxes(error), gr.Button(visible=True)

    def plan_again(content: str) -> Iterator[Any]:
        yield from plan(content, force=False)

    def plan_now(content: str) -> Iterator[Any]:
        yield from plan(content, force=True)

    serial: dict[str, Any] = {**QUIET, "concurrency_id": "recipe", "concurrency_limit": 1}
    for group in controls:
        for control in group:
            changed = control.blur if isinstance(control, gr.Textbox) else control.input
            changed(from_form, [text, *all_controls], [text, preview, *field_errors], **serial)
            if isinstance(control, gr.Textbox):
                control.submit(from_form, [text, *all_controls], [text, preview, *field_errors], **serial)
    text.blur(from_text, text, [preview, *field_errors, *all_controls], **serial)
    text.change(
        plan_again,
        text,
        [preview, plan_button],
        trigger_mode="always_last",
        concurrency_id="plan",
        concurrency_limit=1,
        **QUIET,
    )
    plan_button.click(plan_now, text, [preview, plan_button], concurrency_id="plan", concurrency_limit=1, **SLOW)
    recipe_choice.change(
        choose, recipe_choice, [error_box, text, file_name, preview, *field_errors, *all_controls], **serial
    )
    draft_button.click(draft, [source, new_name], [error_box, recipe_choice], **SLOW)
    save_button.click(save, [text, file_name], [error_box, recipe_choice], **QUIET)
    run_button.click(make_run, text, [error_box, state.run, state.tabs], **QUIET)
    state.blocks.load(lambda: gr.Dropdown(choices=_recipe_choices(state)), None, recipe_choice, **QUIET)
    state.rows.change(
        lambda rows: (rows, _name_for(rows), gr.Accordion(open=True)),
        state.rows,
        [source, new_name, draft_section],
        **QUIET,
    )


# --- the form ----------------------------------------------------------------------------------------------


def _form(gr: Any) -> tuple[list[list[Any]], list[Any]]:
    """Returns the controls and the error box of each setting."""
    controls: list[list[Any]] = []
    error_boxes: list[Any] = []
    for section, section_help in form.sections().items():
        title = section.replace(".", ": ") or "the recipe"
        with gr.Accordion(
            title[:1].upper() + title[1:], open=section in OPEN_SECTIONS, elem_id=f"section-{section or 'recipe'}"
        ):
            gr.HTML(html.part(html.paragraph(section_help, "soft")))
            with gr.Column(elem_classes="ts-fields"):
                for field in (field for field in form.fields() if field.section == section):
                    with gr.Column(elem_classes="ts-field" if field.kind in NARROW_KINDS else "ts-wide", min_width=120):
                        controls.append(_controls(gr, field))
                        error_boxes.append(gr.HTML(visible=False, elem_id=f"error-{_id(field)}"))
    order = [field for section in form.sections() for field in form.fields() if field.section == section]
    index = {field.key: number for number, field in enumerate(order)}
    return [controls[index[field.key]] for field in form.fields()], [
        error_boxes[index[field.key]] for field in form.fields()
    ]


def _controls(gr: Any, field: FormField) -> list[Any]:
    common: dict[str, Any] = {
        "label": field.label,
        "info": field.info,
        "elem_id": f"field-{_id(field)}",
        "interactive": True,
    }
    initial = form.to_controls(field, None if field.default is form.MISSING else field.default)
    match field.kind:
        case "choice":
            return [
                gr.Dropdown(
                    [form.display_value(choice) for choice in field.choices],
                    value=initial[0] or None,
                    filterable=False,
                    **common,
                )
            ]
        case "choices":
            return [gr.CheckboxGroup(list(field.choices), value=initial[0], **common)]
        case "boolean":
            return [gr.Checkbox(value=initial[0], **common)]
        case "names":
            return [
                gr.Dropdown(list(field.choices), value=initial[0], multiselect=True, allow_custom_value=True, **common)
            ]
        case "name":
            with gr.Row(equal_height=True):
                name = gr.Dropdown(
                    list(field.choices),
                    value=initial[0] or None,
                    allow_custom_value=True,
                    scale=3,
                    min_width=180,
                    **common,
                )
                options = gr.Textbox(
                    initial[1],
                    label=f"{field.label}: options",
                    info="Options as YAML.",
                    scale=2,
                    min_width=160,
                    lines=1,
                    max_lines=12,
                    elem_id=f"options-{_id(field)}",
                )
            return [name, options]
        case "lines" | "mapping":
            return [gr.Textbox(initial[0], lines=2, max_lines=12, **common)]
        case _:
            hint = "none" if field.optional else ""
            return [
                gr.Textbox(initial[0], lines=1, max_lines=10 if field.kind == "text" else 1, placeholder=hint, **common)
            ]


def _id(field: FormField) -> str:
    return field.key.replace(".", "-")


def _form_values(text: str) -> list[Any]:
    """Returns updates of all controls from a recipe's text; skips if it is not valid YAML."""
    import gradio as gr

    try:
        values = recipe_text.parse_text(text)
    except TunesmithError:
        return [gr.skip() for field in form.fields() for _ in form.to_controls(field, None)]
    return [
        control_value
        for field in form.fields()
        for control_value in _control_values(field, form.get_or_default(values, field))
    ]


def _control_values(field: FormField, value: Any) -> tuple[Any, ...]:
    """Like `form.to_controls`, but an invalid value, which the recipe rejects anyway, leaves the control empty."""
    try:
        control_values = form.to_controls(field, value)
    except (TypeError, ValueError, AttributeError):
        control_values = form.to_controls(field, None)
    if field.kind == "choice" and control_values[0] not in map(form.display_value, field.choices):
        return (None,)
    if field.kind == "choices":
        return ([choice for choice in control_values[0] if choice in field.choices],)
    return control_values


def _field_errors(errors: Sequence[TunesmithError]) -> list[Any]:
    """Returns updates of all error boxes."""
    import gradio as gr

    by_key: dict[str, list[TunesmithError]] = {}
    for error in errors:
        by_key.setdefault(recipe_text.setting_of(error), []).append(error)
    return [
        gr.HTML(recipe_text.field_errors_html(by_key.get(field.key, [])), visible=field.key in by_key)
        for field in form.fields()
    ]


def _apply_form(text: str, entered: Sequence[Any]) -> tuple[str, list[TunesmithError]]:
    """Returns `text` with the changes of the form, and the errors of controls that cannot be read."""
    from tunesmith.errors import RecipeError

    try:
        values = recipe_text.parse_text(text)
    except TunesmithError as error:
        return text, [error]
    unreadable: list[TunesmithError] = []
    remaining = list(entered)
    for field in form.fields():
        before = _control_values(field, form.get_or_default(values, field))
        after, remaining = remaining[: len(before)], remaining[len(before) :]
        if _is_same(before, after):
            continue
        try:
            text = recipe_text.with_value(text, field.key, form.from_controls(field, *after))
        except ValueError as error:
            unreadable.append(
                RecipeError(str(error), where=f"recipe.yaml, {field.key}", next=f"{field.label}: {field.help}")
            )
    return text, unreadable


def _is_same(before: Sequence[Any], after: Sequence[Any]) -> bool:
    return [value or "" for value in before] == [value or "" for value in after]


# --- recipes -----------------------------------------------------------------------------------------------


def _recipe_choices(state: State) -> list[str]:
    """Returns the recipes to start from: saved ones, shipped ones with and without --small, and those of runs."""
    from tunesmith.config.recipe import SHIPPED

    saved = sorted(file.name for file in state.recipes.glob("*.yaml")) if state.recipes.is_dir() else []
    shipped = sorted({file.stem for folder in SHIPPED if folder.is_dir() for file in folder.glob("*.yaml")})
    return [
        *saved,
        *(f"{name}{suffix}" for name in shipped for suffix in ("", SMALL_SUFFIX)),
        *(f"run {name}" for name in state.run_names()),
    ]


def _recipe_path(state: State, name: str) -> str:
    """Returns the argument of `read_recipe` for a choice. Raises RunError for an unknown choice."""
    if name not in _recipe_choices(state):
        raise RunError(f"there is no recipe '{name}'", where=str(state.recipes), next="Choose one from the list")
    if name.startswith("run "):
        return str(state.folder(name.removeprefix("run ")))
    return str(state.recipes / name) if name.endswith(".yaml") else name.removesuffix(SMALL_SUFFIX)


def _validate(state: State, text: str) -> tuple[Any, list[TunesmithError]]:
    with tempfile.TemporaryDirectory(dir=state.home) as scratch:
        return recipe_text.validate(text, Path(scratch))


def _save(state: State, text: str, name: str) -> Path:
    """Saves the recipe. Raises RunError if the file name is not valid or belongs to another recipe."""
    from tunesmith.runs.run import write_atomic

    stem = name.removesuffix(".yaml")
    if not _NAME.fullmatch(stem):
        raise RunError(
            f"'{name}' is not a valid file name",
            where="Save as",
            next="Use lowercase letters, digits, dots and hyphens",
        )
    path = state.recipes / f"{stem}.yaml"
    if path.exists() and recipe_text.parse_text(path.read_text(encoding="utf-8")).get("name") != recipe_text.parse_text(
        text
    ).get("name"):
        raise RunError("another recipe has this file name", where=str(path), next="Choose another name")
    recipe_text.parse_text(text)
    write_atomic(path, text)
    return path


def _make_run(state: State, text: str) -> str:
    """Creates the run's folder for a valid recipe and returns its name. Raises MultipleErrors, RunError."""
    import tunesmith
    from tunesmith.errors import MultipleErrors

    recipe, errors = _validate(state, text)
    if recipe is None or errors:
        raise MultipleErrors(errors)
    folder = state.runs / recipe.name
    if (folder / ".fingerprints").is_dir() and (folder / "recipe.yaml").is_file():
        from tunesmith.config.recipe import read_recipe

        if read_recipe(str(folder)).dump() != recipe.dump():
            raise RunError(
                "a run of this name exists with a different recipe",
                where=str(folder),
                next="Change the recipe's setting 'name'",
            )
    run = tunesmith.open_run(recipe, state.runs)
    run.write_recipe()
    return run.path.name


def _draft(state: State, rows: str, name: str) -> Path:
    import tunesmith

    if not rows:
        raise RunError(
            "no rows given", where="Rows", next="Enter the path of a data file, or audit rows on the page Data"
        )
    state.recipes.mkdir(parents=True, exist_ok=True)
    return tunesmith.new(name, rows, state.recipes / f"{name}.yaml")


def _name_for(rows: str) -> str:
    stem = re.sub(r"\.cleaned$", "", re.sub(r"\.[a-z]+(\.gz)?$", "", Path(rows).name.lower()))
    return re.sub(r"[^a-z0-9-]+", "-", stem).strip("-") or "mine"


def _welcome() -> str:
    return html.part(
        html.heading("Plan and warnings"),
        html.paragraph(
            "They appear here once you choose a recipe above or draft one from your own rows.",
            "soft",
        ),
    )
