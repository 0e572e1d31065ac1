"""Cleaned rows, written beside a diff that takes the cleaning back.

A source keeps its shape: csv stays csv, tsv tsv, anything else becomes JSON lines with the same columns. The diff is
JSON lines: one for each row that was changed (its edits) or left out (its values and why), by the row's number in the
source, and at its end what the file was.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.config.recipe import Named
from tunesmith.config.registry import find
from tunesmith.data.decisions import Ledger
from tunesmith.data.open_sources import Opened
from tunesmith.data.repair_rows import Mend, from_plain, to_plain, undo_row
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.sources import read_all
from tunesmith.data.table import Table
from tunesmith.errors import DataError
from tunesmith.runs.run import hash_file, writing

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Cleaned:
    """What became of one source: the cleaned file, its diff, and how many rows each holds."""

    file: Path
    diff: Path
    kept: int
    changed: int
    left_out: int


def write_clean(
    rows: Table, sources: Sequence[Opened], ledger: Ledger, format: Named, mend: Mend, out: Path
) -> list[Cleaned]:
    """Writes the rows that the ledger keeps, mended, into `out`; rows it drops or sets aside go into the diff alone.

    `rows` are the sources' rows as they were looked at. With a book of stand-ins the diff holds no values and cannot be
    undone: what was personal would stand in it.
    """
    told = iter(rows)  # in the sources' order; a place is no key: a file may be named twice
    row = next(told, None)
    parse = find("tunesmith.data.formats", format.name)
    done = []
    for source, stem in zip(sources, _stems(sources), strict=True):
        ending = source.kind if source.kind in SEPARATORS else ".jsonl"
        file, diff = out / f"{stem}.cleaned{ending}", out / f"{stem}.cleaned.diff.jsonl"
        with writing(file) as (sink, temporary), writing(diff) as (log, _):
            writer = _Writer(sink, SEPARATORS.get(ending))
            counts = {"kept": 0, "changed": 0, "left_out": 0}
            lines: list[dict[str, Any]] = []
            for number, item in enumerate(source.rows(), 1):
                fate, reason = "drop", "broken"
                if row is not None and row.origin == item.origin:
                    fate, reason = ledger.fate(row.id), ledger.reason(row.id)
                    row = next(told, None)
                if isinstance(item, BadRow) or fate in ("drop", "quarantine"):
                    counts["left_out"] += 1
                    values = {} if isinstance(item, BadRow) or mend.book else dict(item.values)
                    line = {"row": number, "where": str(item.origin), "fate": fate, "check": reason, "values": values}
                    lines.append(line | ({"unreadable": item.error.what} if isinstance(item, BadRow) else {}))
                    continue
                mended, changes = _mended(item, parse, format.options, mend)
                writer.write(mended)
                counts["kept"] += 1
                if changes or mended != item.values:
                    counts["changed"] += 1
                    lines.append({"row": number, "where": str(item.origin), "changes": [] if mend.book else changes})
                if len(lines) >= 1000:
                    _log(log, lines)
            sink.flush()
            head = {"cleaned": file.name, "sha256": hash_file(temporary), "of": source.name, **counts}
            _log(log, [*lines, {"end": head | {"undoable": mend.book is None}}])
        done.append(Cleaned(file, diff, **counts))
    return done


def _stems(sources: Sequence[Opened]) -> list[str]:
    """A name for each source's files: its own, with a number where an earlier source took it."""
    stems: list[str] = []
    for source in sources:
        numbered = (f"{source.stem}-{number}" for number in itertools.count(2))
        stems.append(next(stem for stem in itertools.chain([source.stem], numbered) if stem not in stems))
    return stems


def undo_clean(diff: Path, out: Path) -> int:
    """Writes the rows as they were before cleaning to `out` and returns their number.

    Raises DataError when there is no diff, the cleaned file was changed since, personal data was replaced, or `out` is
    no kind of file that can hold the rows.
    """
    if out.suffix not in (*SEPARATORS, ".jsonl"):
        raise DataError(
            f"files ending in '{out.suffix}' cannot be written", where=str(out), next="Name a .csv, .tsv or .jsonl file"
        )
    try:
        lines = [
            json.loads(line) for line in diff.read_text(encoding="utf-8", errors="surrogatepass").split("\n") if line
        ]
        end = lines.pop()["end"]
        file, sha256, undoable = diff.with_name(end["cleaned"]), end["sha256"], end["undoable"]
        total, by_number = end["kept"] + end["left_out"], {line["row"]: line for line in lines}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError("this is no diff of a cleaning", where=str(diff), next="Name a …cleaned.diff.jsonl") from error
    if not undoable:
        raise DataError(
            "personal data was replaced, so the diff holds no values",
            where=str(diff),
            next="Take the source file, or turn the stand-ins back with the book of pseudonyms",
        )
    if not file.is_file() or hash_file(file) != sha256:
        raise DataError(
            "the cleaned file is gone or was changed", where=str(file), next="Undo needs it as it was written"
        )
    with writing(out) as (sink, _):
        writer = _Writer(sink, SEPARATORS.get(out.suffix))
        count = 0
        for values in _before(file, by_number, total):
            writer.write(values)
            count += 1
    return count


def _before(file: Path, by_number: Mapping[int, Any], total: int) -> Iterator[Mapping[str, Any]]:
    """The rows of the source, in their order; rows that nobody could read are not among them."""
    cleaned = iter(read_all(file))
    for number in range(1, total + 1):
        line = by_number.get(number)
        if line and "fate" in line:
            if "unreadable" not in line:
                yield line["values"]
            continue
        row = next(cleaned)
        if isinstance(row, BadRow):
            raise AssertionError(f"a cleaned row cannot be read: {row.error}")
        yield undo_row(row.values, from_plain(line["changes"])) if line else row.values


def _mended(
    row: Row, parse: Callable[..., Any], options: Mapping[str, Any], mend: Mend
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    turns, _ = parse(row.values, **options)
    done = mend.row(row.values, turns)
    return (done.values, to_plain(done.changes)) if done.changes or done.stand_ins else (row.values, [])


class _Writer:
    """Rows as JSON lines or, with a separator, as a table whose columns are the first row's."""

    def __init__(self, sink: IO[str], separator: str | None) -> None:
        self._sink = sink
        self._separator = separator
        self._columns: list[str] = []

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes a row. Raises DataError when a table cannot hold it."""
        if self._separator is None:
            self._sink.write(json.dumps(dict(values), ensure_ascii=False, default=str) + "\n")
            return
        if not self._columns:
            self._columns = list(values)
            self._cells(self._columns)
        if values.keys() != set(self._columns):
            raise DataError("a row has other columns than the first", next="Name a .jsonl file")
        if other := [column for column, value in values.items() if not isinstance(value, str)]:
            raise DataError(f"a value of '{other[0]}' is no text", next="Name a .jsonl file")
        self._cells([values[column] for column in self._columns])

    def _cells(self, cells: Sequence[str]) -> None:
        # before Python 3.13 the library quotes a carriage return only where it ends lines
        writer = csv.writer(
            self._sink,
            delimiter=self._separator or ",",
            lineterminator="\n",
            quoting=csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL,
        )
        writer.writerow(cells)


def _log(sink: IO[str], lines: list[dict[str, Any]]) -> None:
    """Writes the lines down and forgets them."""
    for line in lines:
        sink.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    lines.clear()
