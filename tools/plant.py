"""Plants defects into clean letters, so that a check can be measured on defects that are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tools.letter_parts import Row
from tunesmith.config.registry import entries, resolve

CATALOG = "tools.defects"
Defect = Callable[[Row, random.Random, Sequence[Row]], tuple[Row, str] | None]


def kinds() -> list[str]:
    """The defects that can be planted; each is named as the check that should find it."""
    return entries(CATALOG)


def plant(rows: Sequence[Row], kind: str, seed: int) -> list[tuple[Row, str]]:
    """A damaged copy of each row that can carry the defect `kind`, with a word on what was done to it.

    The rows are clean letters with the columns of recipes/samples/cover_letter.csv; they are not changed. A row that
    cannot carry the defect (a list cannot collapse where there is none) gives no copy. `duplicate`, `near_duplicate`
    and `contradiction` are defects only beside the row they were made from. The detail begins with the way and a colon.
    The same rows, kind and seed give the same copies. Raises RecipeError for an unknown kind.
    """
    found = (plant_one(row, kind, f"{seed} {place}", rows) for place, row in enumerate(rows))
    return [planted for planted in found if planted is not None]


def plant_one(row: Row, kind: str, seed: str, rows: Sequence[Row]) -> tuple[Row, str] | None:
    """A damaged copy of one row with its detail, or None where it cannot carry the defect; `rows` are all of them.

    Raises RecipeError for an unknown kind.
    """
    damage: Defect = resolve(CATALOG, kind, where="kind")
    return damage(dict(row), random.Random(f"{seed} {kind}"), rows)  # noqa: S311
