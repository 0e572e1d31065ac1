"""The API documentation page, served with its own script and style."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

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
