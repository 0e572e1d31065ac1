"""A file's bytes as they are needed: unpacked, brought to UTF-8, cut into lines. Never the whole file."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.rows import LONGEST
from tunesmith.errors import DataError

CHUNK = 1 << 18  # bytes read at once
DAMAGED = "tunesmith-damaged"  # puts a lone surrogate, which no text holds, for what cannot be decoded
codecs.register_error(DAMAGED, lambda error: ("\udcff", error.end if isinstance(error, UnicodeDecodeError) else 0))

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NO_FILES = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}  # Python's, for other ends


def codec(encoding: str) -> str:
    """Python's name of an encoding. Raises DataError when there is no such encoding of text."""
    try:
        name = codecs.lookup(encoding).name
        "a".encode(name)
    except (LookupError, ValueError, UnicodeError):
        name = ""
    if not name or name.replace("-", "_") in _NO_FILES:
        raise DataError("no such encoding", where=repr(encoding), next="Write utf-8, windows-1252 or the like")
    return name


def mark_of(data: bytes) -> str | None:
    """The encoding that a text's first bytes mark, if they do."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def is_packed(path: Path) -> bool:
    """Whether the file's name ends in .gz."""
    return path.suffix.lower() == ".gz"


def unpacked(path: Path) -> Iterator[bytes]:
    """The file's bytes in chunks, unpacked if its name ends in .gz."""
    with gzip.open(path) if is_packed(path) else path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def as_utf8(path: Path, encoding: str | None = None) -> Iterator[bytes]:
    """The file's text in chunks of UTF-8 without a mark.

    `encoding` None: what the file's mark says, else UTF-8. What is no text in the encoding comes out as bytes that are
    no UTF-8, at its place. Raises DataError for an unknown encoding.
    """
    name = codec(encoding) if encoding is not None else None
    chunks = unpacked(path)
    first = next(chunks, b"")
    name = name or mark_of(first) or "utf-8"
    chunks = itertools.chain([first], chunks)
    return _plain(chunks) if name in ("utf-8", "utf-8-sig") else _recoded(chunks, name)


def _plain(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield next(chunks).removeprefix(codecs.BOM_UTF8)
    yield from chunks


def _recoded(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(name)(DAMAGED)
    begun = False
    for chunk in itertools.chain(chunks, [b""]):
        text = decoder.decode(chunk, final=not chunk)
        if text and not begun:
            text, begun = text.removeprefix("\ufeff"), True
        yield text.encode("utf-8", "surrogatepass")


def lines(chunks: Iterator[bytes], *, carriage: bool = False) -> Iterator[bytes]:
    r"""Lines with their ends: \n, and with `carriage` \r too.

    Of a line longer than LONGEST bytes come LONGEST + 1, without an end.
    """
    ends = (b"\n", b"\r") if carriage else b"\n"
    kept: list[bytes] = []
    size = 0
    for chunk in _whole_ends(chunks) if carriage else chunks:
        pieces = chunk.splitlines(keepends=True) if carriage else io.BytesIO(chunk).readlines()
        if kept and pieces:
            kept.append(pieces[0][: max(0, LONGEST + 1 - size)])
            size += len(pieces[0])
            if not pieces[0].endswith(ends):
                continue
            pieces[0] = b"".join(kept)
            kept, size = [], 0
        if pieces and len(pieces[-1]) <= LONGEST and not pieces[-1].endswith(ends):
            kept = [pieces.pop()]
            size = len(kept[0])
        yield from pieces
    if kept:
        yield b"".join(kept)


def _whole_ends(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes; no chunk but the last ends between the two halves of a line end."""
    held = b""
    for chunk in chunks:
        whole = held + chunk
        held = b"\r" if whole.endswith(b"\r") else b""
        yield whole[: len(whole) - len(held)]
    yield held
