"""Serves a GGUF file with llama.cpp in a separate process, several replies at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import h11

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.generation.llama_process import CONNECTION_ERRORS, LlamaProcess
from tunesmith.generation.llama_task import sampling_options as drawn
from tunesmith.generation.model_process import PROBE, ProcessEnded
from tunesmith.generation.text_model import ReplyFilter
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.serve.backend import Finish, Sampling, State
from tunesmith.web.errors import BackendFailed, RequestRefused


class GgufBackend:
    """A backend whose process is restarted at once when it ends; requests wait until the restart is complete."""

    def __init__(self, name: str, model: GgufModel) -> None:
        """`model` is closed with this backend."""
        self.name, self._model = name, model
        self._pool = ThreadPoolExecutor(model.slots, thread_name_prefix="gguf")
        self._child = model.running()
        model.encode(PROBE)  # caches the patterns of turn markers, which takes some tenths of a second
        self._restarting: Future[LlamaProcess] | None = None
        self.restarts = 0

    @property
    def context(self) -> int | None:
        """Tokens for prompt and reply together."""
        return self._model.context

    @property
    def slots(self) -> int:
        """The number of replies that llama.cpp generates at once."""
        return self._model.slots

    @property
    def memory(self) -> int:
        """Memory of the process in bytes."""
        return self._child.memory

    @property
    def state(self) -> State:
        """Whether the process accepts requests; restarts a process that has ended."""
        if self._model.alive:
            return "ok"
        if self._restarting is not None and self._restarting.done() and self._restarting.exception() is not None:
            self._restart()
            return "down"
        self._restart()
        return "loading"

    @contextlib.asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[_GgufReply]:
        """Start a reply, limited to the tokens that are left in the context."""
        child, ids = await self._encode_off_loop(prompt)
        limit = min(sampling.max_tokens, self._model.context - len(ids))
        if limit < 1:
            message = f"the prompt has {len(ids)} tokens, the context only {self._model.context}; shorten it"
            raise RequestRefused(message, code="context_length_exceeded")
        options = drawn(sampling.temperature, sampling.top_p, sampling.seed)
        body = {**options, "prompt": ids, "n_predict": limit, "cache_prompt": True}
        reply_format = ReplyFormat("", (), self._model.form.specials) if isinstance(prompt, str) else self._model.form
        reply_filter = ReplyFilter(reply_format, (*self._model.texts, *sampling.stop))
        async with contextlib.aclosing(stream_completion(child, body)) as stream:
            yield _GgufReply(stream, len(ids), self._model.stops, reply_filter, self._runtime_error)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._model.close()

    async def _encode_off_loop(self, prompt: Sequence[Turn] | str) -> tuple[LlamaProcess, list[int]]:
        """Return the process and the prompt's tokens from a thread: a restart takes seconds, a long prompt 10 ms."""

        def ready() -> tuple[LlamaProcess, list[int]]:
            child = self._model.running()
            return child, self._model.encode(prompt)

        try:
            child, ids = await asyncio.get_running_loop().run_in_executor(self._pool, ready)
        except ModelError as error:
            raise self._runtime_error(error) from error
        self._note_process(child)
        return child, ids

    def _runtime_error(self, error: ModelError) -> Exception:
        """Return BackendFailed and restart the process if it ended; otherwise return RequestRefused.

        Another request may have restarted the process since, so the error itself counts too.
        """
        if self._model.alive and not isinstance(error, ProcessEnded):
            return RequestRefused(str(error))
        self._restart()
        return BackendFailed(error.what + ". Try again: it is being restarted")

    def _restart(self) -> None:
        if self._restarting is None or self._restarting.done():
            with contextlib.suppress(RuntimeError):  # the pool is closed
                self._restarting = self._pool.submit(self._model.running)
                self._restarting.add_done_callback(self._count_revival)

    def _count_revival(self, future: Future[LlamaProcess]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._note_process(future.result())

    def _note_process(self, child: LlamaProcess) -> None:
        if child is not self._child:
            self._child = child
            self.restarts += 1


class _GgufReply:
    """A reply that llama.cpp generates."""

    def __init__(
        self,
        stream: AsyncIterator[list[dict[str, Any]]],
        prompt_tokens: int,
        stops: frozenset[int],
        reply_filter: ReplyFilter,
        broken: object,
    ) -> None:
        self._stream, self._stops, self._filter, self._runtime_error = stream, stops, reply_filter, broken
        self.finish: Finish = "length"
        self.prompt_tokens, self.tokens = prompt_tokens, 0

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of the reply."""
        try:
            async with contextlib.aclosing(self._texts()) as texts:  # type: ignore[type-var]
                async for text in texts:
                    if visible := self._filter.feed(text):
                        yield visible
                    if self._filter.hit:
                        self.finish = "stop"
                        return
        except ModelError as error:
            raise self._runtime_error(error) from error  # type: ignore[operator]
        if remaining := self._filter.flush():
            yield remaining

    @property
    def reasoning(self) -> str:
        """The thought before the reply."""
        return self._filter.reasoning

    async def _texts(self) -> AsyncIterator[str]:
        async for pieces in self._stream:
            text, ended = "", False
            for piece in pieces:
                stop_token = not self._stops.isdisjoint(piece["tokens"])
                ended = stop_token or (piece["stop"] and piece["stop_type"] == "eos")
                self.tokens = int(piece["tokens_predicted"]) - ended
                if stop_token:
                    break
                text += piece["content"]
                if text and not self._filter.idle:  # so that tokens after a stop string are not counted
                    yield text
                    text = ""
            if text:
                yield text
            if ended:
                self.finish = "stop"
                return


async def stream_completion(child: LlamaProcess, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]]]:
    """Yield the pieces of one answer, as JSON objects of the server; pieces that arrive together are yielded together.

    Each request has its own connection. Closing the generator closes the connection; the server notices and frees the
    slot. Raises ModelError if the process refuses the request, ends or hangs.
    """
    http, writer, status, received, complete = h11.Connection(h11.CLIENT), None, 0, b"", False
    try:
        reader, writer = await _connect(child.address)
        content = json.dumps({**body, "stream": True}).encode()
        headers = {**child.headers, "Host": "localhost", "Connection": "close", "Content-Length": str(len(content))}
        request = h11.Request(method="POST", target="/completion", headers=list(headers.items()))
        parts = (request, h11.Data(content), h11.EndOfMessage())
        writer.write(b"".join(http.send(part) or b"" for part in parts))
        while True:
            async with asyncio.timeout(child.patience):
                http.receive_data(await reader.read(1 << 16))
            for event in iter(http.next_event, h11.NEED_DATA):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    received += event.data
                elif complete := isinstance(event, h11.EndOfMessage):
                    break
            if status == 200:
                *lines, received = received.split(b"\n")
                pieces = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
                for index, piece in enumerate(pieces):
                    if "error" in piece:
                        raise child.refusal(piece)
                    if piece["stop"]:
                        yield pieces[: index + 1]
                        return
                if pieces:
                    yield pieces
            if complete:
                raise child.refusal(json.loads(received)) if status != 200 else ConnectionError("no last piece")
    except (*CONNECTION_ERRORS, h11.ProtocolError) as error:
        fault = error  # a hanging process takes seconds to be killed
        raise await asyncio.to_thread(child.connection_error, fault) from None
    finally:
        if writer is not None:
            writer.transport.abort()


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(address)
    if parts.scheme == "unix":
        return await asyncio.open_unix_connection(parts.path)
    return await asyncio.open_connection(parts.hostname, parts.port)
