"""Who may ask: those who have the token, from where they may; and what each reply tells the browser."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.web.errors import ApiError, busy_for
from tunesmith.web.limits import Limits, Rate

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
LONGEST_PATH = 512  # bytes; ours have at most about 100
PREFLIGHT_SECONDS = "600"  # for which a browser need not ask again


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


class Pairs(Protocol):
    """The extensions that were paired with this server, or may be now."""

    def knows(self, origin: str, path: str) -> bool:
        """Whether pages of `origin` may ask for `path`; those that may pair, only for the pairing itself."""
        ...

    def accepts(self, token: str, origin: str) -> bool:
        """Whether `token` was given to `origin` ("" where the browser names none). Compares in constant time."""
        ...


class NoPairs:
    """Where nothing is paired."""

    def knows(self, origin: str, path: str) -> bool:
        """Nobody."""
        return False

    def accepts(self, token: str, origin: str) -> bool:
        """Nothing."""
        return False


class ApiGuard:
    """Lets a request through to `app` with its whole body, or refuses it.

    Against DNS rebinding only `hosts` (name and port, small letters) may be asked for; pages may ask only from the
    server's own origins or those that `pairs` knows; everything but `public` (method and path) needs the token, or one
    that `pairs` accepts; bodies must be JSON, small and quick.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        token: str,
        public: Collection[tuple[str, str]],
        pairs: Pairs,
        limits: Limits,
    ) -> None:
        self._app, self._hosts, self._public, self._pairs = app, frozenset(hosts), frozenset(public), pairs
        self._own = frozenset(f"{scheme}://{host}" for host in hosts for scheme in ("http", "https"))
        self._token, self._limits = token.encode(), limits
        self._rate = Rate(limits.rate, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI). Raises NotImplementedError for anything but HTTP."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        origin = Headers(scope=scope).get("origin", "")
        cross = ""  # the foreign origin that may read the answer

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                told.update(HEADERS)
                if cross:
                    told.update({"Access-Control-Allow-Origin": cross, "Vary": "Origin"})
            await send(message)

        try:
            self._check_address(scope)
            if origin and origin not in self._own:
                if not self._pairs.knows(origin, scope["path"]):
                    raise ApiError(403, "pages of this origin may not ask here", code="origin_not_allowed")
                cross = origin
            if scope["method"] == "OPTIONS" and cross:
                await _preflight()(scope, receive, sending)
                return
            self._check_key(scope, origin)
            if scope["method"] not in ("GET", "HEAD"):
                receive = await self._read(scope, receive)
        except ApiError as refused:
            await refused.response()(scope, receive, sending)
            return
        await self._app(scope, receive, sending)

    def _check_address(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0].decode("latin-1").lower() not in self._hosts:
            raise ApiError(421, "this host is not served here", code="host_not_allowed")
        raw = bytes(scope.get("raw_path") or scope["path"].encode())
        path = scope["path"]
        odd = "\\" in path or "//" in path or not path.isprintable() or not path.startswith("/")
        if odd or len(raw) > LONGEST_PATH or b"%2f" in raw.lower() or {".", ".."} & set(path.split("/")):
            raise ApiError(404, "there is no such address", code="not_found")

    def _check_key(self, scope: Scope, origin: str) -> None:
        if (scope["method"], scope["path"]) in self._public:
            client = "public"
        else:
            client = self._client(Headers(scope=scope).get("authorization", ""), origin)
        if wait := self._rate.wait(client):
            raise busy_for(wait)

    def _client(self, said: str, origin: str) -> str:
        """For whom the key was made. A page of a paired extension needs its own."""
        kind, _, key = said.partition(" ")
        if kind.lower() == "bearer":
            given = key.strip()
            if hmac.compare_digest(given.encode(), self._token):
                return "token"
            if self._pairs.accepts(given, origin):
                return origin or "paired"
        what = "the token is missing or wrong; send Authorization: Bearer TOKEN"
        raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """The whole body, then what `receive` says."""
        headers = Headers(scope=scope)
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "only application/json is read", code="unsupported_media_type")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._limits.body:
            raise self._too_large()
        body, until = bytearray(), time.monotonic() + self._limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                raise ApiError(408, "the body came too slowly", headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the body broke off")
            body += message.get("body", b"")
            if len(body) > self._limits.body:
                raise self._too_large()
            if not message.get("more_body", False):
                break
        waiting: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        return replay

    def _too_large(self) -> ApiError:
        what = f"the body is longer than {self._limits.body:,} bytes"
        return ApiError(413, what, code="body_too_large", headers={"Connection": "close"})


def _preflight() -> Response:
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Allow-Private-Network": "true",
        "Access-Control-Max-Age": PREFLIGHT_SECONDS,
    }
    return Response(status_code=204, headers=allowed)
