"""Which files of a folder are its rows: the tables of one kind. Reports, manifests and other tables are named."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.detect_row import recognise
from tunesmith.data.json_rows import NO_LIST
from tunesmith.data.rows import BadRow
from tunesmith.data.sources import describe, locate, read_all
from tunesmith.data.stream import as_utf8
from tunesmith.errors import DataError

SAMPLE = 20  # rows of each file that show its columns
ALIKE = 0.5  # of two files' columns are in both: one kind of table
NAMED = 8  # files that a note names


@dataclass(frozen=True)
class _Table:
    """A file of a folder: its columns, its format where a row shows one, and whether a JSON object surrounds its rows.

    `columns` is None for a file that cannot be judged.
    """

    file: Path
    columns: frozenset[str] | None
    format: Hashable = None
    wrapped: bool = False

    def alike(self, other: _Table) -> bool:
        """Whether both hold rows of one kind."""
        if self.wrapped != other.wrapped or self.format != other.format:
            return False
        mine, others = self.columns or frozenset(), other.columns or frozenset()
        return self.format is not None or len(mine & others) >= ALIKE * len(mine | others)


def tables(source: str, folder: Path) -> tuple[list[Path], str]:
    """The files that `source` names, and what of them is not read, in words ('' for nothing).

    Of a folder those tables are taken that have one kind of row: first a kind whose format shows, then one whose rows
    stand in a plain list or table, then the largest. A file that cannot be judged is taken, so that its error is seen.
    Raises DataError as `locate`.
    """
    files = locate(source, folder)
    if len(files) < 2 or not (folder / Path(source).expanduser()).is_dir():
        return files, ""
    judged = [_judge(file) for file in files]
    groups: list[list[_Table]] = []
    for table in judged:
        if table.columns:
            same = next((group for group in groups if group[0].alike(table)), None)
            groups.append([table]) if same is None else same.append(table)
    if not groups:
        return files, ""
    chosen = max(groups, key=_rank)
    passed = [(table.file, _why(table)) for table in judged if table.columns is not None and table not in chosen]
    taken = [table.file for table in judged if table.columns is None or table in chosen]
    return taken, _note(passed)


def _rank(group: Sequence[_Table]) -> tuple[bool, bool, int]:
    size = sum(table.file.stat().st_size for table in group)
    return group[0].format is not None, not group[0].wrapped, size


def _judge(file: Path) -> _Table:
    try:
        rows, bad = _sample(file, None)
        if bad and not rows and (encoding := describe(file).encoding):
            rows, bad = _sample(file, encoding.name)
        wrapped = file.name.lower().removesuffix(".gz").endswith(".json") and _first(file) == "{"
    except DataError as error:
        return _Table(file, frozenset() if error.what == NO_LIST else None)
    if not rows:  # items that are no objects are no rows; any other damage is the reader's to report
        return _Table(file, None if any("not an object" not in each.error.what for each in bad) else frozenset())
    return _Table(file, frozenset(str(name) for row in rows for name in row), _format(rows), wrapped)


def _sample(file: Path, encoding: str | None) -> tuple[list[dict[str, object]], list[BadRow]]:
    items = list(itertools.islice(read_all(file, encoding), SAMPLE))
    bad = [item for item in items if isinstance(item, BadRow)]
    return [dict(item.values) for item in items if not isinstance(item, BadRow)], bad


def _first(file: Path) -> str:
    """The first character of a text that is no space."""
    return next((text[0] for chunk in as_utf8(file) if (text := chunk.decode("utf-8", "replace").strip())), "")


def _format(rows: Sequence[dict[str, object]]) -> Hashable:
    """The format of the first row that shows one, with its options; None where no row does."""
    for row in rows:
        try:
            found = recognise(row)
        except DataError:
            continue
        return found.name, tuple(sorted(found.options.items()))
    return None


def _why(table: _Table) -> str:
    if not table.columns:
        return "holds no rows"
    if table.wrapped:
        return "an object with a list in it"
    names = sorted(table.columns)
    return f"other columns: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"


def _note(passed: Sequence[tuple[Path, str]]) -> str:
    if not passed:
        return ""
    shown = [f"{file.name} ({why})" for file, why in passed[:NAMED]]
    more = [f"{len(passed) - NAMED} more files"] if len(passed) > NAMED else []
    return f"not read from the same folder: {', '.join([*shown, *more])}"
