"""Writes a recipe for a table of rows."""

from __future__ import annotations

import shlex
from pathlib import Path

from tunesmith.commands.shared import Reporter, silent
from tunesmith.data.rows import Row
from tunesmith.data.sources import open_sources
from tunesmith.errors import RunError
from tunesmith.runs.run import write_atomic


def new(name: str, source: str, path: Path, log: Reporter = silent) -> Path:
    """Writes a recipe called `name` for the rows of `source` to `path`, with a reason for each line.

    Raises RunError if `path` exists, DataError if the rows cannot be trained on.
    """
    from tunesmith.config.recipe import read_recipe
    from tunesmith.hardware import detect_hardware
    from tunesmith.planning.recipe_draft import draft, written_source
    from tunesmith.planning.survey import draw_sample

    if path.exists():
        raise RunError("this file already exists and is not overwritten", where=str(path), next="Choose another name")
    sources = open_sources(source, Path.cwd())
    for source_file in sources:
        for note in source_file.notes:
            log(f"{source_file.name}: {note}")
    rows, total = draw_sample(
        row.values if isinstance(row, Row) else row.error for source_file in sources for row in source_file.rows()
    )
    text = draft(name, written_source(source, path.parent), rows, detect_hardware(), total=total, remark=log)
    write_atomic(path, text)
    read_recipe(str(path))
    log(f"new: {path}, from {total} rows. Read its comments, then: tunesmith check {shlex.quote(str(path))}")
    return path
