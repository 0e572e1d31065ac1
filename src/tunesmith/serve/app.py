"""The server's ASGI application: the OpenAI-compatible API, recipe API, pairing, health, metrics, docs."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from tunesmith.serve import openai_api, recipe_api
from tunesmith.serve.backend import ServedModel
from tunesmith.serve.metrics import Metrics, MetricsMiddleware, health_router
from tunesmith.web import errors
from tunesmith.web.auth import ApiAuth, NoPairing, PairingStore
from tunesmith.web.errors import ErrorBody, Limits

DOCS_FOLDER = Path(__file__).parent / "docs"
DOCS_FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
DOCS_PATHS = frozenset(("GET", path) for path in DOCS_FILES)  # static; the page requests its content with the token


def docs_router() -> APIRouter:
    """Routes: GET /docs and its files."""
    router = APIRouter()
    for path, (file, kind) in DOCS_FILES.items():
        router.add_api_route(path, _static_page((DOCS_FOLDER / file).read_bytes(), kind), include_in_schema=False)
    return router


def _static_page(body: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return Response(body, headers={"Content-Type": kind})

    return page


ERROR_RESPONSES = {  # that any operation may return
    400: "The request is invalid or does not fit the model.",
    401: "The token is missing or wrong.",
    403: "Pages of this origin are not allowed.",
    404: "The path or name does not exist.",
    405: "The path does not support this method.",
    408: "The body was sent too slowly.",
    413: "The body is too large.",
    415: "The body must be application/json.",
    421: "This host name is not allowed.",
    429: "Too many requests; see Retry-After.",
    500: "Internal server error.",
    502: "The model's runtime failed; a retry may succeed.",
    503: "Too many connections.",
    504: "The reply took too long.",
}
READ_METHODS = {"get", "head"}
PUBLIC_OPERATIONS = {("/health", "get"), ("/v1/pair", "post")}


def schema_router(app: FastAPI) -> APIRouter:
    """Routes: GET /openapi.json."""
    router, document = APIRouter(), dict[str, Any]()

    @router.get("/openapi.json", include_in_schema=False)
    async def read() -> JSONResponse:
        if not document:
            document.update(_add_error_responses(copy.deepcopy(app.openapi())))
        return JSONResponse(document)

    return router


def _add_error_responses(schema: dict[str, Any]) -> dict[str, Any]:
    parts = schema.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    error_schema = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(error_schema.pop("$defs"))
    schemas["ErrorBody"] = error_schema
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            responses.pop("422", None)  # FastAPI's default; this server returns 400
            for status, description in ERROR_RESPONSES.items():
                if method in READ_METHODS and status in (408, 413, 415, 502, 504):
                    continue
                responses[str(status)] = {
                    "description": description,
                    "content": {"application/json": {"schema": _ERROR_REF}},
                }
            if (path, method) not in PUBLIC_OPERATIONS:
                operation["security"] = [{"token": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return schema


_ERROR_REF = {"$ref": "#/components/schemas/ErrorBody"}


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
    api.include_router(health_router(models, metrics, VERSION))
    api.include_router(docs_router())
    api.include_router(schema_router(api))
    pairs: PairingStore = pairing if pairing is not None else NoPairing()
    public = {("GET", "/health"), ("POST", "/v1/pair"), *DOCS_PATHS}
    guarded = ApiAuth(api, hosts=hosts, token=token, public=public, pairs=pairs, limits=limits)
    return MetricsMiddleware(guarded, metrics)
