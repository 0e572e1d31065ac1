"""What a reader gives: a row as it stands in a file, or the reason why one cannot be had."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.data.conversation import Origin
from tunesmith.errors import DataError

MEND = "Mend it, or remove the row"
LONGEST = 1 << 26  # bytes of a line or characters of a row: 64 MiB; more is a missing line end, quote or bracket


@dataclass(frozen=True)
class Row:
    """A row as it stands in a file."""

    values: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read; those behind it may be."""

    origin: Origin
    error: DataError


class Reader(Protocol):
    """What READERS holds: a path, its name in messages, the text's encoding (None: by its mark, else UTF-8)."""

    def __call__(self, path: Path, shown: str, encoding: str | None = None, /) -> Iterator[Row | BadRow]:
        """The rows, in order. Raises DataError for what ends the file, OSError and zlib.error as they come."""


class _Twice(ValueError):
    """An object names a key twice, and a reader would keep one value only."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"the key '{next(name for name in names if names.count(name) > 1)}' stands twice")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def load(text: str, where: str) -> Any:
    """The JSON value of a text. Raises DataError at its line or column."""
    try:
        return check_halves(DECODER.decode(text), text)
    except json.JSONDecodeError as error:
        place = f"{where} line {error.lineno}" if "\n" in text else f"{where} column {error.colno}"
        raise DataError(f"is not JSON: {error.msg}", where=place, next=MEND) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"is not JSON: {error}", where=where, next=MEND) from error


def check_halves(value: Any, text: str) -> Any:
    r"""The value again. Raises ValueError when its text holds \ud83d without its other half, which cannot be saved."""
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """The value, which must be an object with columns. Raises DataError."""
    if not isinstance(value, dict):
        raise DataError(
            f"is a {type(value).__name__}, not an object", where=where, next='Write it as {"column": value}'
        )
    return value


def not_text(encoding: str | None, where: str) -> DataError:
    """The error for bytes that are no text in the encoding."""
    advice = "Save the file as UTF-8" if encoding is None else "Name the file's own encoding, or save it as UTF-8"
    return DataError(f"is not {encoding or 'UTF-8'} text", where=where, next=advice)


def too_long(where: str) -> DataError:
    """The error for a row without an end."""
    return DataError(
        f"is longer than {LONGEST >> 20} MiB", where=where, next="Look for a missing line end, quote or bracket"
    )
