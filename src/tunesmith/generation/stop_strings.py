"""A reply that comes piece by piece: texts that end it, and tokens that are only parts of characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.generation.text_model import Reply
from tunesmith.prompt.reply import ReplyFormat, ReplyStream

REPLACED = "\ufffd"  # what a part of a character is decoded to


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


class Growing:
    """The text of tokens that come one by one; what ends in a part of a character waits for its rest."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        """`decode` makes text of tokens."""
        self._decode, self._text, self._told = decode, "", 0
        self.ids: list[int] = []

    def feed(self, token: int) -> str:
        """The text that it adds."""
        self.ids.append(token)
        self._text = self._decode(self.ids)
        return "" if self._text.endswith(REPLACED) else self.rest()

    def rest(self) -> str:
        """What was not told yet."""
        new = self._text[self._told :]
        self._told += len(new)
        return new


class ReplyFilter:
    """The part of a model's output that is shown: behind its thought and its opening, before a stop string."""

    def __init__(self, form: ReplyFormat, stop_strings: Sequence[str]) -> None:
        """`form` divides the output; `stop_strings` end the reply."""
        self._reply, self._ends = ReplyStream(form), Ends(stop_strings)

    @property
    def hit(self) -> bool:
        """Whether a stop string was met."""
        return self._ends.hit

    @property
    def idle(self) -> bool:
        """Whether no stop string is looked for."""
        return self._ends.idle

    @property
    def reasoning(self) -> str:
        """The thought as far as it was written."""
        return self._reply.thought.strip()

    def feed(self, piece: str) -> str:
        """What can be shown now."""
        return self._ends.feed(self._reply.feed(piece))

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        return self._ends.feed(self._reply.rest()) + self._ends.rest()


def reply_of(output: str, form: ReplyFormat, stop_strings: Sequence[str], *, ended: bool, tokens: int) -> Reply:
    """A whole output of so many `tokens` as a reply; `ended` says that a token ended it."""
    reasoning, text = form.split(output)
    at = min((text.index(each) for each in stop_strings if each in text), default=len(text))
    return Reply(text[:at].strip(), ended and at == len(text), tokens, text[at:], reasoning)
