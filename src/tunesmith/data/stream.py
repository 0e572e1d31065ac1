"""Streams a file's bytes: decompressed, converted to UTF-8, split into lines; never the whole file at once."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.rows import MAX_ROW
from tunesmith.errors import DataError

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
