"""Locates and reads files of rows; the file suffix selects the reader, with or without .gz."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.columnar import arrow, parquet
from tunesmith.data.delimited import delimited_reader, detect_separator
from tunesmith.data.encoding import Encoding, detect_encoding
from tunesmith.data.json_rows import json_rows, jsonl
from tunesmith.data.rows import BadRow, Reader, Row
from tunesmith.data.stream import is_gzip
from tunesmith.errors import DataError

__all__ = ["READERS", "BadRow", "Row", "SourceFacts", "describe", "locate", "read", "read_all"]

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
