"""What a recipe would do here: its rows as the model sees them, what training needs, what there is to warn of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.ui import words
from tunesmith.ui.recipe_text import key_of, place_of

PIECE = 700  # characters of the first row that are shown, each part's beginning


def problems(errors: Sequence[TunesmithError]) -> str:
    """Everything that is wrong with a recipe, each with its setting, its place and what to do."""
    boxes = [
        words.parts_of(f"{key_of(error) or 'the recipe'}: {error.what}", place_of(error), error.next)
        for error in errors
    ]
    many = f"{len(errors)} things are" if len(errors) > 1 else "One thing is"
    return words.part(words.heading("Not yet a recipe"), words.paragraph(f"{many} to be mended.", "bad"), *boxes)


def field_trouble(errors: Sequence[TunesmithError]) -> str:
    """What is wrong with one setting, for under its field."""
    return words.part(*(words.parts_of(error.what, place_of(error), error.next) for error in errors))


def overview(recipe: Recipe, note: str = "") -> str:
    """A recipe that is well-formed, before its rows are read."""
    told = [
        (str(recipe.train.epochs), "epochs"),
        (recipe.train.batch, "a step"),
        (str(recipe.adapter.rank), "rank"),
        (recipe.evaluate.primary.replace("_", " "), "decides"),
    ]
    return words.part(
        words.heading(recipe.name),
        words.paragraph(recipe.about) if recipe.about else "",
        words.paragraph(f"Base: {recipe.base.model}", "soft"),
        words.tiles(told),
        words.paragraph(note, "soft") if note else "",
    )


def is_here(recipe: Recipe) -> bool:
    """Whether the base can be read without fetching anything: a path, or a package's file fetched before."""
    from tunesmith.model.weights import is_local

    return is_local(recipe.base.model, recipe.folder)


def look(recipe: Recipe, scratch: Path) -> str:
    """Reads rows and tokenizer, prepares in a scratch folder and plans. Raises TunesmithError."""
    from tunesmith import verbs
    from tunesmith.run import Run

    told: list[str] = []
    found = verbs.check(recipe, told.append)
    run = Run(scratch / recipe.name)
    verbs.prepare(recipe, run, lambda text: None)
    lines: list[str] = []
    plan = verbs.plan(recipe, run, lines.append)
    counts = json.loads((run / "audit.json").read_text(encoding="utf-8"))["parts"]
    parts = ", ".join(f"{count:,} {part}" for part, count in counts.items() if count)
    tiles = [
        (f"{found.rows:,}", "rows"),
        (f"{counts.get('train', 0):,}", "to learn from"),
        (f"{found.longest:,}", "tokens in the longest"),
        (words.size(plan.peak), f"of memory, of {words.size(plan.budget)}"),
    ]
    if plan.total_seconds is not None:
        tiles.append((words.span(plan.total_seconds), "to train, about"))
    warnings = [*found.warnings, *(line for line in lines if line.startswith(("not fused", "better")))]
    return words.part(
        words.heading("Plan"),
        words.tiles(tiles),
        words.paragraph(f"Split: {parts}", "soft"),
        "".join(f'<p class="warn">{escape(text)}</p>' for text in warnings)
        or words.paragraph("Nothing to warn of.", "good"),
        "<details><summary>In words</summary>",
        *(words.paragraph(line, "soft") for line in [*told, *lines]),
        "</details>",
        words.heading("Rows as the model sees them"),
        *(
            words.paragraph(f"The row {shown.title} ({shown.where})", "soft")
            + f'<div class="card text">{_pieces(shown.pieces)}</div>'
            for shown in found.shown
        ),
        words.paragraph(f"The marked part is learned; it ends with {found.stop}. Template: {found.template}.", "soft"),
    )


def _pieces(pieces: Sequence[tuple[str, bool]]) -> str:
    shown = ((text if len(text) <= PIECE else f"{text[:PIECE]} …", learnt) for text, learnt in pieces)
    return "".join(f"<mark>{escape(text)}</mark>" if learnt else escape(text) for text, learnt in shown)
