"""One reply on its way through llama.cpp: its text as it grows, and how it ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from tunesmith.generation.llama_process import Stream
from tunesmith.generation.stop_strings import ReplyFilter, reply_of
from tunesmith.generation.text_model import Reply
from tunesmith.prompt.reply import ReplyFormat

GREEDY: dict[str, Any] = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "mirostat": 0}
SEEDS = (1 << 32) - 1  # llama.cpp takes the largest number of 32 bits for a wish to draw anew


def sampling(temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> dict[str, Any]:
    """What llama.cpp is told of how to draw, whatever the file's own metadata wish for; temperature 0 is GREEDY.

    First the temperature, then `top_p` of what it makes, as OpenAI's models and transformers have it. `seed` None draws
    anew each time.
    """
    if temperature <= 0.0:
        return GREEDY
    chosen = {"temperature": temperature, "top_p": top_p, "samplers": ["temperature", "top_p"], "mirostat": 0}
    return {**chosen, "dynatemp_range": 0.0, "min_keep": 0, "seed": SEEDS if seed is None else seed % SEEDS}


class Clock:
    """Counts tokens, and the seconds in which somebody writes."""

    def __init__(self) -> None:
        self._lock, self._writers, self._since = threading.Lock(), 0, 0.0
        self._seconds, self._tokens = 0.0, 0

    @contextlib.contextmanager
    def running(self, task: Task) -> Iterator[None]:
        """While `task` writes."""
        with self._lock:
            self._since = self._since if self._writers else time.perf_counter()
            self._writers += 1
        try:
            yield
        finally:
            with self._lock:
                self._writers -= 1
                self._tokens += task.tokens
                if not self._writers:
                    self._seconds += time.perf_counter() - self._since

    def read(self) -> tuple[int, float]:
        """Tokens of ended replies, seconds up to when the last writer ended."""
        return self._tokens, self._seconds


class Task:
    """One reply. `stops` are tokens and `cuts` texts that end it, besides the tokens that end it for the file."""

    def __init__(
        self,
        start: Callable[[dict[str, Any]], Stream],
        ids: list[int],
        limit: int,
        *,
        stops: frozenset[int],
        cuts: Sequence[str],
        clock: Clock,
        reuse: bool,
        form: ReplyFormat,
        draw: Mapping[str, Any] = GREEDY,
    ) -> None:
        """`start` asks for a completion; `reuse` lets llama.cpp use what it knows of an earlier prompt.

        `draw` is what `sampling` says, `form` divides the output into a thought and the reply.
        """
        self._form = form
        self._start, self._limit, self._stops, self._cuts, self._clock = start, limit, stops, cuts, clock
        self._body = {**draw, "prompt": ids, "n_predict": limit, "cache_prompt": reuse}
        self.text, self.tokens, self.ended = "", 0, False
        self._stream: Stream | None = None
        self._stopped = False

    def whole(self) -> Reply:
        """Writes it to its end."""
        for _ in self.texts():
            pass
        return reply_of(self.text, self._form, self._cuts, ended=self.ended, tokens=self.tokens)

    def pieces(self) -> Iterator[str]:
        """The reply as it comes, blanks kept, nothing told that may be the beginning of a text that ends it."""
        reply, seen = ReplyFilter(self._form, self._cuts), 0
        with contextlib.closing(self.texts()) as texts:
            for text in texts:
                if shown := reply.feed(text[seen:]):
                    yield shown
                seen = len(text)
        if shown := reply.feed(self.text[seen:]) + reply.rest():
            yield shown

    def texts(self) -> Generator[str]:
        """All that is written, longer from piece to piece, until it ends or a text that ends it appears."""
        if self._limit < 1 or self._stopped:
            return
        self._stream = self._start(self._body)
        if self._stopped:  # meanwhile
            return
        with self._clock.running(self):
            try:
                for piece in self._stream:
                    self._take(piece)
                    if self.ended or self._cut() < len(self.text):
                        return
                    yield self.text
            finally:
                self._stream.stop()

    def stop(self) -> None:
        """From any thread: what is under way ends."""
        self._stopped = True
        if self._stream is not None:
            self._stream.stop()

    def _take(self, piece: dict[str, Any]) -> None:
        known = not self._stops.isdisjoint(piece["tokens"])
        self.ended = known or (piece["stop"] and piece["stop_type"] == "eos")
        self.tokens = int(piece["tokens_predicted"]) - self.ended
        self.text += "" if known else piece["content"]  # a token that ends replies is no part of them

    def _cut(self) -> int:
        return min((self.text.index(each) for each in self._cuts if each in self.text), default=len(self.text))
