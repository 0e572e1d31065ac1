"""The server's limits: sizes, times and request rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server; beyond `rate` requests per second, after a burst of `burst`, a client gets status 429."""

    body: int = 1 << 20  # bytes
    body_seconds: float = 10.0  # for a whole body
    header_seconds: float = 10.0  # for a whole request line with its headers
    stall_seconds: float = 30.0  # for a client to read what was sent
    reply_seconds: float = 600.0
    waiting: int = 64  # requests per model
    connections: int = 512
    rate: float = 50.0  # requests per second and client: more than two cores can answer, fewer than a flood
    burst: int = 200
    turns: int = 256  # messages of a conversation
    stops: int = 16  # strings in `stop`; OpenAI allows 4
    stop_letters: int = 128  # characters of each


class RateLimiter:
    """A token bucket per client: `burst` tokens, refilled with `rate` per second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, client: str) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        current = self._clock()
        tokens, updated = self._buckets.get(client, (self._burst, current))
        tokens = min(self._burst, tokens + (current - updated) * self._rate)
        if tokens < 1.0:
            self._buckets[client] = tokens, current
            return (1.0 - tokens) / self._rate
        self._buckets[client] = tokens - 1.0, current
        return 0.0
