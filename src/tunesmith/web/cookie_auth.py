"""Who may come in: the browser that was given the address by this terminal; and what a page may load: its own alone.

Written against ASGI itself, so that every route of the app behind it, known or not, passes here first.
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
from tunesmith.runs.run import inside

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_FORM = 4 << 20  # bytes of anything but an upload: a recipe or a letter is far below
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=()",
    "Cache-Control": "no-store",
}
APP_POLICY = (  # only the page's own scripts run, no onerror=… of a text; gr.HTML makes its template by Function()
    "default-src 'none'; script-src 'self' 'unsafe-eval' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; "
    "manifest-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
OPEN = re.compile(  # what the pages ask for; the other routes of Gradio (its API, proxy, editor, history) stay shut
    r"/|/theme\.css|/config/?|/favicon\.ico|/(?:assets|static|svelte)/[^?]*"
    r"|/gradio_api/(?:queue/join|queue/data|upload|upload_progress|heartbeat/[^/]+|reset/?|cancel|app_id/?"
    r"|startup-events|component_server/?|run/predict/?|theme\.css|file=[^?]*)"
)


@dataclass(frozen=True)
class Kept:
    """Pages that lie as files in the folders right below `folder`; of these only `names` are shown."""

    folder: Path
    names: Collection[str]


class Door:
    """Lets a request through to `app`, or refuses it before anything of it is read.

    Against DNS rebinding only `hosts` (name and port) may be asked for. The token, once given as /?token=…, becomes a
    cookie that scripts cannot read and other sites' requests do not carry; everything else needs that cookie. Writing
    needs the page's own origin, and nothing is read for another site's page, another port's included. Bodies are
    bounded: `largest` bytes of an upload, LARGEST_FORM of others. `pages` are shown at /pages/KIND/NAME/FILE.
    """

    def __init__(
        self, app: Application, *, hosts: Collection[str], token: str, pages: Mapping[str, Kept], largest: int
    ) -> None:
        self._app, self._hosts, self._pages, self._largest = app, frozenset(hosts), dict(pages), largest
        self._token, self._secret = token.encode(), secrets.token_urlsafe(32)
        port = next(iter(hosts)).rpartition(":")[2]
        self.cookie = f"tunesmith-{port}"  # browsers keep one set of cookies for all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _headers(scope)
        if refused := self._refusal(scope, headers):
            await _answer(send, *refused, html_wanted="text/html" in headers.get("accept", ""))
        elif scope["path"].startswith("/pages/"):
            await self._page(scope["path"], send)
        elif not OPEN.fullmatch(scope["path"]):
            await _answer(send, 404, "there is no such page", "", html_wanted=False)
        elif given := self._given(scope):
            await self._welcome(send, given)
        else:
            await self._through(scope, receive, send)

    # --- who may come in ------------------------------------------------------------------------------------

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        reads = scope["method"] in ("GET", "HEAD")
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in self._hosts:
            return 421, "this host is not served here", "Open the address that the terminal shows"
        if (origin is not None or not reads) and origin != f"http://{host}":
            return 403, "another page may not ask here", ""
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not self._arrives(scope, headers):
            return 403, "another page may not ask here", ""
        if self._given(scope):
            return None
        if not hmac.compare_digest(self._shown(headers), self._secret.encode()):
            return 401, "this browser was not let in", "Open the address with the token that the terminal shows"
        if not reads and _length(headers) > self._limit(scope["path"]):
            return 413, "this is too large", f"At most {self._limit(scope['path']) >> 20} MiB are taken"
        return None

    def _arrives(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        """Whether the person themselves comes here by a link: a whole page is opened, at the top."""
        return (
            scope["method"] == "GET"
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )

    def _given(self, scope: Scope) -> bool:
        """Whether the address holds the right token."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        found = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(found.encode(), self._token)

    def _shown(self, headers: Mapping[str, str]) -> bytes:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            found = None
        return found.value.encode() if found else b""

    async def _welcome(self, send: Send, given: bool) -> None:
        """Sets the cookie and goes on to the page without the token, from a page of our own: a redirect would still
        count as the other program's, whose requests a strict cookie does not go with."""
        cookie = f"{self.cookie}={self._secret}; HttpOnly; SameSite=Strict; Path=/"
        body = (
            '<!doctype html><meta charset="utf-8"><title>tunesmith</title><meta http-equiv="refresh" content="0;url=/">'
        )
        body += '<p><a href="/">Open the pages</a></p>'
        await _send(send, 200, body, "text/html; charset=utf-8", {"Set-Cookie": cookie})

    # --- what goes through ----------------------------------------------------------------------------------

    def _limit(self, path: str) -> int:
        return self._largest + (1 << 20) if path == "/gradio_api/upload" else LARGEST_FORM  # a form's own lines

    async def _through(self, scope: Scope, receive: Receive, send: Send) -> None:
        left, whole = self._limit(scope["path"]), scope["path"] == "/"
        policy = APP_POLICY.format(nonce=(nonce := secrets.token_urlsafe(16)))
        begun: Message = {}
        body = b""
        if whole:  # the page itself is read here, so it must not come packed
            scope = {**scope, "headers": [each for each in scope["headers"] if each[0].lower() != b"accept-encoding"]}

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            return message if left >= 0 else {"type": "http.disconnect"}  # who sends no length may still not go on

        async def sending(message: Message) -> None:
            nonlocal begun, body
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in _OURS]
                message = {**message, "headers": [*kept, *_encoded({**ALWAYS, "Content-Security-Policy": policy})]}
                if whole:
                    begun = message
                    return
            elif whole and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                body = body.replace(b"<script", f'<script nonce="{nonce}"'.encode())  # data in it has \u003c for <
                kept = [each for each in begun["headers"] if each[0].lower() != b"content-length"]
                await send({**begun, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
                message = {"type": "http.response.body", "body": body}
            await send(message)

        await self._app(scope, receiving, sending)

    async def _page(self, path: str, send: Send) -> None:
        """A page that lies as a file: of a known kind, right below its folder, of a known name."""
        try:
            _, _, kind, name, file = path.split("/")
            kept = self._pages[kind]
            found = inside(kept.folder, name, kind) / file
            if file not in kept.names or not found.is_file() or found.resolve().parent != found.parent.resolve():
                raise KeyError(file)
            body = found.read_bytes()
        except (ValueError, KeyError, RunError, OSError):
            await _answer(send, 404, "there is no such page", "", html_wanted=True)
            return
        type_ = mimetypes.guess_type(found.name)[0] or "text/plain"
        await _send(send, 200, body, f"{type_}; charset=utf-8", {"Content-Security-Policy": PAGE_POLICY})


_OURS = {name.lower().encode() for name in (*ALWAYS, "Content-Security-Policy", "Access-Control-Allow-Origin")}


def _headers(scope: Scope) -> dict[str, str]:
    """By small names; of a header given twice, both with a comma, so that two hosts are none of ours."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        join = "; " if key == "cookie" else ", "
        found[key] = f"{found[key]}{join}{text}" if key in found else text
    return found


def _length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isdecimal() and len(text) < 16 else 1 << 60


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _answer(send: Send, status: int, what: str, advice: str, *, html_wanted: bool) -> None:
    """A refusal: a small page for a person, JSON for a program."""
    if not html_wanted:
        await _send(send, status, json.dumps({"detail": what, "next": advice}), "application/json", {})
        return
    body = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width"><title>tunesmith</title>'
        "<style>body{font:17px/1.5 system-ui,sans-serif;max-width:34em;margin:18vh auto;padding:0 1.2em}</style>"
        f"<h1>tunesmith</h1><p>{html.escape(what[:1].upper() + what[1:])}.</p><p>{html.escape(advice)}</p></html>"
    )
    await _send(send, status, body, "text/html; charset=utf-8", {})


async def _send(send: Send, status: int, body: str | bytes, kind: str, more: Mapping[str, str]) -> None:
    data = body.encode() if isinstance(body, str) else body
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    headers = {**ALWAYS, **policy, "Content-Type": kind, "Content-Length": str(len(data)), **more}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": data})
