"""Letters decoded with the wrong encoding."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.defects._defect import Defect, make_defect

_PIECE = re.compile("[^\n\ufffd]+")  # ftfy 6.3.1 reads U+FFFD as the byte 1A


def mojibake(text: str) -> Iterator[Defect]:
    """Yields letters decoded with the wrong encoding ('cafÃ©'), as ftfy finds them by line, and lost letters ('�').

    Only the encoding is fixed: quotes, widths, ligatures, entities and normal forms stay, and '�' is never inserted.
    """
    if text.isascii():
        return
    for piece in _PIECE.finditer(text):
        if (fixed := _decode(piece[0])) != piece[0]:
            head = _common_prefix(piece[0], fixed)
            tail = _common_prefix(piece[0][head:][::-1], fixed[head:][::-1])
            bounds = piece.start() + head, piece.end() - tail
            message = "letters decoded with the wrong encoding"
            yield make_defect("mojibake", text, *bounds, message, "error", fixed[head : len(fixed) - tail])
    for match in re.finditer("\ufffd+", text):
        yield make_defect("mojibake", text, *match.span(), "a letter was lost", "error")


def _decode(line: str) -> str:
    if line.isascii():
        return line
    import ftfy  # imported here: ASCII data does not need it

    return ftfy.fix_encoding(line, replace_lossy_sequences=False)


def _common_prefix(first: str, second: str) -> int:
    """The length of the common prefix."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
