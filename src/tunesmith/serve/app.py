"""The server's application: models behind desks, and the ways to ask them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from tunesmith.serve import docs_page, health, openai_api, recipe_api, schema
from tunesmith.serve.metrics import Metered, Metrics
from tunesmith.serve.request_queue import Served
from tunesmith.web import errors
from tunesmith.web.auth import ApiGuard, NoPairs, Pairs
from tunesmith.web.limits import Limits

VERSION = importlib.metadata.version("tunesmith")
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def app(
    models: Sequence[Served],
    *,
    token: str,
    hosts: Collection[str],
    limits: Limits | None = None,
    pairing: Any | None = None,
) -> ASGIApp:
    """The guarded application. `hosts` are the names and ports it may be asked under, such as 127.0.0.1:8765.

    `pairing` is serve/pairing.py's, where extensions may be paired.
    """
    limits = limits or Limits()
    metrics = Metrics([(each.name, each.desk) for each in models])
    made = FastAPI(
        title="tunesmith", version=VERSION, openapi_url=None, docs_url=None, redoc_url=None,
        redirect_slashes=False, telemetry=NO_TELEMETRY,
    )  # fmt: skip
    errors.install(made)
    made.include_router(openai_api.router(models, limits))
    made.include_router(recipe_api.router(models, limits))
    if pairing is not None:
        made.include_router(pairing.router())
    made.include_router(health.router(models, metrics, VERSION))
    made.include_router(docs_page.router())
    made.include_router(schema.router(made))
    pairs: Pairs = pairing if pairing is not None else NoPairs()
    public = {("GET", "/health"), ("POST", "/v1/pair"), *docs_page.PUBLIC}
    guarded = ApiGuard(made, hosts=hosts, token=token, public=public, pairs=pairs, limits=limits)
    return Metered(guarded, metrics)
