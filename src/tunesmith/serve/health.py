"""Whether the server can be asked, and what it counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from pydantic import BaseModel

from tunesmith.serve.backend import State
from tunesmith.serve.metrics import KIND, Metrics

if TYPE_CHECKING:
    from tunesmith.serve.request_queue import Served

WORSE: list[State] = ["ok", "loading", "down"]


class Health(BaseModel):
    """`ok`: every model can be asked; `loading`: one is being started; `down`: one cannot be."""

    status: State
    version: str


def router(models: Sequence[Served], metrics: Metrics, version: str) -> APIRouter:
    """GET /health and GET /metrics."""
    made = APIRouter()

    @made.get("/health", response_model=Health)
    async def health() -> Health:
        """Whether the models can be asked. The one address that needs no token."""
        states = [each.desk.backend.state for each in models]
        return Health(status=max(states, key=WORSE.index, default="ok"), version=version)

    @made.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read() -> Response:
        """What was counted, in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": KIND})

    return made
