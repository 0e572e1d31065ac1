"""Letters read in the wrong encoding."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.defects._defect import Defect, at

_PIECE = re.compile("[^\n\ufffd]+")  # ftfy 6.3.1 reads U+FFFD as the byte 1A: it must not see one


def mojibake(text: str) -> Iterator[Defect]:
    """Letters read in the wrong encoding ('cafÃ©'), as ftfy finds them line by line, and lost letters ('�').

    Only the encoding: quotes, widths, ligatures, entities and normal forms stay, and nothing is replaced by '�'.
    """
    if text.isascii():
        return
    for piece in _PIECE.finditer(text):
        if (fixed := _decode(piece[0])) != piece[0]:
            head = _shared(piece[0], fixed)
            tail = _shared(piece[0][head:][::-1], fixed[head:][::-1])
            place = piece.start() + head, piece.end() - tail
            why = "letters read in the wrong encoding"
            yield at("mojibake", text, *place, why, "error", fixed[head : len(fixed) - tail])
    for lost in re.finditer("\ufffd+", text):
        yield at("mojibake", text, *lost.span(), "a letter was lost", "error")


def _decode(line: str) -> str:
    if line.isascii():
        return line
    import ftfy  # here: many data sets are ASCII and need none

    return ftfy.fix_encoding(line, replace_lossy_sequences=False)


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
