"""What the server bears: sizes, times and rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bytes, seconds and counts. A request beyond `rate` a second, once `burst` are used up, is answered with 429."""

    body: int = 1 << 20  # bytes
    body_seconds: float = 10.0  # for a whole body
    header_seconds: float = 10.0  # for a whole request line with its headers
    stall_seconds: float = 30.0  # for a client to take what is sent
    reply_seconds: float = 600.0
    waiting: int = 64  # requests before each model
    connections: int = 512
    rate: float = 50.0  # requests a second of one client: far more than two cores answer, far fewer than a flood
    burst: int = 200
    turns: int = 256  # of one conversation
    stops: int = 16  # texts in `stop`; OpenAI allows 4
    stop_letters: int = 128  # of each


class Rate:
    """A bucket for each client: `burst` tokens, refilled with `rate` a second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds."""
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._left: dict[str, tuple[float, float]] = {}

    def wait(self, client: str) -> float:
        """Takes a token; 0 where there was one, else the seconds until there is."""
        now = self._clock()
        left, since = self._left.get(client, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        if left < 1.0:
            self._left[client] = left, now
            return (1.0 - left) / self._rate
        self._left[client] = left - 1.0, now
        return 0.0
