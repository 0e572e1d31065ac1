"""A run's adapter behind the server, on a GPU or the processor: one reply at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.generation.stop_strings import Growing, ReplyFilter
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.serve.backend import Finish, Sampling, State
from tunesmith.web.errors import Broken, Refused

if TYPE_CHECKING:
    from tunesmith.generation.from_weights import FromWeights


class WeightsBackend:
    """See Backend. Every step of the model is made in one thread of its own."""

    slots = 1

    def __init__(self, name: str, model: FromWeights, context: int | None) -> None:
        """`context` is what the base was trained on, in tokens."""
        self.name, self.context, self._model = name, context, model
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")

    @property
    def state(self) -> State:
        """The model lies in this process."""
        return "ok"

    @contextlib.asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[_Writing]:
        """See Backend. A reply has no more tokens than the context has room for."""
        loop = asyncio.get_running_loop()
        try:
            ids = await loop.run_in_executor(self._pool, self._model.encode, prompt)
        except ModelError as error:
            raise Refused(str(error)) from error
        limit = min(sampling.max_tokens, (self.context or len(ids) + sampling.max_tokens) - len(ids))
        if limit < 1 or not ids:
            what = f"the prompt has {len(ids)} tokens, and the context {self.context}; shorten it"
            raise Refused(what if ids else "the prompt is empty", code="context_length_exceeded")
        tokens = self._model.tokens(
            ids, max_new_tokens=limit, temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed
        )
        form = ReplyFormat("", (), self._model.form.specials) if isinstance(prompt, str) else self._model.form
        reply = ReplyFilter(form, (*self._model.texts, *sampling.stop))
        yield _Writing(self._model, tokens, len(ids), reply, self._pool)

    def close(self) -> None:
        """Ends the thread behind the step it is at."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Writing:
    """See Writing."""

    def __init__(
        self, model: FromWeights, tokens: Iterator[int], read: int, reply: ReplyFilter, pool: ThreadPoolExecutor
    ) -> None:
        self._model, self._tokens, self._reply, self._pool = model, tokens, reply, pool
        self.finish: Finish = "length"
        self.prompt_tokens, self.tokens = read, 0

    async def __aiter__(self) -> AsyncIterator[str]:
        """The pieces: one step of the model at a time, so that leaving ends it behind the step it is at."""
        loop, text = asyncio.get_running_loop(), Growing(self._model.output)
        while (token := await loop.run_in_executor(self._pool, self._step)) is not None:
            if token in self._model.stops:
                self.finish = "stop"
                break
            new, self.tokens = text.feed(token), len(text.ids)
            if shown := self._reply.feed(new):
                yield shown
            if self._reply.hit:
                self.finish = "stop"
                return
        if shown := self._reply.feed(text.rest()) + self._reply.rest():
            yield shown
        if self._reply.hit:
            self.finish = "stop"

    @property
    def reasoning(self) -> str:
        """See Writing."""
        return self._reply.reasoning

    def _step(self) -> int | None:
        try:
            return next(self._tokens, None)
        except RuntimeError as error:  # a device's memory is full, for one
            raise Broken(f"the model failed ({type(error).__name__}); ask for less") from error
