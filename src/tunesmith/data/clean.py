"""Writes cleaned rows, and a diff that can undo the cleaning.

csv stays csv and tsv stays tsv; any other source becomes JSON lines with the same columns. The diff is JSON lines: one
for each row that was changed (its edits) or left out (its values and the reason), with the row's number in the source,
and a last line about the cleaned file.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.config.recipe import NamedSetting
from tunesmith.config.registry import resolve
from tunesmith.data.finding import RowDecisions
from tunesmith.data.repair_rows import RowRepair, changes_from_plain, changes_to_dicts, undo_row
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.sources import Source, read_all
from tunesmith.data.table import Table
from tunesmith.errors import DataError
from tunesmith.runs.run import atomic_text_file, hash_file

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class CleanedSource:
    """The cleaned file of one source, its diff, and the numbers of rows."""

    file: Path
    diff: Path
    kept: int
    changed: int
    left_out: int


def write_clean(
    rows: Table, sources: Sequence[Source], ledger: RowDecisions, format: NamedSetting, repair: RowRepair, out: Path
) -> list[CleanedSource]:
    """Writes the kept rows, repaired, into `out`; dropped and quarantined rows go only into the diff.

    `rows` are the sources' rows as they were checked. With a pseudonym map the diff contains no values, because they
    may be personal, and cannot be undone.
    """
    row_iterator = iter(rows)  # in the order of the sources; not looked up by origin, because a file may be named twice
    row = next(row_iterator, None)
    parse = resolve("tunesmith.data.formats", format.name)
    cleaned = []
    for source, stem in zip(sources, _stems(sources), strict=True):
        ending = source.kind if source.kind in SEPARATORS else ".jsonl"
        file, diff = out / f"{stem}.cleaned{ending}", out / f"{stem}.cleaned.diff.jsonl"
        with atomic_text_file(file) as sink, atomic_text_file(diff) as log:
            writer = _Writer(sink, SEPARATORS.get(ending))
            counts = {"kept": 0, "changed": 0, "left_out": 0}
            lines: list[dict[str, Any]] = []
            for number, item in enumerate(source.rows(), 1):
                decision, reason = "drop", "broken"
                if row is not None and row.origin == item.origin:
                    decision, reason = ledger.decision(row.id), ledger.reason(row.id)
                    row = next(row_iterator, None)
                if isinstance(item, BadRow) or decision in ("drop", "quarantine"):
                    counts["left_out"] += 1
                    values = {} if isinstance(item, BadRow) or repair.book else dict(item.values)
                    line = {
                        "row": number,
                        "where": str(item.origin),
                        "decision": decision,
                        "check": reason,
                        "values": values,
                    }
                    lines.append(line | ({"unreadable": item.error.what} if isinstance(item, BadRow) else {}))
                    continue
                repaired_values, changes = _repair(item, parse, format.options, repair)
                writer.write(repaired_values)
                counts["kept"] += 1
                if changes or repaired_values != item.values:
                    counts["changed"] += 1
                    lines.append({"row": number, "where": str(item.origin), "changes": [] if repair.book else changes})
                if len(lines) >= 1000:
                    _write_lines(log, lines)
            sink.flush()
            head = {"cleaned": file.name, "sha256": hash_file(Path(sink.name)), "of": source.name, **counts}
            _write_lines(log, [*lines, {"end": head | {"undoable": repair.book is None}}])
        cleaned.append(CleanedSource(file, diff, **counts))
    return cleaned


def _stems(sources: Sequence[Source]) -> list[str]:
    """A distinct file stem for each source: its own, with a number if an earlier source has the same."""
    stems: list[str] = []
    for source in sources:
        numbered = (f"{source.stem}-{number}" for number in itertools.count(2))
        stems.append(next(stem for stem in itertools.chain([source.stem], numbered) if stem not in stems))
    return stems


def undo_clean(diff: Path, out: Path) -> int:
    """Writes the rows as they were before cleaning to `out` and returns their number.

    Raises DataError if the diff cannot be read, the cleaned file has changed, personal data was replaced, or the rows
    cannot be written to this kind of file.
    """
    if out.suffix not in (*SEPARATORS, ".jsonl"):
        raise DataError(
            f"rows cannot be written to a '{out.suffix}' file", where=str(out), next="Name a .csv, .tsv or .jsonl file"
        )
    try:
        lines = [
            json.loads(line) for line in diff.read_text(encoding="utf-8", errors="surrogatepass").split("\n") if line
        ]
        summary = lines.pop()["end"]
        file, sha256, undoable = diff.with_name(summary["cleaned"]), summary["sha256"], summary["undoable"]
        total, by_number = summary["kept"] + summary["left_out"], {line["row"]: line for line in lines}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError("is not the diff of a cleaning", where=str(diff), next="Name a …cleaned.diff.jsonl") from error
    if not undoable:
        raise DataError(
            "cannot be undone: personal data was replaced, so the diff contains no values",
            where=str(diff),
            next="Use the source file, or restore the values with the pseudonym map",
        )
    if not file.is_file() or hash_file(file) != sha256:
        raise DataError(
            "the cleaned file is missing or was changed", where=str(file), next="Restore it as it was written"
        )
    with atomic_text_file(out) as sink:
        writer = _Writer(sink, SEPARATORS.get(out.suffix))
        count = 0
        for values in _original_rows(file, by_number, total):
            writer.write(values)
            count += 1
    return count


def _original_rows(file: Path, by_number: Mapping[int, Any], total: int) -> Iterator[Mapping[str, Any]]:
    """The rows of the source in their order, without those that could not be read."""
    cleaned = iter(read_all(file))
    for number in range(1, total + 1):
        line = by_number.get(number)
        if line and "decision" in line:
            if "unreadable" not in line:
                yield line["values"]
            continue
        row = next(cleaned)
        if isinstance(row, BadRow):
            raise AssertionError(f"a cleaned row cannot be read: {row.error}")
        yield undo_row(row.values, changes_from_plain(line["changes"])) if line else row.values


def _repair(
    row: Row, parse: Callable[..., Any], options: Mapping[str, Any], repair: RowRepair
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    turns, _ = parse(row.values, **options)
    repaired = repair.row(row.values, turns)
    return (
        (repaired.values, changes_to_dicts(repaired.changes))
        if repaired.changes or repaired.pseudonym_count
        else (row.values, [])
    )


class _Writer:
    """Writes rows as JSON lines or, with a separator, as a table with the columns of the first row."""

    def __init__(self, sink: IO[str], separator: str | None) -> None:
        self._sink = sink
        self._separator = separator
        self._columns: list[str] = []

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes a row. Raises DataError if a table cannot hold it."""
        if self._separator is None:
            self._sink.write(json.dumps(dict(values), ensure_ascii=False, default=str) + "\n")
            return
        if not self._columns:
            self._columns = list(values)
            self._cells(self._columns)
        if values.keys() != set(self._columns):
            raise DataError("a row has different columns than the first", next="Name a .jsonl file")
        if nontext_columns := [column for column, value in values.items() if not isinstance(value, str)]:
            raise DataError(f"a value of '{nontext_columns[0]}' is not text", next="Name a .jsonl file")
        self._cells([values[column] for column in self._columns])

    def _cells(self, cells: Sequence[str]) -> None:
        # before Python 3.13 csv quotes a carriage return only if it is the line terminator
        writer = csv.writer(
            self._sink,
            delimiter=self._separator or ",",
            lineterminator="\n",
            quoting=csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL,
        )
        writer.writerow(cells)


def _write_lines(sink: IO[str], lines: list[dict[str, Any]]) -> None:
    """Writes the lines and clears the list."""
    for line in lines:
        sink.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    lines.clear()
