"""Serves a run's adapter on a GPU or CPU, one reply at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.generation.text_model import IncrementalDetokenizer, ReplyFilter
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.serve.backend import Finish, Sampling, State
from tunesmith.web.errors import BackendFailed, RequestRefused

if TYPE_CHECKING:
    from tunesmith.generation.from_weights import WeightsModel


class WeightsBackend:
    """A backend that runs every step of the model in one thread."""

    slots = 1

    def __init__(self, name: str, model: WeightsModel, context: int | None) -> None:
        """`context` is the length that the base was trained on, in tokens."""
        self.name, self.context, self._model = name, context, model
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")

    @property
    def state(self) -> State:
        """Always "ok": the model is in this process."""
        return "ok"

    @contextlib.asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[_WeightsReply]:
        """Start a reply, limited to the tokens that are left in the context."""
        loop = asyncio.get_running_loop()
        try:
            ids = await loop.run_in_executor(self._pool, self._model.encode, prompt)
        except ModelError as error:
            raise RequestRefused(str(error)) from error
        limit = min(sampling.max_tokens, (self.context or len(ids) + sampling.max_tokens) - len(ids))
        if limit < 1 or not ids:
            message = f"the prompt has {len(ids)} tokens, the context only {self.context}; shorten it"
            raise RequestRefused(message if ids else "the prompt is empty", code="context_length_exceeded")
        tokens = self._model.tokens(
            ids, max_new_tokens=limit, temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed
        )
        reply_format = ReplyFormat("", (), self._model.form.specials) if isinstance(prompt, str) else self._model.form
        reply_filter = ReplyFilter(reply_format, (*self._model.texts, *sampling.stop))
        yield _WeightsReply(self._model, tokens, len(ids), reply_filter, self._pool)

    def close(self) -> None:
        """End the thread after its current step."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class _WeightsReply:
    """A reply that the model in this process generates."""

    def __init__(
        self,
        model: WeightsModel,
        tokens: Iterator[int],
        prompt_tokens: int,
        reply_filter: ReplyFilter,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._model, self._tokens, self._filter, self._pool = model, tokens, reply_filter, pool
        self.finish: Finish = "length"
        self.prompt_tokens, self.tokens = prompt_tokens, 0

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces, one step of the model at a time, so that a canceled reply ends after its current step."""
        loop, detokenizer = asyncio.get_running_loop(), IncrementalDetokenizer(self._model.output)
        while (token := await loop.run_in_executor(self._pool, self._step)) is not None:
            if token in self._model.stops:
                self.finish = "stop"
                break
            new, self.tokens = detokenizer.feed(token), len(detokenizer.ids)
            if visible := self._filter.feed(new):
                yield visible
            if self._filter.hit:
                self.finish = "stop"
                return
        if visible := self._filter.feed(detokenizer.flush()) + self._filter.flush():
            yield visible
        if self._filter.hit:
            self.finish = "stop"

    @property
    def reasoning(self) -> str:
        """The thought before the reply."""
        return self._filter.reasoning

    def _step(self) -> int | None:
        try:
            return next(self._tokens, None)
        except RuntimeError as error:  # such as out of memory
            raise BackendFailed(f"the model failed ({type(error).__name__}); request fewer tokens") from error
