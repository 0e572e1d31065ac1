"""Files in, rows out, each with its file and line. A reader is chosen by the file's ending, .gz or not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.columnar import arrow, parquet
from tunesmith.data.delimited import separated, separator_of
from tunesmith.data.encoding import Encoding, recognise
from tunesmith.data.json_rows import json_rows, jsonl
from tunesmith.data.rows import BadRow, Reader, Row
from tunesmith.data.stream import is_packed
from tunesmith.errors import DataError

__all__ = ["READERS", "BadRow", "Row", "SourceFacts", "describe", "locate", "read", "read_all"]

READERS: dict[str, Reader] = {
    ".csv": separated(","),
    ".tsv": separated("\t"),
    ".json": json_rows,
    ".jsonl": jsonl,
    ".parquet": parquet,
    ".arrow": arrow,
}
_USUAL = {".csv": ",", ".tsv": "\t"}
_BINARY = (".parquet", ".arrow")


@dataclass(frozen=True)
class SourceFacts:
    """What a file is, before its rows are read.

    `bytes`: as it lies on disk; `kind`: its ending without .gz; `encoding`: None for what is no text; `delimiter`:
    None unless a separated table, with `delimiter_why` when it is not what the ending says.
    """

    file: str
    bytes: int
    kind: str
    packed: bool
    encoding: Encoding | None
    delimiter: str | None = None
    delimiter_why: str = ""


def locate(source: str, folder: Path) -> list[Path]:
    """The files that `source` (a file, folder or glob relative to `folder`) names, sorted.

    Raises DataError when there is none, or a file's kind is unknown.
    """
    try:
        path = (folder / Path(source).expanduser()).resolve()
        files = _folder(path) if path.is_dir() else [path] if path.is_file() else _glob(path)
    except (ValueError, RuntimeError) as error:  # a zero byte, three stars, an unknown ~user
        raise DataError(f"is no path: {error}", where=repr(source), next="Check data.source") from error
    if not files:
        raise DataError(
            "no such file", where=str(path), next=f"data.source may be a file, folder or glob of {_kinds()}"
        )
    for file in files:
        if _ending(file) not in READERS:
            raise DataError(f"files ending in '{file.suffix}' cannot be read", where=str(file), next=f"Use {_kinds()}")
    return files


def _folder(folder: Path) -> list[Path]:
    """A folder's tables; of a folder that `datasets` saved, its Arrow files and not the JSON that describes them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and _ending(file) in READERS)
    saved = [file for file in files if file.suffix == ".arrow"]
    return saved or files


def _ending(path: Path) -> str:
    """The file's kind: its last ending that is not .gz, in small letters."""
    endings = [ending.lower() for ending in path.suffixes]
    return next((ending for ending in reversed(endings[-2:]) if ending != ".gz"), "")


def _glob(pattern: Path) -> list[Path]:
    """The files that fit; folders that exist are taken by their name, even if it holds a bracket."""
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    return sorted(file for file in folder.glob(str(pattern.relative_to(folder))) if file.is_file())


def read(path: Path) -> Iterator[Row]:
    """The rows of one file, up to the first that cannot be read. Raises DataError, naming its line."""
    for row in read_all(path):
        if isinstance(row, BadRow):
            raise row.error
        yield row


def read_all(path: Path, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of one file, and a BadRow for each that cannot be read; never the whole file in memory.

    `encoding` None: what the file's byte-order mark says, else UTF-8; nothing is guessed here, `describe` guesses and
    says why. Files of Parquet and Arrow have none. Raises DataError for what ends the file: a header or a packing that
    cannot be read, an unknown encoding. Two things end a file after a BadRow, because nothing behind them can be told
    apart: a quote or a bracket that is never closed.
    """
    with _said(path) as shown:
        yield from READERS[_ending(path)](path, shown, encoding)


def describe(path: Path, encoding: str | None = None) -> SourceFacts:
    """What one file is: size, kind, encoding (the one given, or recognised), delimiter. It is read once.

    Raises DataError when it cannot be read, or the encoding is unknown.
    """
    kind = _ending(path)
    with _said(path) as shown:
        size = path.stat().st_size
        if kind in _BINARY:
            return SourceFacts(shown, size, kind, is_packed(path), None)
        found = recognise(path, encoding)
        if kind not in _USUAL:
            return SourceFacts(shown, size, kind, is_packed(path), found)
        separator = separator_of(path, _USUAL[kind], found.name)
        return SourceFacts(shown, size, kind, is_packed(path), found, separator.character, separator.why)


@contextmanager
def _said(path: Path) -> Iterator[str]:
    """The file's name for messages. What the file system and the packing raise becomes a DataError."""
    shown = _shown(path)
    try:
        yield shown
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"is no whole .gz file: {error}", where=shown, next="Pack or fetch it again") from error
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", where=shown, next="Check the path and its rights"
        ) from error


def _kinds() -> str:
    return f"{', '.join(sorted(READERS))}, each also as .gz"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
