"""What a recipe would do here: its rows as the model sees them, what training needs, what there is to warn of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tunesmith.config.recipe import Recipe
from tunesmith.errors import TunesmithError
from tunesmith.ui import text_html
from tunesmith.ui.recipe_text import key_of, place_of

PIECE = 700  # characters of the first row that are shown, each part's beginning


def problems(errors: Sequence[TunesmithError]) -> str:
    """Everything that is wrong with a recipe, each with its setting, its place and what to do."""
    boxes = [
        text_html.parts_of(f"{key_of(error) or 'the recipe'}: {error.what}", place_of(error), error.next)
        for error in errors
    ]
    many = f"{len(errors)} things are" if len(errors) > 1 else "One thing is"
    return text_html.part(
        text_html.heading("Not yet a recipe"), text_html.paragraph(f"{many} to be mended.", "bad"), *boxes
    )


def field_trouble(errors: Sequence[TunesmithError]) -> str:
    """What is wrong with one setting, for under its field."""
    return text_html.part(*(text_html.parts_of(error.what, place_of(error), error.next) for error in errors))


def overview(recipe: Recipe, note: str = "") -> str:
    """A recipe that is well-formed, before its rows are read."""
    told = [
        (str(recipe.train.epochs), "epochs"),
        (recipe.train.batch, "a step"),
        (str(recipe.adapter.rank), "rank"),
        (recipe.evaluate.primary.replace("_", " "), "decides"),
    ]
    return text_html.part(
        text_html.heading(recipe.name),
        text_html.paragraph(recipe.about) if recipe.about else "",
        text_html.paragraph(f"Base: {recipe.base.model}", "soft"),
        text_html.tiles(told),
        text_html.paragraph(note, "soft") if note else "",
    )


def is_here(recipe: Recipe) -> bool:
    """Whether the base can be read without fetching anything: a path, or a package's file fetched before."""
    from tunesmith.models.weights import is_local

    return is_local(recipe.base.model, recipe.folder)


def look(recipe: Recipe, scratch: Path) -> str:
    """Reads rows and tokenizer, prepares in a scratch folder and plans. Raises TunesmithError."""
    import tunesmith
    from tunesmith.runs.run import Run

    told: list[str] = []
    found = tunesmith.check(recipe, told.append)
    run = Run(scratch / recipe.name)
    tunesmith.prepare(recipe, run, lambda text: None)
    lines: list[str] = []
    plan = tunesmith.plan(recipe, run, lines.append)
    counts = json.loads((run / "audit.json").read_text(encoding="utf-8"))["parts"]
    parts = ", ".join(f"{count:,} {part}" for part, count in counts.items() if count)
    tiles = [
        (f"{found.rows:,}", "rows"),
        (f"{counts.get('train', 0):,}", "to learn from"),
        (f"{found.longest:,}", "tokens in the longest"),
        (text_html.size(plan.peak), f"of memory, of {text_html.size(plan.budget)}"),
    ]
    if plan.total_seconds is not None:
        tiles.append((text_html.span(plan.total_seconds), "to train, about"))
    warnings = [*found.warnings, *(line for line in lines if line.startswith(("not fused", "better")))]
    return text_html.part(
        text_html.heading("Plan"),
        text_html.tiles(tiles),
        text_html.paragraph(f"Split: {parts}", "soft"),
        "".join(f'<p class="warn">{escape(text)}</p>' for text in warnings)
        or text_html.paragraph("Nothing to warn of.", "good"),
        "<details><summary>In words</summary>",
        *(text_html.paragraph(line, "soft") for line in [*told, *lines]),
        "</details>",
        text_html.heading("Rows as the model sees them"),
        *(
            text_html.paragraph(f"{shown.title[:1].upper()}{shown.title[1:]} ({shown.where})", "soft")
            + f'<div class="card text">{_pieces(shown.pieces)}</div>'
            for shown in found.shown
        ),
        text_html.paragraph(
            f"The marked part is learned; it ends with {found.stop}. Template: {found.template}.", "soft"
        ),
    )


def _pieces(pieces: Sequence[tuple[str, bool]]) -> str:
    shown = ((text if len(text) <= PIECE else f"{text[:PIECE]} …", learnt) for text, learnt in pieces)
    return "".join(f"<mark>{escape(text)}</mark>" if learnt else escape(text) for text, learnt in shown)
