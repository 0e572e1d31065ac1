"""Opens the sources of a recipe, files, folders and Hub data sets, and reads them row by row.

The file suffix selects the reader, with or without .gz. Of a folder, the tables of one kind are read; other files are
reported in a note.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.columnar import arrow, parquet
from tunesmith.data.delimited import delimited_reader, detect_separator
from tunesmith.data.encoding import Encoding, detect_encoding
from tunesmith.data.formats import detect_row_format
from tunesmith.data.hub import fingerprint, parse_hub_source, read_hub
from tunesmith.data.json_rows import NO_LIST, json_rows, jsonl
from tunesmith.data.rows import BadRow, Reader, Row, as_utf8, is_gzip
from tunesmith.errors import DataError
from tunesmith.runs.run import hash_file

READERS: dict[str, Reader] = {
    ".csv": delimited_reader(","),
    ".tsv": delimited_reader("\t"),
    ".json": json_rows,
    ".jsonl": jsonl,
    ".parquet": parquet,
    ".arrow": arrow,
}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BINARY = (".parquet", ".arrow")


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a file before its rows are read.

    `bytes` is its size on disk, `kind` its suffix without .gz, `encoding` None for binary files. `delimiter` is None
    unless the file is a separated table; `delimiter_why` says why it differs from the suffix's.
    """

    file: str
    bytes: int
    kind: str
    packed: bool
    encoding: Encoding | None
    delimiter: str | None = None
    delimiter_why: str = ""


def locate(source: str, folder: Path) -> list[Path]:
    """The sorted files that `source`, a file, folder or glob relative to `folder`, names.

    Raises DataError if there is none or a suffix is unknown.
    """
    try:
        path = (folder / Path(source).expanduser()).resolve()
        files = _folder(path) if path.is_dir() else [path] if path.is_file() else _glob(path)
    except (ValueError, RuntimeError) as error:  # a NUL byte, three stars, an unknown ~user
        raise DataError(f"is not a path: {error}", where=repr(source), next="Check data.source") from error
    if not files:
        raise DataError(
            "no such file", where=str(path), next=f"Set data.source to a file, folder or glob of {_kinds()}"
        )
    for file in files:
        if _suffix(file) not in READERS:
            raise DataError(f"'{file.suffix}' files cannot be read", where=str(file), next=f"Use {_kinds()}")
    return files


def _folder(folder: Path) -> list[Path]:
    """The tables of a folder; if `datasets` saved it, its Arrow files without the JSON files about them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and _suffix(file) in READERS)
    arrow_files = [file for file in files if file.suffix == ".arrow"]
    return arrow_files or files


def _suffix(path: Path) -> str:
    """The last suffix that is not .gz, in lower case."""
    endings = [ending.lower() for ending in path.suffixes]
    return next((ending for ending in reversed(endings[-2:]) if ending != ".gz"), "")


def _glob(pattern: Path) -> list[Path]:
    """The files that match; existing parent folders are taken literally, even with brackets in their names."""
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    return sorted(file for file in folder.glob(str(pattern.relative_to(folder))) if file.is_file())


def read(path: Path) -> Iterator[Row]:
    """Yields the rows of one file. Raises DataError with the line of the first that cannot be read."""
    for row in read_all(path):
        if isinstance(row, BadRow):
            raise row.error
        yield row


def read_all(path: Path, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """Yields the rows of one file, and a BadRow for each that cannot be read, without loading the whole file.

    With `encoding` None the byte-order mark decides, else UTF-8; only `describe` guesses. Parquet and Arrow files have
    no encoding. Raises DataError if reading cannot continue: a broken header or gzip stream, or an unknown encoding. A
    quote or bracket that is never closed ends the file after a BadRow, because later rows cannot be separated.
    """
    with _as_data_error(path) as name:
        yield from READERS[_suffix(path)](path, name, encoding)


def describe(path: Path, encoding: str | None = None) -> SourceFacts:
    """Detects size, kind, encoding (unless given) and delimiter of one file, which is read once.

    Raises DataError if the file cannot be read or the encoding is unknown.
    """
    kind = _suffix(path)
    with _as_data_error(path) as path_name:
        size = path.stat().st_size
        if kind in _BINARY:
            return SourceFacts(path_name, size, kind, is_gzip(path), None)
        detected = detect_encoding(path, encoding)
        if kind not in _SEPARATORS:
            return SourceFacts(path_name, size, kind, is_gzip(path), detected)
        separator = detect_separator(path, _SEPARATORS[kind], detected.name)
        return SourceFacts(path_name, size, kind, is_gzip(path), detected, separator.character, separator.why)


@contextmanager
def _as_data_error(path: Path) -> Iterator[str]:
    """Gives the file's name for messages and turns errors of the file system and of gzip into DataError."""
    name = _display_path(path)
    try:
        yield name
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        advice = "Compress or download it again"
        raise DataError(f"is not a complete .gz file: {error}", where=name, next=advice) from error
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", where=name, next="Check the path and its permissions"
        ) from error


def _kinds() -> str:
    return f"{', '.join(sorted(READERS))}, each also as .gz"


def _display_path(path: Path) -> str:
    current = Path.cwd()
    return str(path.relative_to(current)) if path.is_relative_to(current) else str(path)


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


@dataclass(frozen=True)
class Source:
    """One source: its display name, its file (None for a Hub data set), its encoding, and notes."""

    name: str
    file: Path | None
    encoding: str | None = None
    kind: str = ""
    size: int = 0
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row | BadRow]:
        """Yields the rows, and a BadRow for each that cannot be read. Raises DataError if reading cannot continue."""
        return read_hub(self.name) if self.file is None else read_all(self.file, self.encoding)

    def fingerprint(self) -> str:
        """A hash of the content."""
        return fingerprint(self.name) if self.file is None else hash_file(self.file)

    def facts(self) -> dict[str, Any]:
        """Facts about the source as plain values."""
        return {"file": self.name, "bytes": self.size, "encoding": self.encoding or "", "notes": list(self.notes)}

    @property
    def stem(self) -> str:
        """The stem for names of derived files."""
        if self.file is None:
            return parse_hub_source(self.name).owner_name.replace("/", "_")
        return self.file.name.removesuffix(".gz").removesuffix(self.kind)


def open_sources(names: str | Sequence[str], folder: Path, encoding: str | None = None) -> list[Source]:
    """Opens what data.source names, relative to `folder`; `encoding` overrides detection.

    Raises DataError if there is no source or one cannot be read.
    """
    opened: list[Source] = []
    for source in [names] if isinstance(names, str) else names:
        if source.startswith("hub:"):
            parse_hub_source(source)
            opened.append(Source(source, None, kind=".jsonl"))
        else:
            files, note = select_tables(source, folder)
            opened_files = [_open_file(path, encoding) for path in files]
            opened += (
                [replace(opened_files[0], notes=(*opened_files[0].notes, note)), *opened_files[1:]]
                if note
                else opened_files
            )
    return opened


def _open_file(path: Path, encoding: str | None) -> Source:
    facts = describe(path, encoding)
    detected = facts.encoding
    notes = [detected.why if detected else "", facts.delimiter_why]
    return Source(
        facts.file,
        path,
        detected.name if detected else None,
        facts.kind,
        facts.bytes,
        tuple(note for note in notes if note),
    )
