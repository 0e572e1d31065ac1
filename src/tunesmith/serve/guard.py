"""Who may ask: this machine's own page with the token, nobody else; and what each reply tells the browser."""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets a request through to `app`, or refuses it before anything of it is read.

    Against DNS rebinding only `hosts` (name and port) may be asked for. Writing needs JSON and the page's own origin.
    Everything but reading `public` paths, which hold no data, needs `Authorization: Bearer TOKEN`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str, public: Collection[str]) -> None:
        self._app, self._hosts, self._public = app, frozenset(hosts), frozenset(public)
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI). Raises NotImplementedError for anything but HTTP."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refusal(scope)
        await (JSONResponse({"detail": refused[1]}, refused[0]) if refused else self._app)(scope, receive, sending)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        reads = scope["method"] in ("GET", "HEAD")
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return 421, "this host is not served here"
        if not reads and headers.get("origin", "") != f"http://{host}":
            return 403, "another page may not write here"
        if reads and scope["path"] in self._public:
            return None
        if not hmac.compare_digest(headers.get("authorization", "").encode(), self._wanted):
            return 401, "the token is missing or not this review's"
        if not reads and headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return 415, "only application/json is read"
        return None
