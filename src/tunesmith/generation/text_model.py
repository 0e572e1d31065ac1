"""The interface that everything which generates replies implements, and what all of them share.

Stop strings end a reply and are not part of it. Special tokens in a user's text are encoded as plain text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.conversation import Turn
from tunesmith.prompt.reply import ReplyFormat, ReplyStream
from tunesmith.prompt.template import Template


@dataclass(frozen=True)
class Reply:
    """The reply of a model, with the reason why it ended and its token count.

    `stopped` is true if the model ended the reply itself. `tokens` counts the generated tokens. `cut` is the output
    from the stop string on, which is not part of `text`. `reasoning` is the thought before the reply.
    """

    text: str
    stopped: bool
    tokens: int
    cut: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class RuntimeStats:
    """Resources that a runtime uses, and its throughput.

    Seconds to load, bytes on disk and in memory, and the context of each slot in tokens. `tokens` were generated within
    `seconds` of the time in which at least one reply was in progress, reading the prompts included.
    """

    load_seconds: float
    file_bytes: int
    memory_bytes: int
    slots: int
    context: int
    threads: int
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second; 0 before the first reply."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TokenScore:
    """The score of a given token: its negative log-probability in nats.

    `top` holds the likeliest token ids at its position with their log-probabilities.
    """

    token: int
    nats: float
    top: tuple[tuple[int, float], ...]


class TextModel(Protocol):
    """A model that replies to conversations."""

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the reply to each prompt with its index in `prompts`, in any order, decoded greedily."""
        ...

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """Yield the reply to one prompt in pieces, as it is generated."""
        ...


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


MIN_MARKER_LENGTH = 4  # characters of a template's line that count as a marker


class Tokenize(Protocol):
    """Encodes a text in which special tokens are recognized; `start` is true at the beginning of the prompt."""

    def __call__(self, text: str, *, start: bool) -> list[int]:
        """Return the token ids."""
        ...


def match_any(words: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the words, the longest first; it matches nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(set(words), key=len, reverse=True))) or r"(?!)")


def turn_markers(specials: re.Pattern[str], render: Callable[[Sequence[Turn]], str]) -> re.Pattern[str]:
    """Return a pattern that matches special tokens and the lines that the template writes around the messages.

    Those lines separate turns in templates without special tokens (### Response:).
    """
    contents = [secrets.token_hex(8) for _ in range(3)]
    turns = (Turn("user", contents[0]), Turn("assistant", contents[1]), Turn("user", contents[2]))
    parts = re.split("|".join(contents), render(turns))[1:]  # text before the first message may be a system message
    lines = {line.strip() for part in parts for line in part.split("\n")}
    template_lines = match_any([line for line in lines if len(line) >= MIN_MARKER_LENGTH])
    return re.compile(f"(?:{template_lines.pattern})|(?:{specials.pattern})")


def bos_ids(template: Template | None) -> list[int]:
    """Return the start token for a raw text; none without a template, because llama.cpp adds its own."""
    return [template.tokenizer.bos_token_id] if template is not None and template.starts_with_bos else []


def encode_untrusted(
    turns: Sequence[Turn], *, render: Callable[[Sequence[Turn]], str], tokenize: Tokenize, markers: re.Pattern[str]
) -> list[int]:
    """Encode a conversation up to where the assistant begins; `markers` in a message become plain characters."""
    replaced: list[str] = []
    nonce = secrets.token_hex(12)

    def hide(match: re.Match[str]) -> str:
        replaced.append(match[0])
        return f"x{nonce}n{len(replaced) - 1}x"

    masked = [Turn(turn.role, markers.sub(hide, turn.text)) for turn in turns]
    rendered = render(masked)
    if not replaced:
        return tokenize(rendered, start=True)
    ids: list[int] = []
    for index, part in enumerate(re.split(f"x{nonce}n([0-9]+)x", rendered)):
        if index % 2:
            marker = replaced[int(part)]
            halves = (marker[:1], marker[1:])  # in two halves it is not a special token
            ids += [token for half in halves for token in tokenize(half, start=False)]
        else:
            ids += tokenize(part, start=index == 0)
    return ids
