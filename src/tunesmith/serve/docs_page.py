"""The page that describes the interface: from this server alone, with its own script and style."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

PAGES = Path(__file__).parent / "docs"
FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
PUBLIC = frozenset(("GET", path) for path in FILES)  # the same for everybody; what it shows it asks for with the token


def router() -> APIRouter:
    """GET /docs and its files."""
    made = APIRouter()
    for path, (file, kind) in FILES.items():
        made.add_api_route(path, _page((PAGES / file).read_bytes(), kind), include_in_schema=False)
    return made


def _page(body: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return Response(body, headers={"Content-Type": kind})

    return page
