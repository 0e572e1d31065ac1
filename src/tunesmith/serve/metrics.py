"""Prometheus metrics and the health route. Labels contain names of models and routes, never text of requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.backend import RequestQueue, State

if TYPE_CHECKING:
    from tunesmith.serve.backend import ServedModel


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
REQUEST_BUCKETS = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)  # seconds
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})


class Metrics:
    """The metrics of one server, in a registry of its own so that two servers in one process do not collide."""

    def __init__(self, queues: Sequence[tuple[str, RequestQueue]]) -> None:
        """Registers the metrics and attaches a QueueMetrics to each of the named queues."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tunesmith_requests", "Requests by route, method and status.", ["route", "method", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "tunesmith_request_seconds", "Seconds until a request was answered.", ["route"], buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter("tunesmith_tokens", "Tokens.", ["model", "kind"], registry=self.registry)
        self.first = Histogram(
            "tunesmith_first_token_seconds", "Seconds from a request's arrival to its first text, including the wait.",
            ["model"], buckets=FIRST_TOKEN_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_QueueCollector(queues))
        ProcessCollector(registry=self.registry)
        for name, queue in queues:
            queue.meter = QueueMetrics(self, name)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class QueueMetrics:
    """Records the replies of one queue."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._first = metrics.first.labels(model)
        self._prompt_tokens, self._completion_tokens = (
            metrics.tokens.labels(model, kind) for kind in ("prompt", "completion")
        )

    def began(self, seconds: float) -> None:
        """Record the time from the request to the first text."""
        self._first.observe(seconds)

    def ended(self, prompt_tokens: int, tokens: int) -> None:
        """Record the token counts of a reply that ended, complete or not."""
        self._prompt_tokens.inc(prompt_tokens)
        self._completion_tokens.inc(tokens)


class MetricsMiddleware:
    """Middleware that counts requests and their duration."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        status, started = 500, time.perf_counter()

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            route = str(getattr(scope.get("route"), "path", "refused"))  # the pattern, not the path
            method = scope.get("method", "")
            self._metrics.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


class _QueueCollector(Collector):
    """Reads the state of the queues at each scrape."""

    def __init__(self, queues: Sequence[tuple[str, RequestQueue]]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        """Yield one metric family per property."""
        gauges: dict[str, tuple[str, Callable[[RequestQueue], int]]] = {
            "queue_length": ("Waiting requests.", lambda queue: queue.waiting),
            "busy_slots": ("Replies that are being generated.", lambda queue: queue.busy),
            "slots": ("Replies that can be generated at once.", lambda queue: queue.backend.slots),
            "child_memory_bytes": (
                "Memory of the runtime process.",
                lambda queue: getattr(queue.backend, "memory", 0),
            ),
        }
        for metric, (help_text, read_value) in gauges.items():
            gauge = GaugeMetricFamily(f"tunesmith_{metric}", help_text, labels=["model"])
            for name, queue in self._queues:
                gauge.add_metric([name], read_value(queue))
            yield gauge
        restarts = CounterMetricFamily("tunesmith_child_restarts", "Restarts of the runtime process.", labels=["model"])
        for name, queue in self._queues:
            restarts.add_metric([name], getattr(queue.backend, "restarts", 0))
        yield restarts


STATES: list[State] = ["ok", "loading", "down"]


class Health(BaseModel):
    """`ok`: all models accept requests; `loading`: a model is being started; `down`: a model cannot be started."""

    status: State
    version: str


def health_router(models: Sequence[ServedModel], metrics: Metrics, version: str) -> APIRouter:
    """Routes: GET /health and GET /metrics."""
    router = APIRouter()

    @router.get("/health", response_model=Health)
    async def health() -> Health:
        """Return whether the models accept requests. Needs no token."""
        states = [model.queue.backend.state for model in models]
        return Health(status=max(states, key=STATES.index, default="ok"), version=version)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return router
