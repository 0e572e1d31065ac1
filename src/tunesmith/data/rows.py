"""What a reader returns (a row, or the error of a row that cannot be read) and how it reads bytes."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
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


CHUNK = 1 << 18  # bytes read at once
DAMAGED = "tunesmith-damaged"  # replaces undecodable bytes with a lone surrogate, which no text contains
codecs.register_error(DAMAGED, lambda error: ("\udcff", error.end if isinstance(error, UnicodeDecodeError) else 0))

_BYTE_ORDER_MARKS = (  # in this order: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Python's codecs for other purposes
_NOT_FOR_FILES = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}


def codec_name(encoding: str) -> str:
    """Python's name of a text encoding. Raises DataError for an unknown one."""
    try:
        name = codecs.lookup(encoding).name
        "a".encode(name)
    except (LookupError, ValueError, UnicodeError):
        name = ""
    if not name or name.replace("-", "_") in _NOT_FOR_FILES:
        raise DataError("is not an encoding", where=repr(encoding), next="Write utf-8, windows-1252 or similar")
    return name


def bom_encoding(data: bytes) -> str | None:
    """The encoding given by the byte-order mark in `data`, if there is one."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)


def is_gzip(path: Path) -> bool:
    """Whether the file's name ends in .gz."""
    return path.suffix.lower() == ".gz"


def decompressed(path: Path) -> Iterator[bytes]:
    """The file's bytes in chunks, decompressed if its name ends in .gz."""
    with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def as_utf8(path: Path, encoding: str | None = None) -> Iterator[bytes]:
    """The file's text in chunks of UTF-8 without a byte-order mark.

    With `encoding` None the byte-order mark decides, else UTF-8. Bytes that cannot be decoded become bytes that are not
    UTF-8, in the same position. Raises DataError for an unknown encoding.
    """
    name = codec_name(encoding) if encoding is not None else None
    chunks = decompressed(path)
    first = next(chunks, b"")
    name = name or bom_encoding(first) or "utf-8"
    chunks = itertools.chain([first], chunks)
    return _plain(chunks) if name in ("utf-8", "utf-8-sig") else _recoded(chunks, name)


def _plain(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield next(chunks).removeprefix(codecs.BOM_UTF8)
    yield from chunks


def _recoded(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(name)(DAMAGED)
    started = False
    for chunk in itertools.chain(chunks, [b""]):
        text = decoder.decode(chunk, final=not chunk)
        if text and not started:
            text, started = text.removeprefix("\ufeff"), True
        yield text.encode("utf-8", "surrogatepass")


def split_lines(chunks: Iterator[bytes], *, carriage: bool = False) -> Iterator[bytes]:
    r"""Lines with their ends: \n, and with `carriage` also \r.

    A line longer than MAX_ROW bytes is cut to MAX_ROW + 1, without an end.
    """
    ends = (b"\n", b"\r") if carriage else b"\n"
    pending: list[bytes] = []
    size = 0
    for chunk in _whole_ends(chunks) if carriage else chunks:
        pieces = chunk.splitlines(keepends=True) if carriage else io.BytesIO(chunk).readlines()
        if pending and pieces:
            pending.append(pieces[0][: max(0, MAX_ROW + 1 - size)])
            size += len(pieces[0])
            if not pieces[0].endswith(ends):
                continue
            pieces[0] = b"".join(pending)
            pending, size = [], 0
        if pieces and len(pieces[-1]) <= MAX_ROW and not pieces[-1].endswith(ends):
            pending = [pieces.pop()]
            size = len(pending[0])
        yield from pieces
    if pending:
        yield b"".join(pending)


def _whole_ends(chunks: Iterator[bytes]) -> Iterator[bytes]:
    r"""The same bytes in chunks that do not end between \r and \n."""
    carry = b""
    for chunk in chunks:
        data = carry + chunk
        carry = b"\r" if data.endswith(b"\r") else b""
        yield data[: len(data) - len(carry)]
    yield carry
