"""The server's ASGI application: the OpenAI-compatible API, recipe API, pairing, health, metrics and docs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp

from tunesmith.serve import docs_page, health, openai_api, recipe_api, schema
from tunesmith.serve.metrics import Metrics, MetricsMiddleware
from tunesmith.serve.request_queue import ServedModel
from tunesmith.web import errors
from tunesmith.web.auth import ApiAuth, NoPairing, PairingStore
from tunesmith.web.limits import Limits

VERSION = importlib.metadata.version("tunesmith")
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(
    models: Sequence[ServedModel],
    *,
    token: str,
    hosts: Collection[str],
    limits: Limits | None = None,
    pairing: Any | None = None,
) -> ASGIApp:
    """Build the application with authentication.

    `hosts` are the accepted Host names with ports, such as 127.0.0.1:8765. `pairing` is a serve.pairing.Pairing, if
    extensions may be paired.
    """
    limits = limits or Limits()
    metrics = Metrics([(model.name, model.queue) for model in models])
    api = FastAPI(
        title="tunesmith", version=VERSION, openapi_url=None, docs_url=None, redoc_url=None,
        redirect_slashes=False, telemetry=NO_TELEMETRY,
    )  # fmt: skip
    errors.install_error_handlers(api)
    api.include_router(openai_api.openai_router(models, limits))
    api.include_router(recipe_api.recipe_router(models, limits))
    if pairing is not None:
        api.include_router(pairing.router())
    api.include_router(health.health_router(models, metrics, VERSION))
    api.include_router(docs_page.docs_router())
    api.include_router(schema.schema_router(api))
    pairs: PairingStore = pairing if pairing is not None else NoPairing()
    public = {("GET", "/health"), ("POST", "/v1/pair"), *docs_page.DOCS_PATHS}
    guarded = ApiAuth(api, hosts=hosts, token=token, public=public, pairs=pairs, limits=limits)
    return MetricsMiddleware(guarded, metrics)
