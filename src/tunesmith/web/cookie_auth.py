"""Cookie authentication for the pages: only the browser that opened the address from this terminal gets in.

Written as ASGI middleware, so that every route of the app, known or not, passes through it.
"""

from __future__ import annotations

import hmac
import html
import json
import mimetypes
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from tunesmith.errors import RunError
from tunesmith.runs.run import child_folder

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_FORM_BYTES = 4 << 20  # bytes of anything but an upload; recipes and letters are far smaller
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=()",
    "Cache-Control": "no-store",
}
APP_POLICY = (  # only the page's own scripts run, no inline handlers; gr.HTML compiles templates with Function()
    "default-src 'none'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; "
    "manifest-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
ALLOWED_PATHS = re.compile(  # what the pages need; Gradio's other routes (API, proxy, editor, history) are closed
    r"/|/theme\.css|/config/?|/favicon\.ico|/(?:assets|static|svelte)/[^?]*"
    r"|/gradio_api/(?:queue/join|queue/data|upload|upload_progress|heartbeat/[^/]+|reset/?|cancel|app_id/?"
    r"|startup-events|component_server/?|run/predict/?|theme\.css|file=[^?]*)"
)


@dataclass(frozen=True)
class StaticPages:
    """Static pages in the folders directly below `folder`; only files called `names` are served."""

    folder: Path
    names: Collection[str]


class CookieAuth:
    """Middleware that rejects requests without the session cookie before their body is read.

    Against DNS rebinding, only `hosts` (name and port) are accepted as Host. The token, sent once as /?token=…, is
    exchanged for a cookie that scripts cannot read and that requests from other sites do not carry; everything else
    needs that cookie. Writing needs the page's own origin, and nothing is served to pages of another site or port.
    Bodies are limited to `max_upload` bytes for an upload, LARGEST_FORM for others. `pages` are served at
    /pages/KIND/NAME/FILE.
    """

    def __init__(
        self, app: Application, *, hosts: Collection[str], token: str, pages: Mapping[str, StaticPages], max_upload: int
    ) -> None:
        self._app, self._hosts, self._pages, self._max_upload = app, frozenset(hosts), dict(pages), max_upload
        self._token, self._secret = token.encode(), secrets.token_urlsafe(32)
        port = next(iter(hosts)).rpartition(":")[2]
        self.cookie = f"tunesmith-{port}"  # browsers share cookies between all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _headers(scope)
        if refusal := self._refusal(scope, headers):
            await _send_refusal(send, *refusal, html_wanted="text/html" in headers.get("accept", ""))
        elif scope["path"].startswith("/pages/"):
            await self._page(scope["path"], send)
        elif not ALLOWED_PATHS.fullmatch(scope["path"]):
            await _send_refusal(send, 404, "this page does not exist", "", html_wanted=False)
        elif self._has_token(scope):
            await self._set_cookie(send)
        else:
            await self._forward(scope, receive, send)

    # --- authentication ---------------------------------------------------------------------------------------

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        reads = scope["method"] in ("GET", "HEAD")
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in self._hosts:
            return 421, "this host name is not allowed", "Open the address that the terminal shows"
        if (origin is not None or not reads) and origin != f"http://{host}":
            return 403, "pages of another origin may not send requests here", ""
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not self._is_navigation(
            scope, headers
        ):
            return 403, "pages of another origin may not send requests here", ""
        if self._has_token(scope):
            return None
        if not hmac.compare_digest(self._cookie_value(headers), self._secret.encode()):
            return 401, "this browser is not authorized", "Open the address with the token that the terminal shows"
        if not reads and _content_length(headers) > self._limit(scope["path"]):
            return 413, "the upload is too large", f"The limit is {self._limit(scope['path']) >> 20} MiB"
        return None

    def _is_navigation(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """Return whether the user follows a link to the start page in a top-level window."""
        return (
            scope["method"] == "GET"
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )

    def _has_token(self, scope: Scope) -> bool:
        """Return whether the URL contains the right token."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        token = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(token.encode(), self._token)

    def _cookie_value(self, headers: Mapping[str, str]) -> bytes:
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            morsel = None
        return morsel.value.encode() if morsel else b""

    async def _set_cookie(self, send: Send) -> None:
        """Set the cookie and continue to the page without the token, by a page with a meta refresh.

        After a redirect the browser would still count the request as coming from the other program, and would not send
        a cookie with SameSite=Strict.
        """
        cookie = f"{self.cookie}={self._secret}; HttpOnly; SameSite=Strict; Path=/"
        body = (
            '<!doctype html><meta charset="utf-8"><title>tunesmith</title><meta http-equiv="refresh" content="0;url=/">'
        )
        body += '<p><a href="/">Open the pages</a></p>'
        await _send_response(send, 200, body, "text/html; charset=utf-8", {"Set-Cookie": cookie})

    # --- forwarding ------------------------------------------------------------------------------------------

    def _limit(self, path: str) -> int:
        return self._max_upload + (1 << 20) if path == "/gradio_api/upload" else MAX_FORM_BYTES  # plus multipart lines

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        remaining, is_page = self._limit(scope["path"]), scope["path"] == "/"
        policy = APP_POLICY.format(nonce=(nonce := secrets.token_urlsafe(16)))
        start_message: Message = {}
        body = b""
        if is_page:  # the page is changed here, so it must not be compressed
            scope = {
                **scope,
                "headers": [header for header in scope["headers"] if header[0].lower() != b"accept-encoding"],
            }

        async def limited_receive() -> Message:
            nonlocal remaining
            message = await receive()
            remaining -= len(message.get("body", b""))
            return message if remaining >= 0 else {"type": "http.disconnect"}  # without Content-Length, too

        async def send_with_headers(message: Message) -> None:
            nonlocal start_message, body
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name.lower() not in _OWN_HEADERS]
                message = {
                    **message,
                    "headers": [*headers, *_encode_headers({**SECURITY_HEADERS, "Content-Security-Policy": policy})],
                }
                if is_page:
                    start_message = message
                    return
            elif is_page and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                body = body.replace(b"<script", f'<script nonce="{nonce}"'.encode())  # JSON data in the page escapes <
                headers = [header for header in start_message["headers"] if header[0].lower() != b"content-length"]
                await send({**start_message, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
                message = {"type": "http.response.body", "body": body}
            await send(message)

        await self._app(scope, limited_receive, send_with_headers)

    async def _page(self, path: str, send: Send) -> None:
        """Serve a static page of a known kind and file name, directly below its folder."""
        try:
            _, _, kind, name, file = path.split("/")
            page_folder = self._pages[kind]
            page_file = child_folder(page_folder.folder, name, kind) / file
            if (
                file not in page_folder.names
                or not page_file.is_file()
                or page_file.resolve().parent != page_file.parent.resolve()
            ):
                raise KeyError(file)
            body = page_file.read_bytes()
        except (ValueError, KeyError, RunError, OSError):
            await _send_refusal(send, 404, "this page does not exist", "", html_wanted=True)
            return
        media_type = mimetypes.guess_type(page_file.name)[0] or "text/plain"
        await _send_response(send, 200, body, f"{media_type}; charset=utf-8", {"Content-Security-Policy": PAGE_POLICY})


_OWN_HEADERS = {
    name.lower().encode() for name in (*SECURITY_HEADERS, "Content-Security-Policy", "Access-Control-Allow-Origin")
}


def _headers(scope: Scope) -> dict[str, str]:
    """Return headers by lower-case name; a repeated header is joined with a comma, so two hosts never match."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        join = "; " if key == "cookie" else ", "
        headers[key] = f"{headers[key]}{join}{text}" if key in headers else text
    return headers


def _content_length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isdecimal() and len(text) < 16 else 1 << 60


def _encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _send_refusal(send: Send, status: int, message: str, advice: str, *, html_wanted: bool) -> None:
    """Send a refusal: a small page for a person, JSON for a program."""
    if not html_wanted:
        await _send_response(send, status, json.dumps({"detail": message, "next": advice}), "application/json", {})
        return
    body = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width"><title>tunesmith</title>'
        "<style>body{font:17px/1.5 system-ui,sans-serif;max-width:34em;margin:18vh auto;padding:0 1.2em}</style>"
        f"<h1>tunesmith</h1><p>{html.escape(message[:1].upper() + message[1:])}.</p><p>{html.escape(advice)}</p></html>"
    )
    await _send_response(send, status, body, "text/html; charset=utf-8", {})


async def _send_response(
    send: Send, status: int, body: str | bytes, media_type: str, extra_headers: Mapping[str, str]
) -> None:
    data = body.encode() if isinstance(body, str) else body
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    headers = {
        **SECURITY_HEADERS,
        **policy,
        "Content-Type": media_type,
        "Content-Length": str(len(data)),
        **extra_headers,
    }
    await send({"type": "http.response.start", "status": status, "headers": _encode_headers(headers)})
    await send({"type": "http.response.body", "body": data})
