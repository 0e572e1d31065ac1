"""Letters decoded with the wrong encoding, and letters that were lost.

Why it hurts: the model learns to write the damage, and its tokenizer spends several tokens on each broken letter.

Example: "the cafÃ©â€™s menu" for "the café’s menu".

What to do: let it be repaired if the letters can be recovered; if they are lost, correct the row by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding, Proposal, defect_findings, make_defect

_PIECE = re.compile("[^\n\ufffd]+")  # ftfy 6.3.1 reads U+FFFD as the byte 1A


def detect(text: str) -> Iterator[Defect]:
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


SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields letters decoded with the wrong encoding, and lost letters."""
    yield from defect_findings("mojibake", rows, detect, do, prompts=True)
