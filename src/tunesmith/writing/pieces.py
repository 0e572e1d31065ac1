"""Splits streamed text into words and whitespace, independent of how the stream is cut into pieces."""

from __future__ import annotations

MAX_WORD = 64  # characters: languages without spaces, URLs and loops must not wait forever
_OPENERS = "<["  # first characters of control tokens
_MAX_CONTROL_TOKEN = 40  # characters


class WordSplitter:
    """Splits text into words and single whitespace characters, as soon as each is complete."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, piece: str) -> list[str]:
        """Return the words and whitespace completed by this piece."""
        text, start, atoms = self._pending + piece, 0, list[str]()
        for index in range(len(self._pending), len(text)):
            if text[index].isspace():
                if start < index:
                    atoms.append(text[start:index])
                atoms.append(text[index])
                start = index + 1
            elif index + 1 - start >= MAX_WORD:
                cut = _cut_position(text, start, index + 1)
                atoms.append(text[start:cut])
                start = cut
        self._pending = text[start:]
        return atoms

    def flush(self) -> list[str]:
        """Return what is left."""
        pending, self._pending = self._pending, ""
        return [pending] if pending else []


def _cut_position(text: str, start: int, end: int) -> int:
    """Return where to cut a long word: not inside what may be a control token."""
    token_start = max(text.rfind(mark, max(start + 1, end - _MAX_CONTROL_TOKEN), end) for mark in _OPENERS)
    return token_start if token_start > start else end
