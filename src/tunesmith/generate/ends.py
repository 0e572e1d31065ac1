"""Texts that end a reply, looked for in what comes piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class Ends:
    """Lets a reply through up to the first of `texts`; nothing is told that may be the beginning of one."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Empty texts end nothing."""
        self._texts = tuple(text for text in texts if text)
        self._held, self.hit = "", False

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._texts

    def feed(self, piece: str) -> str:
        """What can be told now. Once a text has been `hit`, nothing more is."""
        if self.hit:
            return ""
        if not self._texts:
            return piece
        text = self._held + piece
        found = [place for each in self._texts if (place := text.find(each)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)]
        safe = len(text) - self._begun(text)
        self._held = text[safe:]
        return text[:safe]

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return "" if self.hit else held

    def _begun(self, text: str) -> int:
        return max((n for each in self._texts for n in range(1, len(each)) if text.endswith(each[:n])), default=0)
