"""Takes back what audit --fix changed."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.clean import undo_clean


def undo(diff: Path, out: Path) -> int:
    """Restores the rows as they were before `audit --fix` wrote `diff`: writes them to `out`, returns their number.

    Raises DataError if the cleaned file is not the one that the diff was written for.
    """
    return undo_clean(diff, out)
