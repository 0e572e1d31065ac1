"""The interface to the models that generate, and the admission queue in front of each."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Turn
from tunesmith.web.errors import QueueFull, ReplyTimeout

Finish = Literal["stop", "length"]
State = Literal["ok", "loading", "down"]


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. Temperature 0 takes the likeliest token; `seed` None draws a different reply each time.

    The temperature is applied first, then `top_p`. A reply ends before the first string in `stop`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class StreamedReply(Protocol):
    """One reply in progress: iterate over its pieces of at least one character. The counts are final after the last."""

    @property
    def finish(self) -> Finish:
        """`stop`: the model ended the reply, or a stop string was reached; `length`: the token limit was reached."""
        ...

    @property
    def reasoning(self) -> str:
        """The thought before the reply; '' if there is none."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens in the prompt."""
        ...

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        ...

    def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of the reply. Raises BackendFailed if the runtime fails, RequestRefused if it refuses."""
        ...


class Backend(Protocol):
    """A model that generates several replies at once."""

    @property
    def name(self) -> str:
        """The model's name in the API."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens for prompt and reply together; None if unknown."""
        ...

    @property
    def slots(self) -> int:
        """The number of replies that are generated at once."""
        ...

    @property
    def state(self) -> State:
        """Whether the model accepts requests now."""
        ...

    def writing(
        self, prompt: Sequence[Turn] | str, sampling: Sampling
    ) -> AbstractAsyncContextManager[StreamedReply, bool | None]:
        """Start the reply to a conversation, or the continuation of a text. Leaving the block ends generation.

        Raises RequestRefused for a prompt that does not fit or that the template refuses, BackendFailed if the runtime
        fails.
        """
        ...

    def close(self) -> None:
        """End the model; from any thread."""
        ...


MAX_RETRY_AFTER = 60  # seconds; a client gives up on longer waits
SMOOTHING = 0.2  # weight of the newest reply in the moving average of durations


class Meter(Protocol):
    """Records the replies of one queue."""

    def began(self, seconds: float) -> None:
        """Record the time from the request to the first text."""
        ...

    def ended(self, prompt_tokens: int, tokens: int) -> None:
        """Record the token counts of a reply that ended, complete or not."""
        ...


class RequestQueue:
    """Runs as many requests at once as the backend has slots; `waiting` more wait in the order of arrival.

    A reply may take `seconds`, not counting the wait. Used in one event loop.
    """

    def __init__(self, backend: Backend, waiting: int, *, seconds: float = 600.0) -> None:
        """Starts with an empty queue."""
        self.backend, self.max_waiting, self.seconds = backend, waiting, seconds
        self.meter: Meter | None = None
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._busy, self._mean_seconds = 0, 1.0

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return len(self._waiters)

    @property
    def busy(self) -> int:
        """The number of running requests."""
        return self._busy

    @asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[StreamedReply]:
        """Wait for a slot and start a reply. Raises QueueFull, ReplyTimeout, and the errors of the backend.

        A request that ends, fails or is canceled passes its slot to the next.
        """
        arrived = time.monotonic()
        async with self._slot():
            started = time.monotonic()
            try:
                async with asyncio.timeout(self.seconds) as limit, self.backend.writing(prompt, sampling) as reply:
                    try:
                        yield _TimedReply(reply, arrived, self.meter)
                    finally:
                        if self.meter:
                            self.meter.ended(reply.prompt_tokens, reply.tokens)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise ReplyTimeout(f"the reply was not complete within {self.seconds:g} s") from None
            finally:
                self._mean_seconds += SMOOTHING * (time.monotonic() - started - self._mean_seconds)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._busy >= self.backend.slots or self._waiters:
            await self._wait_for_slot()  # the request that ended has passed its slot on
        else:
            self._busy += 1
        try:
            yield
        finally:
            self._release_slot()

    async def _wait_for_slot(self) -> None:
        if len(self._waiters) >= self.max_waiting:
            raise QueueFull(self._retry_after())
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # canceled just after it got the slot
                self._release_slot()
            else:
                with suppress(ValueError):
                    self._waiters.remove(waiter)
            raise

    def _release_slot(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._busy -= 1

    def _retry_after(self) -> int:
        rounds = (len(self._waiters) + 1) / max(1, self.backend.slots)
        return max(1, min(MAX_RETRY_AFTER, math.ceil(rounds * self._mean_seconds)))


class _TimedReply:
    """A reply that records the time to its first text."""

    def __init__(self, reply: StreamedReply, arrived: float, meter: Meter | None) -> None:
        self._reply, self._arrived, self._meter = reply, arrived, meter

    @property
    def finish(self) -> Finish:
        """The finish reason."""
        return self._reply.finish

    @property
    def reasoning(self) -> str:
        """The thought before the reply."""
        return self._reply.reasoning

    @property
    def prompt_tokens(self) -> int:
        """Tokens in the prompt."""
        return self._reply.prompt_tokens

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return self._reply.tokens

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of the reply."""
        meter = self._meter
        async for piece in self._reply:
            if meter:
                meter.began(time.monotonic() - self._arrived)
                meter = None
            yield piece


@dataclass(frozen=True)
class ServedModel:
    """A model in the API under `name`; with a `recipe`, also in the recipe API."""

    name: str
    queue: RequestQueue
    recipe: Recipe | None = None
