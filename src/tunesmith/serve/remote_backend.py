"""Another server behind this one, for those who outgrow one machine: vLLM, Ollama, llama.cpp, a vendor's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, ResourceError
from tunesmith.generation.from_server_async import FromServerAsync, Overloaded, Part
from tunesmith.generation.stop_strings import ReplyFilter
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.serve.backend import Finish, Sampling, State
from tunesmith.web.errors import Broken, Busy, Refused

SLOTS = 16  # requests at once: as many as a small vLLM batches
# What templates separate turns with. A server that renders them reads these words in a message as its own.
FORGED = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?s>")


class RemoteBackend:
    """See Backend."""

    context = None

    def __init__(self, name: str, server: FromServerAsync, slots: int = SLOTS, stop: Sequence[str] = ()) -> None:
        """`stop` are texts that end every reply, besides each request's own."""
        self.name, self.slots, self._server, self._stop = name, slots, server, tuple(stop)
        self.state: State = "ok"

    @contextlib.asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[_Writing]:
        """See Backend. Raises Busy when the other server says so."""
        for place, turn in enumerate([] if isinstance(prompt, str) else prompt):
            if found := FORGED.search(turn.text):
                what = f"message {place} holds {found[0]!r}, which the other server reads as the end of a turn"
                raise Refused(f"{what}; leave it out", param="messages", code="special_token")
        parts = self._server.parts(
            prompt, max_new_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            seed=sampling.seed,
        )  # fmt: skip
        async with contextlib.aclosing(parts):
            form = ReplyFormat("", ()) if isinstance(prompt, str) else ReplyFormat()
            yield _Writing(self, parts, ReplyFilter(form, (*self._stop, *sampling.stop)))

    def close(self) -> None:
        """Ends the connections that no event loop holds."""
        self._server.close()


class _Writing:
    """See Writing. Where the other server is silent about tokens, pieces are counted."""

    def __init__(self, backend: RemoteBackend, parts: AsyncGenerator[Part, None], reply: ReplyFilter) -> None:
        self._backend, self._parts, self._reply = backend, parts, reply
        self.finish: Finish = "length"
        self.prompt_tokens = self.tokens = 0

    async def __aiter__(self) -> AsyncIterator[str]:
        """The pieces."""
        backend = self._backend
        try:
            async for part in self._parts:
                backend.state = "ok"
                self._note(part)
                if shown := self._reply.feed(part.text):
                    yield shown
                if self._reply.hit:
                    self.finish = "stop"
                    return
        except Overloaded as error:
            raise Busy(error.seconds) from error
        except ResourceError as error:
            backend.state = "down"
            raise Broken(str(error)) from error
        except ModelError as error:
            raise Refused(str(error)) from error
        if rest := self._reply.rest():
            yield rest

    @property
    def reasoning(self) -> str:
        """See Writing."""
        return self._reply.reasoning

    def _note(self, part: Part) -> None:
        if part.finish is not None:
            self.finish = "length" if part.finish == "length" else "stop"
        if part.read is not None and part.written is not None:
            self.prompt_tokens, self.tokens = part.read, part.written
        elif part.text:
            self.tokens += 1
