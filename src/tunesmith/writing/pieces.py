"""Text in pieces of any size in, atoms out: the same ones however the text was cut, so all that follows is the same."""

from __future__ import annotations

LONGEST = 64  # characters of a word: languages without spaces, addresses and loops must not wait for ever
_OPENERS = "<["  # how a control token begins
_MARK = 40  # characters that one has at most


class Atoms:
    """Cuts a text into words and single blanks, as soon as each is complete."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, piece: str) -> list[str]:
        """The atoms that are complete with this piece."""
        text, start, found = self._rest + piece, 0, list[str]()
        for place in range(len(self._rest), len(text)):
            if text[place].isspace():
                if start < place:
                    found.append(text[start:place])
                found.append(text[place])
                start = place + 1
            elif place + 1 - start >= LONGEST:
                cut = _cut(text, start, place + 1)
                found.append(text[start:cut])
                start = cut
        self._rest = text[start:]
        return found

    def end(self) -> list[str]:
        """What is left."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []


def _cut(text: str, start: int, end: int) -> int:
    """Where a long word is cut: not inside what may be a control token."""
    begun = max(text.rfind(mark, max(start + 1, end - _MARK), end) for mark in _OPENERS)
    return begun if begun > start else end
