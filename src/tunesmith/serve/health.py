"""Health and metrics of the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from pydantic import BaseModel

from tunesmith.serve.backend import State
from tunesmith.serve.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from tunesmith.serve.request_queue import ServedModel

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
