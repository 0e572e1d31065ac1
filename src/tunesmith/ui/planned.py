"""Previews a recipe: errors, the training plan, warnings, and rows as the model sees them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.ui import text_html
from tunesmith.ui.recipe_text import location_of, setting_of

MAX_PIECE = 700  # characters shown of each piece of an example row


def errors_html(errors: Sequence[TunesmithError]) -> str:
    """Returns all errors of a recipe, each with its setting, its line and what to do."""
    boxes = [
        text_html.error_box(f"{setting_of(error) or 'the recipe'}: {error.what}", location_of(error), error.next)
        for error in errors
    ]
    count = f"{len(errors)} errors" if len(errors) > 1 else "One error"
    return text_html.part(
        text_html.heading("The recipe is not valid"), text_html.paragraph(f"{count} to fix.", "bad"), *boxes
    )


def field_errors_html(errors: Sequence[TunesmithError]) -> str:
    """Returns the errors of one setting, to show under its field."""
    return text_html.part(*(text_html.error_box(error.what, location_of(error), error.next) for error in errors))


def overview(recipe: Recipe, note: str = "") -> str:
    """Returns the summary of a valid recipe, before its rows are read."""
    figures = [
        (str(recipe.train.epochs), "epochs"),
        (recipe.train.batch, "a step"),
        (str(recipe.adapter.rank), "rank"),
        (recipe.evaluate.primary.replace("_", " "), "primary metric"),
    ]
    return text_html.part(
        text_html.heading(recipe.name),
        text_html.paragraph(recipe.about) if recipe.about else "",
        text_html.paragraph(f"Base: {recipe.base.model}", "soft"),
        text_html.tiles(figures),
        text_html.paragraph(note, "soft") if note else "",
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
        (text_html.byte_size(plan.peak), f"of memory, {text_html.byte_size(plan.budget)} available"),
    ]
    if plan.total_seconds is not None:
        tiles.append((text_html.duration(plan.total_seconds), "estimated training time"))
    warnings = [*checked.warnings, *(line for line in plan_lines if line.startswith(("not fused", "better")))]
    return text_html.part(
        text_html.heading("Plan"),
        text_html.tiles(tiles),
        text_html.paragraph(f"Split: {parts}", "soft"),
        "".join(f'<p class="warn">{escape(text)}</p>' for text in warnings)
        or text_html.paragraph("No warnings.", "good"),
        "<details><summary>Details</summary>",
        *(text_html.paragraph(line, "soft") for line in [*check_lines, *plan_lines]),
        "</details>",
        text_html.heading("Rows as the model sees them"),
        *(
            text_html.paragraph(f"{example.title[:1].upper()}{example.title[1:]} ({example.where})", "soft")
            + f'<div class="card text">{_pieces_html(example.pieces)}</div>'
            for example in checked.shown
        ),
        text_html.paragraph(
            f"The marked part is trained on and ends with {checked.stop}. Template: {checked.template}.", "soft"
        ),
    )


def _pieces_html(pieces: Sequence[tuple[str, bool]]) -> str:
    shortened = ((text if len(text) <= MAX_PIECE else f"{text[:MAX_PIECE]} …", has_loss) for text, has_loss in pieces)
    return "".join(f"<mark>{escape(text)}</mark>" if has_loss else escape(text) for text, has_loss in shortened)
