"""Streamed replies: stop strings, incremental detokenization, and the part of the output that is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.generation.text_model import Reply
from tunesmith.prompt.reply import ReplyFormat, ReplyStream

REPLACEMENT_CHAR = "\ufffd"  # the text of an incomplete character


class StopStrings:
    """Passes streamed text on up to the first stop string, and holds back text that may be the beginning of one."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        """Empty strings are ignored."""
        self._stop_strings = tuple(text for text in stop_strings if text)
        self._pending, self.hit = "", False

    @property
    def idle(self) -> bool:
        """Whether there are no stop strings."""
        return not self._stop_strings

    def feed(self, piece: str) -> str:
        """Return the text that can be shown now; nothing once a stop string was `hit`."""
        if self.hit:
            return ""
        if not self._stop_strings:
            return piece
        text = self._pending + piece
        positions = [position for stop_string in self._stop_strings if (position := text.find(stop_string)) >= 0]
        if positions:
            self.hit, self._pending = True, ""
            return text[: min(positions)]
        safe = len(text) - self._partial_match(text)
        self._pending = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """Return the text that was held back, at the end of the output."""
        pending, self._pending = self._pending, ""
        return "" if self.hit else pending

    def _partial_match(self, text: str) -> int:
        return max(
            (
                length
                for stop_string in self._stop_strings
                for length in range(1, len(stop_string))
                if text.endswith(stop_string[:length])
            ),
            default=0,
        )


class IncrementalDetokenizer:
    """Decodes tokens one by one; text that ends inside a character is held back until the character is complete."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        """`decode` turns token ids into text."""
        self._decode, self._text, self._emitted = decode, "", 0
        self.ids: list[int] = []

    def feed(self, token: int) -> str:
        """Return the text that the token adds."""
        self.ids.append(token)
        self._text = self._decode(self.ids)
        return "" if self._text.endswith(REPLACEMENT_CHAR) else self.flush()

    def flush(self) -> str:
        """Return the text that was not returned yet."""
        new = self._text[self._emitted :]
        self._emitted += len(new)
        return new


class ReplyFilter:
    """Passes on the visible part of a model's output: after its thought and opening, and before a stop string."""

    def __init__(self, reply_format: ReplyFormat, stop_strings: Sequence[str]) -> None:
        """`reply_format` says how the output is divided into a thought and the reply."""
        self._stream, self._stop = ReplyStream(reply_format), StopStrings(stop_strings)

    @property
    def hit(self) -> bool:
        """Whether a stop string was reached."""
        return self._stop.hit

    @property
    def idle(self) -> bool:
        """Whether there are no stop strings."""
        return self._stop.idle

    @property
    def reasoning(self) -> str:
        """The thought as far as it was generated."""
        return self._stream.thought.strip()

    def feed(self, piece: str) -> str:
        """Return the text that can be shown now."""
        return self._stop.feed(self._stream.feed(piece))

    def flush(self) -> str:
        """Return the text that was held back, at the end of the output."""
        return self._stop.feed(self._stream.rest()) + self._stop.flush()


def build_reply(
    output: str, reply_format: ReplyFormat, stop_strings: Sequence[str], *, ended: bool, tokens: int
) -> Reply:
    """Build a reply from the whole output of `tokens` tokens; `ended` is true if a stop token ended it."""
    reasoning, text = reply_format.split(output)
    end = min((text.index(stop_string) for stop_string in stop_strings if stop_string in text), default=len(text))
    return Reply(text[:end].strip(), ended and end == len(text), tokens, text[end:], reasoning)
