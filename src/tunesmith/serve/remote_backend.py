"""Serves the model of another server, for more than one machine: vLLM, Ollama, llama.cpp or a vendor's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, ResourceError
from tunesmith.generation.from_server import AsyncServerModel, Overloaded, ReplyChunk
from tunesmith.generation.text_model import ReplyFilter
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.serve.backend import Finish, Sampling, State
from tunesmith.web.errors import BackendFailed, QueueFull, RequestRefused

SLOTS = 16  # requests at once, as a small vLLM server batches
# Markers between turns. A server that renders the template would read them in a message as its own.
TURN_MARKERS = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?s>")


class RemoteBackend:
    """A backend that forwards requests to another server."""

    context = None

    def __init__(self, name: str, server: AsyncServerModel, slots: int = SLOTS, stop: Sequence[str] = ()) -> None:
        """`stop` are stop strings of every reply, in addition to each request's own."""
        self.name, self.slots, self._server, self._stop = name, slots, server, tuple(stop)
        self.state: State = "ok"

    @contextlib.asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[_RemoteReply]:
        """Start a reply. Raises QueueFull if the other server is overloaded."""
        for index, turn in enumerate([] if isinstance(prompt, str) else prompt):
            if match := TURN_MARKERS.search(turn.text):
                message = f"message {index} contains {match[0]!r}, which the other server may read as the end of a turn"
                raise RequestRefused(f"{message}; remove it", param="messages", code="special_token")
        chunks = self._server.parts(
            prompt, max_new_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            seed=sampling.seed,
        )  # fmt: skip
        async with contextlib.aclosing(chunks):
            reply_format = ReplyFormat("", ()) if isinstance(prompt, str) else ReplyFormat()
            yield _RemoteReply(self, chunks, ReplyFilter(reply_format, (*self._stop, *sampling.stop)))

    def close(self) -> None:
        """Close the connections outside the event loop."""
        self._server.close()


class _RemoteReply:
    """A reply of the other server. If that reports no token counts, pieces are counted."""

    def __init__(
        self, backend: RemoteBackend, chunks: AsyncGenerator[ReplyChunk, None], reply_filter: ReplyFilter
    ) -> None:
        self._backend, self._chunks, self._filter = backend, chunks, reply_filter
        self.finish: Finish = "length"
        self.prompt_tokens = self.tokens = 0

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of the reply."""
        backend = self._backend
        try:
            async for chunk in self._chunks:
                backend.state = "ok"
                self._record(chunk)
                if visible := self._filter.feed(chunk.text):
                    yield visible
                if self._filter.hit:
                    self.finish = "stop"
                    return
        except Overloaded as error:
            raise QueueFull(error.seconds) from error
        except ResourceError as error:
            backend.state = "down"
            raise BackendFailed(str(error)) from error
        except ModelError as error:
            raise RequestRefused(str(error)) from error
        if remaining := self._filter.flush():
            yield remaining

    @property
    def reasoning(self) -> str:
        """The thought before the reply."""
        return self._filter.reasoning

    def _record(self, chunk: ReplyChunk) -> None:
        if chunk.finish is not None:
            self.finish = "length" if chunk.finish == "length" else "stop"
        if chunk.prompt_tokens is not None and chunk.completion_tokens is not None:
            self.prompt_tokens, self.tokens = chunk.prompt_tokens, chunk.completion_tokens
        elif chunk.text:
            self.tokens += 1
