"""Edits a recipe's YAML one setting at a time, keeps its comments and order, and shows its errors and plan."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe, parse_yaml, read_recipe
from tunesmith.errors import MultipleErrors, TunesmithError
from tunesmith.ui import html
from tunesmith.ui.form import (
    MISSING,
    RecipeDict,
    fields,
    get_or_default,
    get_value,
    inline_yaml,
    set_value,
    without_defaults,
)
from tunesmith.wording import show_bytes, show_duration


def load_text(name: str, *, small: bool = False) -> str:
    """Returns the text of a recipe with absolute paths, so that it can be saved anywhere.

    With `small`, the section `small` is applied and comments are lost. Raises RecipeError, MultipleErrors.
    """
    from tunesmith.config.recipe import find_recipe

    recipe = read_recipe(name, small=small)
    if small:
        values = recipe.dump() | {"small": {}}
        return to_text(values)
    text = find_recipe(name).read_text(encoding="utf-8-sig")
    values, resolved = parse_yaml(text, name)[0], recipe.dump()
    for key in (
        "data.source",
        "data.mix_in.source",
        "data.pseudonyms",
        "evaluate.probes",
        "prompt.template",
        "base.model",
    ):
        before, after = get_value(values, key), get_value(resolved, key)
        if before is not MISSING and before != after and [before] != after:
            text = with_value(text, key, after[0] if isinstance(before, str) and isinstance(after, list) else after)
    return text


def to_text(recipe: RecipeDict) -> str:
    """Returns a recipe as YAML without the settings that have their default value."""
    values = {field.key: get_or_default(recipe, field) for field in fields()}
    return yaml.safe_dump(
        without_defaults(values), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )


def parse_text(text: str) -> RecipeDict:
    """Parses a recipe's text. Raises RecipeError if it is not a YAML mapping."""
    return parse_yaml(text, "recipe")[0]


def with_value(text: str, key: str, value: Any) -> str:
    """Returns `text` with `key` set to `value`: only the value is replaced, or a line is added to its section."""
    target = _unshared_copy(parse_text(text))
    set_value(target, key, value)
    edited = _edit_in_place(text, key.split("."), value)
    try:
        if edited is not None and parse_text(edited) == target:
            return edited
    except TunesmithError:
        pass
    return to_text(target)  # rare YAML such as anchors and tags: values are kept, comments are lost


def validate(text: str, scratch: Path) -> tuple[Recipe | None, list[TunesmithError]]:
    """Returns the recipe of `text`, or all of its errors. `scratch` is a folder for a temporary file."""
    file = scratch / "recipe.yaml"
    scratch.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    try:
        return read_recipe(str(file)), []
    except MultipleErrors as error:
        return None, error.errors
    except TunesmithError as error:
        return None, [error]


def setting_of(error: TunesmithError) -> str:
    """Returns the dotted name of the setting that an error is about, '' if it is about none."""
    place = error.where.rpartition(", ")[2] if ", " in error.where else ""
    keys = {field.key for field in fields()}
    parts = place.split(".")
    return next((".".join(parts[:end]) for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in keys), "")


def location_of(error: TunesmithError) -> str:
    """Returns where an error is, without the name of the temporary file."""
    return re.sub(r"^.*recipe\.yaml(?=$| line|,)", "", error.where).strip(", ")


def _edit_in_place(text: str, path: list[str], value: Any) -> str | None:
    """Returns `text` with the value replaced in place, or None if that is not possible."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, name in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            return None
        entry = next(((k, v) for k, v in node.value if k.value == name), None)
        if entry is None:
            return _add_key(text, node, path[depth:], value)
        node = entry[1]
    if node is None:
        return None
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        end = start + len(_without_trailing_comments(text[start:end]))
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        end = start + len(text[start:end].rstrip("\n"))
    before = text[:start].rstrip(" \n") + " " if text[:start].rstrip(" ").endswith("\n") else text[:start]
    before = before if not before or before[-1] in " \n[{," else f"{before} "
    return before + _inline_value(value) + text[end:]


def _add_key(text: str, node: yaml.MappingNode, path: list[str], value: Any) -> str | None:
    """Returns `text` with a new key at the end of a mapping, or None if the mapping is an empty block."""
    for name in reversed(path[1:]):
        value = {name: value}
    item = f"{path[0]}: {_inline_value(value)}"
    if node.flow_style:
        end = node.end_mark.index - 1
        return f"{text[:end].rstrip()}{', ' if node.value else ''}{item}{text[end:]}"
    if not node.value:
        return None
    start, end = node.start_mark.index, node.end_mark.index
    body = _without_trailing_comments(text[start:end])
    return f"{text[:start]}{body}\n{' ' * node.start_mark.column}{item}{text[start + len(body) :] or chr(10)}"


def _inline_value(value: Any) -> str:
    """Returns the value as one line that is valid inside a flow mapping; multi-line texts become JSON."""
    text = inline_yaml([value])
    return (json.dumps([value], ensure_ascii=False) if "\n" in text else text)[1:-1]


def _unshared_copy(value: Any) -> Any:
    """Copies a value so that no object occurs twice, as YAML aliases do."""
    if isinstance(value, dict):
        return {key: _unshared_copy(item) for key, item in value.items()}
    return [_unshared_copy(item) for item in value] if isinstance(value, list) else value


def _without_trailing_comments(text: str) -> str:
    lines = text.rstrip().split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    return "\n".join(lines).rstrip()


MAX_WARNING = 240  # characters of a warning that is shown whole
MAX_PIECE = 700  # characters shown of each piece of an example row


def errors_html(errors: Sequence[TunesmithError]) -> str:
    """Returns all errors of a recipe, each with its setting, its line and what to do."""
    boxes = [
        html.error_box(f"{setting_of(error) or 'the recipe'}: {error.what}", location_of(error), error.next)
        for error in errors
    ]
    count = f"{len(errors)} errors" if len(errors) > 1 else "One error"
    return html.part(html.heading("The recipe is not valid"), html.paragraph(f"{count} to fix.", "bad"), *boxes)


def field_errors_html(errors: Sequence[TunesmithError]) -> str:
    """Returns the errors of one setting, to show under its field."""
    return html.part(*(html.error_box(error.what, location_of(error), error.next) for error in errors))


def overview(recipe: Recipe, note: str = "") -> str:
    """Returns the summary of a valid recipe, before its rows are read."""
    figures = [
        (str(recipe.train.epochs), "epochs"),
        (recipe.train.batch, "a step"),
        (str(recipe.adapter.rank), "rank"),
        (recipe.evaluate.primary.replace("_", " "), "primary metric"),
    ]
    return html.part(
        html.heading(recipe.name),
        html.paragraph(recipe.about) if recipe.about else "",
        html.paragraph(f"Base: {recipe.base.model}", "soft"),
        html.tiles(figures),
        html.paragraph(note, "soft") if note else "",
    )


def is_base_local(recipe: Recipe) -> bool:
    """Whether the base model needs no download: a local path, or a package's file that was fetched before."""
    from tunesmith.models.weights import is_local

    return is_local(recipe.base.model, recipe.folder)


def preview(recipe: Recipe, scratch: Path) -> str:
    """Checks the recipe, prepares its rows in a scratch folder and returns plan and examples. Raises TunesmithError."""
    import tunesmith
    from tunesmith.runs.run import Run

    check_lines: list[str] = []
    checked = tunesmith.check(recipe, check_lines.append)
    run = Run(scratch / recipe.name)
    tunesmith.prepare(recipe, run, lambda text: None)
    plan_lines: list[str] = []
    plan = tunesmith.plan(recipe, run, plan_lines.append)
    counts = json.loads((run / "audit.json").read_text(encoding="utf-8"))["parts"]
    parts = ", ".join(f"{count:,} {part}" for part, count in counts.items() if count)
    tiles = [
        (f"{checked.rows:,}", "rows"),
        (f"{counts.get('train', 0):,}", "to train on"),
        (f"{checked.longest:,}", "tokens in the longest row"),
        (show_bytes(plan.peak), f"of memory, {show_bytes(plan.budget)} available"),
    ]
    if plan.total_seconds is not None:
        tiles.append((show_duration(plan.total_seconds), "estimated training time"))
    warnings = [*checked.warnings, *(line for line in plan_lines if line.startswith(("not fused", "better")))]
    return html.part(
        html.heading("Plan"),
        html.tiles(tiles),
        html.paragraph(f"Split: {parts}", "soft"),
        "".join(map(_warning_html, warnings)) or html.paragraph("No warnings.", "good"),
        "<details><summary>Details</summary>",
        *(html.paragraph(line, "soft") for line in [*check_lines, *plan_lines]),
        "</details>",
        html.heading("Rows as the model sees them"),
        *(
            html.paragraph(f"{example.title[:1].upper()}{example.title[1:]} ({example.where})", "soft")
            + f'<div class="card text">{_pieces_html(example.pieces)}</div>'
            for example in checked.shown
        ),
        html.paragraph(
            f"The marked part is trained on and ends with {checked.stop}. Template: {checked.template}.", "soft"
        ),
    )


def _warning_html(text: str) -> str:
    """Returns a warning; a long one as its first part, with the rest to be opened."""
    text = text.removeprefix("WARNING: ")
    what, _, details = text.partition(": ")
    if len(text) <= MAX_WARNING or not details:
        return f'<p class="warn">{html.escape(text)}</p>'
    return f'<details><summary class="warn">{html.escape(what)}</summary><p>{html.escape(details)}</p></details>'


def _pieces_html(pieces: Sequence[tuple[str, bool]]) -> str:
    shortened = ((text if len(text) <= MAX_PIECE else f"{text[:MAX_PIECE]} …", has_loss) for text, has_loss in pieces)
    return "".join(
        f"<mark>{html.escape(text)}</mark>" if has_loss else html.escape(text) for text, has_loss in shortened
    )
