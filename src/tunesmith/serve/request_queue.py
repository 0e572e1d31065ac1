"""Who is written for now, who waits, and who is sent away: one desk before each model."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Turn
from tunesmith.serve.backend import Backend, Finish, Sampling, Writing
from tunesmith.web.errors import Busy, TooLong

LONGEST_WAIT = 60  # seconds in Retry-After at most: a client that is told more gives up
FORGET = 0.2  # how much the newest reply counts in the mean of how long one takes


class Meter(Protocol):
    """Who counts."""

    def began(self, seconds: float) -> None:
        """The first text came, so long after the request."""
        ...

    def ended(self, prompt_tokens: int, tokens: int) -> None:
        """A reply ended, whole or not."""
        ...


class Desk:
    """Admits as many at once as the backend writes for; `waiting` more wait, in the order in which they came.

    A reply, its wait apart, may take `seconds`. Everything happens in one event loop.
    """

    def __init__(self, backend: Backend, waiting: int, *, seconds: float = 600.0) -> None:
        """Admits nobody yet."""
        self.backend, self.room, self.seconds = backend, waiting, seconds
        self.meter: Meter | None = None
        self._line: deque[asyncio.Future[None]] = deque()
        self._busy, self._mean = 0, 1.0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    @property
    def busy(self) -> int:
        """How many are written for."""
        return self._busy

    @asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[Writing]:
        """See Backend; raises Busy, and TooLong for a reply that takes too long.

        Whoever leaves, by an error or cancelled, gives the place to the next.
        """
        came = time.monotonic()
        async with self._place():
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.seconds) as limit, self.backend.writing(prompt, sampling) as writing:
                    try:
                        yield _Counted(writing, came, self.meter)
                    finally:
                        if self.meter:
                            self.meter.ended(writing.prompt_tokens, writing.tokens)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise TooLong(f"the reply was not done within {self.seconds:g} s") from None
            finally:
                self._mean += FORGET * (time.monotonic() - began - self._mean)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._busy >= self.backend.slots or self._line:
            await self._wait()  # whoever leaves has kept the place for this one
        else:
            self._busy += 1
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self) -> None:
        if len(self._line) >= self.room:
            raise Busy(self._retry_after())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # called, and gone at the same moment
                self._pass_on()
            else:
                with suppress(ValueError):
                    self._line.remove(turn)
            raise

    def _pass_on(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1

    def _retry_after(self) -> int:
        rounds = (len(self._line) + 1) / max(1, self.backend.slots)
        return max(1, min(LONGEST_WAIT, math.ceil(rounds * self._mean)))


class _Counted:
    """A reply whose first text is timed."""

    def __init__(self, writing: Writing, came: float, meter: Meter | None) -> None:
        self._writing, self._came, self._meter = writing, came, meter

    @property
    def finish(self) -> Finish:
        """See Writing."""
        return self._writing.finish

    @property
    def reasoning(self) -> str:
        """See Writing."""
        return self._writing.reasoning

    @property
    def prompt_tokens(self) -> int:
        """See Writing."""
        return self._writing.prompt_tokens

    @property
    def tokens(self) -> int:
        """See Writing."""
        return self._writing.tokens

    async def __aiter__(self) -> AsyncIterator[str]:
        """See Writing."""
        meter = self._meter
        async for piece in self._writing:
            if meter:
                meter.began(time.monotonic() - self._came)
                meter = None
            yield piece


@dataclass(frozen=True)
class Served:
    """A model that clients may ask by `name`; with a `recipe`, also by its fields."""

    name: str
    desk: Desk
    recipe: Recipe | None = None
