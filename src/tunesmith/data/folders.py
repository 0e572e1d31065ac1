"""Selects the files of a folder that are its rows: tables of one kind. Other files are reported in a note."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.detect_row import detect_row_format
from tunesmith.data.json_rows import NO_LIST
from tunesmith.data.rows import BadRow
from tunesmith.data.sources import describe, locate, read_all
from tunesmith.data.stream import as_utf8
from tunesmith.errors import DataError

SAMPLE = 20  # rows read from each file to learn its columns
ALIKE = 0.5  # Jaccard similarity of the columns of two tables of one kind
MAX_NAMED = 8  # files that a note names


@dataclass(frozen=True)
class _Table:
    """A file of a folder: its columns, its format if a row shows one, and whether its rows are inside a JSON object.

    `columns` is None for a file that cannot be read.
    """

    file: Path
    columns: frozenset[str] | None
    format: Hashable = None
    wrapped: bool = False

    def alike(self, table: _Table) -> bool:
        """Whether both have rows of the same kind."""
        if self.wrapped != table.wrapped or self.format != table.format:
            return False
        own_columns, table_columns = self.columns or frozenset(), table.columns or frozenset()
        return self.format is not None or len(own_columns & table_columns) >= ALIKE * len(own_columns | table_columns)


def select_tables(source: str, folder: Path) -> tuple[list[Path], str]:
    """The files to read from `source`, and a note on the files that are skipped ('' if there are none).

    In a folder, tables of one kind are selected: preferably of a known format, then not wrapped in a JSON object, then
    the largest. Files that cannot be read are selected too, so that their errors are reported. Raises DataError like
    `locate`.
    """
    files = locate(source, folder)
    if len(files) < 2 or not (folder / Path(source).expanduser()).is_dir():
        return files, ""
    candidates = [_inspect(file) for file in files]
    groups: list[list[_Table]] = []
    for table in candidates:
        if table.columns:
            similar_group = next((group for group in groups if group[0].alike(table)), None)
            groups.append([table]) if similar_group is None else similar_group.append(table)
    if not groups:
        return files, ""
    best_group = max(groups, key=_rank)
    skipped = [
        (table.file, _skip_reason(table))
        for table in candidates
        if table.columns is not None and table not in best_group
    ]
    selected = [table.file for table in candidates if table.columns is None or table in best_group]
    return selected, _note(skipped)


def _rank(group: Sequence[_Table]) -> tuple[bool, bool, int]:
    size = sum(table.file.stat().st_size for table in group)
    return group[0].format is not None, not group[0].wrapped, size


def _inspect(file: Path) -> _Table:
    try:
        rows, bad_rows = _sample(file, None)
        if bad_rows and not rows and (encoding := describe(file).encoding):
            rows, bad_rows = _sample(file, encoding.name)
        wrapped = file.name.lower().removesuffix(".gz").endswith(".json") and _first_character(file) == "{"
    except DataError as error:
        return _Table(file, frozenset() if error.what == NO_LIST else None)
    if not rows:  # items that are not objects are not rows; the reader reports any other damage
        return _Table(
            file, None if any("not an object" not in bad_row.error.what for bad_row in bad_rows) else frozenset()
        )
    return _Table(file, frozenset(str(name) for row in rows for name in row), _format(rows), wrapped)


def _sample(file: Path, encoding: str | None) -> tuple[list[dict[str, object]], list[BadRow]]:
    items = list(itertools.islice(read_all(file, encoding), SAMPLE))
    bad = [item for item in items if isinstance(item, BadRow)]
    return [dict(item.values) for item in items if not isinstance(item, BadRow)], bad


def _first_character(file: Path) -> str:
    """The first character of a text that is not whitespace."""
    return next((text[0] for chunk in as_utf8(file) if (text := chunk.decode("utf-8", "replace").strip())), "")


def _format(rows: Sequence[dict[str, object]]) -> Hashable:
    """The format and options of the first row that shows one; None if no row does."""
    for row in rows:
        try:
            detected = detect_row_format(row)
        except DataError:
            continue
        return detected.name, tuple(sorted(detected.options.items()))
    return None


def _skip_reason(table: _Table) -> str:
    if not table.columns:
        return "has no rows"
    if table.wrapped:
        return "an object that contains a list"
    names = sorted(table.columns)
    return f"other columns: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"


def _note(skipped: Sequence[tuple[Path, str]]) -> str:
    if not skipped:
        return ""
    descriptions = [f"{file.name} ({reason})" for file, reason in skipped[:MAX_NAMED]]
    remainder = [f"{len(skipped) - MAX_NAMED} more files"] if len(skipped) > MAX_NAMED else []
    return f"not read from the same folder: {', '.join([*descriptions, *remainder])}"
