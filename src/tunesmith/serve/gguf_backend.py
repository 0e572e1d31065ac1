"""A GGUF file behind the server: llama.cpp in a process of its own, several replies at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.generation.from_gguf import FromGguf
from tunesmith.generation.llama_async import AsyncStream
from tunesmith.generation.llama_process import Child
from tunesmith.generation.llama_task import sampling as drawn
from tunesmith.generation.stop_strings import ReplyFilter
from tunesmith.generation.subprocess_model import PROBE
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.serve.backend import Finish, Sampling, State
from tunesmith.web.errors import Broken, Refused


class GgufBackend:
    """See Backend. The process is started again when it ends, at once; requests wait until it is there."""

    def __init__(self, name: str, model: FromGguf) -> None:
        """`model` is closed with this."""
        self.name, self._model = name, model
        self._pool = ThreadPoolExecutor(model.slots, thread_name_prefix="gguf")
        self._child = model.running()
        model.encode(PROBE)  # what separates turns is looked up once, in some tenths of a second
        self._revival: Future[Child] | None = None
        self.restarts = 0

    @property
    def context(self) -> int | None:
        """Tokens for prompt and reply together."""
        return self._model.context

    @property
    def slots(self) -> int:
        """How many replies llama.cpp writes at once."""
        return self._model.slots

    @property
    def memory(self) -> int:
        """Bytes of the process."""
        return self._child.memory

    @property
    def state(self) -> State:
        """A process that ended is started again by whoever sees it."""
        if self._model.alive:
            return "ok"
        if self._revival is not None and self._revival.done() and self._revival.exception() is not None:
            self._revive()
            return "down"
        self._revive()
        return "loading"

    @contextlib.asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[_Writing]:
        """See Backend. A reply has no more tokens than the context has room for."""
        child, ids = await self._off_loop(prompt)
        limit = min(sampling.max_tokens, self._model.context - len(ids))
        if limit < 1:
            what = f"the prompt has {len(ids)} tokens, and the context {self._model.context}; shorten it"
            raise Refused(what, code="context_length_exceeded")
        draw = drawn(sampling.temperature, sampling.top_p, sampling.seed)
        body = {**draw, "prompt": ids, "n_predict": limit, "cache_prompt": True}
        stream = AsyncStream(child, "/completion", body)
        form = ReplyFormat("", (), self._model.form.specials) if isinstance(prompt, str) else self._model.form
        reply = ReplyFilter(form, (*self._model.texts, *sampling.stop))
        try:
            yield _Writing(stream, len(ids), self._model.stops, reply, self._broken)
        finally:
            stream.close()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._model.close()

    async def _off_loop(self, prompt: Sequence[Turn] | str) -> tuple[Child, list[int]]:
        """The process, and the prompt's tokens: a restart takes seconds, a long prompt some hundredths."""

        def ready() -> tuple[Child, list[int]]:
            child = self._model.running()
            return child, self._model.encode(prompt)

        try:
            child, ids = await asyncio.get_running_loop().run_in_executor(self._pool, ready)
        except ModelError as error:
            if self._model.alive:
                raise Refused(str(error), param=None) from error
            raise self._broken(error) from error
        self._count(child)
        return child, ids

    def _broken(self, error: ModelError) -> Exception:
        """The runtime refuses, or is at its end and is started again."""
        if self._model.alive:
            return Refused(str(error))
        self._revive()
        return Broken(error.what + ". Ask again: it is being started anew")

    def _revive(self) -> None:
        if self._revival is None or self._revival.done():
            with contextlib.suppress(RuntimeError):  # closed
                self._revival = self._pool.submit(self._model.running)
                self._revival.add_done_callback(self._revived)

    def _revived(self, done: Future[Child]) -> None:
        if not done.cancelled() and done.exception() is None:
            self._count(done.result())

    def _count(self, child: Child) -> None:
        if child is not self._child:
            self._child = child
            self.restarts += 1


class _Writing:
    """See Writing."""

    def __init__(
        self, stream: AsyncStream, read: int, stops: frozenset[int], reply: ReplyFilter, broken: object
    ) -> None:
        self._stream, self._stops, self._reply, self._broken = stream, stops, reply, broken
        self.finish: Finish = "length"
        self.prompt_tokens, self.tokens = read, 0

    async def __aiter__(self) -> AsyncIterator[str]:
        """The pieces."""
        try:
            async with contextlib.aclosing(self._texts()) as texts:  # type: ignore[type-var]
                async for text in texts:
                    if shown := self._reply.feed(text):
                        yield shown
                    if self._reply.hit:
                        self.finish = "stop"
                        return
        except ModelError as error:
            raise self._broken(error) from error  # type: ignore[operator]
        if rest := self._reply.rest():
            yield rest

    @property
    def reasoning(self) -> str:
        """See Writing."""
        return self._reply.reasoning

    async def _texts(self) -> AsyncIterator[str]:
        async for pieces in self._stream:
            text, ended = "", False
            for piece in pieces:
                known = not self._stops.isdisjoint(piece["tokens"])
                ended = known or (piece["stop"] and piece["stop_type"] == "eos")
                self.tokens = int(piece["tokens_predicted"]) - ended
                if known:
                    break
                text += piece["content"]
                if text and not self._reply.idle:  # so that tokens behind a text that ends it are not counted
                    yield text
                    text = ""
            if text:
                yield text
            if ended:
                self.finish = "stop"
                return
