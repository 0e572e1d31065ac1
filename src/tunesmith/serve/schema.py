"""The OpenAPI document, including the responses of the authentication."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse

from tunesmith.web.errors import ErrorBody

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
