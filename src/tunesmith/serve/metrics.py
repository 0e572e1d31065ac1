"""What the server counts, as Prometheus reads it. Labels hold names of models and routes, never what anybody wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.request_queue import Desk

KIND = "text/plain; version=0.0.4; charset=utf-8"
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
WHOLE = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)  # seconds
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})


class Metrics:
    """A registry of its own, so that two servers in one process do not meet."""

    def __init__(self, desks: Sequence[tuple[str, Desk]]) -> None:
        """Counts for each of the named desks from now on."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tunesmith_requests", "Requests, by route and status.", ["route", "method", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "tunesmith_request_seconds", "Seconds until a request was answered.", ["route"], buckets=WHOLE,
            registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter("tunesmith_tokens", "Tokens.", ["model", "kind"], registry=self.registry)
        self.first = Histogram(
            "tunesmith_first_token_seconds", "Seconds from a request's arrival to its first text, the wait included.",
            ["model"], buckets=FIRST, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Desks(desks))
        ProcessCollector(registry=self.registry)
        for name, desk in desks:
            desk.meter = Meter(self, name)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class Meter:
    """What one desk tells."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._first = metrics.first.labels(model)
        self._read, self._written = (metrics.tokens.labels(model, kind) for kind in ("prompt", "completion"))

    def began(self, seconds: float) -> None:
        """The first text came, so long after the request."""
        self._first.observe(seconds)

    def ended(self, prompt_tokens: int, tokens: int) -> None:
        """A reply ended, whole or not."""
        self._read.inc(prompt_tokens)
        self._written.inc(tokens)


class Metered:
    """Counts what `app` answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        status, began = 500, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = str(getattr(scope.get("route"), "path", "refused"))  # the pattern, not what was asked for
            method = scope.get("method", "")
            self._metrics.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)


class _Desks(Collector):
    """What the desks are like when somebody looks."""

    def __init__(self, desks: Sequence[tuple[str, Desk]]) -> None:
        self._desks = desks

    def collect(self) -> Iterable[Metric]:
        """A family for each property."""
        looks: dict[str, tuple[str, Callable[[Desk], int]]] = {
            "queue_length": ("Requests that wait.", lambda desk: desk.waiting),
            "busy_slots": ("Replies that are being written.", lambda desk: desk.busy),
            "slots": ("Replies that can be written at once.", lambda desk: desk.backend.slots),
            "child_memory_bytes": ("Memory of the runtime's process.", lambda desk: getattr(desk.backend, "memory", 0)),
        }
        for what, (about, look) in looks.items():
            gauge = GaugeMetricFamily(f"tunesmith_{what}", about, labels=["model"])
            for name, desk in self._desks:
                gauge.add_metric([name], look(desk))
            yield gauge
        restarts = CounterMetricFamily(
            "tunesmith_child_restarts", "How often the runtime's process was started again.", labels=["model"]
        )
        for name, desk in self._desks:
            restarts.add_metric([name], getattr(desk.backend, "restarts", 0))
        yield restarts
