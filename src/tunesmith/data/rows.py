"""The results of a reader: a row as it is in the file, or the error of a row that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.data.conversation import Origin
from tunesmith.errors import DataError

CORRECT = "Correct it, or remove the row"
MAX_ROW = 1 << 26  # bytes of a line or characters of a row: 64 MiB; a longer one lacks a line end, quote or bracket


@dataclass(frozen=True)
class Row:
    """A row as it is in a file."""

    values: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read; later rows may be readable."""

    origin: Origin
    error: DataError


class Reader(Protocol):
    """Reads a file: its path, its name for messages, its encoding (None: by its byte-order mark, else UTF-8)."""

    def __call__(self, path: Path, name: str, encoding: str | None = None, /) -> Iterator[Row | BadRow]:
        """Yields the rows in order. Raises DataError if reading cannot continue; OSError and zlib.error pass."""


class _DuplicateKey(ValueError):
    """A JSON object has a key twice, of which a reader would keep only one value."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(f"the key '{next(name for name in names if names.count(name) > 1)}' stands twice")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def parse_json(text: str, where: str) -> Any:
    """Parses a JSON text. Raises DataError with its line or column."""
    try:
        return check_surrogates(DECODER.decode(text), text)
    except json.JSONDecodeError as error:
        location = f"{where} line {error.lineno}" if "\n" in text else f"{where} column {error.colno}"
        raise DataError(f"is not JSON: {error.msg}", where=location, next=CORRECT) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"is not JSON: {error}", where=where, next=CORRECT) from error


def check_surrogates(value: Any, text: str) -> Any:
    r"""Returns the value. Raises ValueError if its text has a lone surrogate such as \ud83d, which cannot be saved."""
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def require_object(value: Any, where: str) -> Mapping[str, Any]:
    """Returns the value. Raises DataError if it is not an object."""
    if not isinstance(value, dict):
        raise DataError(
            f"is a {type(value).__name__}, not an object", where=where, next='Write it as {"column": value}'
        )
    return value


def not_text_error(encoding: str | None, where: str) -> DataError:
    """The error for bytes that cannot be decoded."""
    advice = "Save the file as UTF-8" if encoding is None else "Set the file's actual encoding, or save it as UTF-8"
    return DataError(f"is not {encoding or 'UTF-8'} text", where=where, next=advice)


def too_long_error(where: str) -> DataError:
    """The error for a row that does not end."""
    return DataError(
        f"is longer than {MAX_ROW >> 20} MiB", where=where, next="Look for a missing line end, quote or bracket"
    )
