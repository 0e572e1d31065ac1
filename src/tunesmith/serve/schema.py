"""The OpenAPI description: what may be sent and answered, the guard's answers included."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse

from tunesmith.web.errors import ErrorBody

ANSWERS = {  # which every way to ask may give, and why
    400: "The request is wrong, or does not fit the model.",
    401: "The token is missing or wrong.",
    403: "Pages of this origin may not ask.",
    404: "There is no such address or name.",
    405: "This address is asked in another way.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "Only application/json is read.",
    421: "This host is not served.",
    429: "Too many requests; see Retry-After.",
    500: "The server failed.",
    502: "The model's runtime failed; asking again may help.",
    503: "There are too many connections.",
    504: "The reply took too long.",
}
READS = {"get", "head"}
FREE = {("/health", "get"), ("/v1/pair", "post")}


def router(app: FastAPI) -> APIRouter:
    """GET /openapi.json."""
    made, kept = APIRouter(), dict[str, Any]()

    @made.get("/openapi.json", include_in_schema=False)
    async def read() -> JSONResponse:
        if not kept:
            kept.update(_complete(copy.deepcopy(app.openapi())))
        return JSONResponse(kept)

    return made


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    parts = schema.setdefault("components", {})
    known = parts.setdefault("schemas", {})
    made = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    known.update(made.pop("$defs"))
    known["ErrorBody"] = made
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, ways in schema["paths"].items():
        for method, way in ways.items():
            answers = way["responses"]
            answers.pop("422", None)  # FastAPI's own, which is answered as 400 here
            for status, why in ANSWERS.items():
                if method in READS and status in (408, 413, 415, 502, 504):
                    continue
                answers[str(status)] = {"description": why, "content": {"application/json": {"schema": _REF}}}
            if (path, method) not in FREE:
                way["security"] = [{"token": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        known.pop(name, None)
    return schema


_REF = {"$ref": "#/components/schemas/ErrorBody"}
