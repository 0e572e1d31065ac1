"""Authentication of requests by token, host and origin, and the security headers of every response."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.web.errors import ApiError, Limits, RateLimiter, rate_limit_error

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_PATH_BYTES = 512  # ours have at most about 100
PREFLIGHT_SECONDS = "600"  # that a browser may cache the preflight response


class TokenAuth:
    """Middleware that rejects requests without the token before their body is read.

    Against DNS rebinding, only `hosts` (name and port) are accepted as Host. Writing needs JSON and the page's own
    origin. Everything except reading `public` paths, which contain no data, needs `Authorization: Bearer TOKEN`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str, public: Collection[str]) -> None:
        self._app, self._hosts, self._public = app, frozenset(hosts), frozenset(public)
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI). Raises NotImplementedError for anything but HTTP."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        app = self._app
        if refusal := self._refusal(scope):
            app = JSONResponse({"detail": refusal[1]}, refusal[0])
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        reads = scope["method"] in ("GET", "HEAD")
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return 421, "this host name is not allowed"
        if not reads and headers.get("origin", "") != f"http://{host}":
            return 403, "pages of another origin may not write here"
        if reads and scope["path"] in self._public:
            return None
        if not hmac.compare_digest(headers.get("authorization", "").encode(), self._expected):
            return 401, "the token is missing or belongs to another review"
        if not reads and headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return 415, "the body must be application/json"
        return None


class PairingStore(Protocol):
    """The browser extensions that are paired with this server or may be paired now."""

    def allows_origin(self, origin: str, path: str) -> bool:
        """Return whether pages of `origin` may request `path`; an unpaired extension may request only pairing."""
        ...

    def accepts_token(self, token: str, origin: str) -> bool:
        """Return whether `token` belongs to `origin` ("" if the browser sends none). Compares in constant time."""
        ...


class NoPairing:
    """A store without paired extensions."""

    def allows_origin(self, origin: str, path: str) -> bool:
        """Return False."""
        return False

    def accepts_token(self, token: str, origin: str) -> bool:
        """Return False."""
        return False


class ApiAuth:
    """Middleware that passes authorized requests on with their whole body.

    Against DNS rebinding, only `hosts` (name and port, lower case) are accepted as Host. Pages may send requests only
    from the server's own origins or those that `pairs` allows. Everything except `public` (method and path) needs the
    token, or a token that `pairs` accepts. Bodies must be JSON, within the size and time limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        token: str,
        public: Collection[tuple[str, str]],
        pairs: PairingStore,
        limits: Limits,
    ) -> None:
        self._app, self._hosts, self._public, self._pairing = app, frozenset(hosts), frozenset(public), pairs
        self._own_origins = frozenset(f"{scheme}://{host}" for host in hosts for scheme in ("http", "https"))
        self._token, self._limits = token.encode(), limits
        self._rate = RateLimiter(limits.rate, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI). Raises NotImplementedError for anything but HTTP."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        origin = Headers(scope=scope).get("origin", "")
        foreign_origin = ""  # a paired origin, which may read the response

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                response_headers = MutableHeaders(scope=message)
                response_headers.update(SECURITY_HEADERS)
                if foreign_origin:
                    response_headers.update({"Access-Control-Allow-Origin": foreign_origin, "Vary": "Origin"})
            await send(message)

        try:
            self._check_address(scope)
            if origin and origin not in self._own_origins:
                if not self._pairing.allows_origin(origin, scope["path"]):
                    raise ApiError(403, "pages of this origin are not allowed", code="origin_not_allowed")
                foreign_origin = origin
            if scope["method"] == "OPTIONS" and foreign_origin:
                await _preflight_response()(scope, receive, send_with_headers)
                return
            self._check_token(scope, origin)
            if scope["method"] not in ("GET", "HEAD"):
                receive = await self._read_body(scope, receive)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check_address(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0].decode("latin-1").lower() not in self._hosts:
            raise ApiError(421, "this host name is not allowed", code="host_not_allowed")
        raw_path = bytes(scope.get("raw_path") or scope["path"].encode())
        path = scope["path"]
        malformed = "\\" in path or "//" in path or not path.isprintable() or not path.startswith("/")
        if (
            malformed
            or len(raw_path) > MAX_PATH_BYTES
            or b"%2f" in raw_path.lower()
            or {".", ".."} & set(path.split("/"))
        ):
            raise ApiError(404, "this path does not exist", code="not_found")

    def _check_token(self, scope: Scope, origin: str) -> None:
        if (scope["method"], scope["path"]) in self._public:
            client = "public"
        else:
            client = self._client(Headers(scope=scope).get("authorization", ""), origin)
        if delay := self._rate.wait(client):
            raise rate_limit_error(delay)

    def _client(self, authorization: str, origin: str) -> str:
        """Return the client that the token belongs to. A page of a paired extension needs the extension's own token."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer":
            token = key.strip()
            if hmac.compare_digest(token.encode(), self._token):
                return "token"
            if self._pairing.accepts_token(token, origin):
                return origin or "paired"
        message = "the token is missing or wrong; send Authorization: Bearer TOKEN"
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the whole body, and return a `receive` that replays it."""
        headers = Headers(scope=scope)
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._limits.body:
            raise self._too_large()
        body, deadline = bytearray(), time.monotonic() + self._limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise ApiError(408, "the body was sent too slowly", headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the body is incomplete")
            body += message.get("body", b"")
            if len(body) > self._limits.body:
                raise self._too_large()
            if not message.get("more_body", False):
                break
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._limits.body:,} bytes"
        return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})


def _preflight_response() -> Response:
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Allow-Private-Network": "true",
        "Access-Control-Max-Age": PREFLIGHT_SECONDS,
    }
    return Response(status_code=204, headers=allowed)
