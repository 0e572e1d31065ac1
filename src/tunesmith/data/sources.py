"""Files in, rows out, each with its file and line. A reader is chosen by the file's ending, .gz or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Origin
from tunesmith.errors import DataError

csv.field_size_limit(1 << 27)  # the library's 128 KiB cuts long documents


@dataclass(frozen=True)
class Row:
    """A row as it stands in a file."""

    values: Mapping[str, Any]
    origin: Origin


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
    """The rows of one file. Raises DataError, naming the line, for what cannot be read."""
    shown = _shown(path)
    try:
        yield from READERS[_ending(path)](path, shown)
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


def _bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        return file.read()


def _text(path: Path, shown: str) -> str:
    data = _bytes(path)
    try:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")  # what spreadsheets call Unicode text
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError("is not UTF-8 text", where=f"{shown} line {line}", next="Save the file as UTF-8") from error


def _separated(delimiter: str) -> Callable[[Path, str], Iterator[Row]]:
    def read_separated(path: Path, shown: str) -> Iterator[Row]:
        reader = csv.reader(io.StringIO(_text(path, shown), newline=""), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        line = 1
        try:
            for cells in reader:
                start, line = line, reader.line_num + 1
                if header is None:
                    header = [cell.strip() for cell in cells]
                    _check_header(header, shown)
                elif cells and len(cells) != len(header):
                    raise DataError(
                        f"has {len(cells)} cells where the header has {len(header)}",
                        where=f"{shown} line {start}",
                        next="Put text that contains the separator into double quotes",
                    )
                elif cells:
                    yield Row(dict(zip(header, cells, strict=True)), Origin(shown, start))
        except csv.Error as error:
            raise DataError(
                f"is not well formed: {error}", where=f"{shown} line {line}", next="Mend the quotes"
            ) from error

    return read_separated


def _check_header(header: list[str], shown: str) -> None:
    twice = {name for name in header if header.count(name) > 1}
    if twice or not any(header):
        what = f"names the column '{sorted(twice)[0]}' twice" if twice else "has no header"
        raise DataError(what, where=f"{shown} line 1", next="The first line must name each column once")


def _jsonl(path: Path, shown: str) -> Iterator[Row]:
    for number, line in enumerate(_text(path, shown).split("\n"), start=1):
        if line.strip():
            origin = Origin(shown, number)
            yield Row(_mapping(_load(line, str(origin)), str(origin)), origin)


def _json(path: Path, shown: str) -> Iterator[Row]:
    value = _load(_text(path, shown), shown)
    if isinstance(value, dict):  # {"data": [...]}: the one list in it is the table
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError("holds no list of rows", where=shown, next="Write it as a list of objects, or as .jsonl")
    for number, item in enumerate(value, start=1):
        origin = Origin(shown, number, "row")
        yield Row(_mapping(item, str(origin)), origin)


def _parquet(path: Path, shown: str) -> Iterator[Row]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        number = 0
        source = io.BytesIO(_bytes(path)) if path.suffix.lower() == ".gz" else path
        for batch in parquet.ParquetFile(source).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(values, Origin(shown, number, "row"))
    except (arrow.ArrowException, ValueError) as error:  # ValueError: text that is not UTF-8, dates out of range
        raise DataError(f"is no parquet file: {error}", where=shown, next="Write it again") from error


def _arrow(path: Path, shown: str) -> Iterator[Row]:
    """An Arrow file or stream, mapped into memory when it is not packed."""
    import pyarrow as arrow

    try:
        packed = path.suffix.lower() == ".gz"
        with arrow.BufferReader(_bytes(path)) if packed else arrow.memory_map(str(path)) as source:
            number = 0
            for batch in _record_batches(source):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, Origin(shown, number, "row"))
    except (arrow.ArrowException, ValueError) as error:
        raise DataError(f"is no Arrow file: {error}", where=shown, next="Write it again") from error


def _record_batches(source: Any) -> Iterator[Any]:
    import pyarrow as arrow

    try:
        yield from arrow.ipc.open_stream(source)
    except arrow.ArrowInvalid:  # the file format has its index at the end
        source.seek(0)
        opened = arrow.ipc.open_file(source)
        for index in range(opened.num_record_batches):
            yield opened.get_batch(index)


def _load(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # \ud83d without its other half is no text and cannot be saved
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        place = f"{where} line {error.lineno}" if "\n" in text else f"{where} column {error.colno}"
        raise DataError(f"is not JSON: {error.msg}", where=place, next="Mend it, or remove the row") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"is not JSON: {error}", where=where, next="Mend it, or remove the row") from error


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"is a {type(value).__name__}, not an object", where=where, next='Write it as {"column": value}'
        )
    return value


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
