"""Attacks on a server on loopback: by web pages, by other programs, and by the content of requests."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter

from serve.loopback_servers import FREE, TOKEN, Parrot, Running, events, raw, running
from strict_pages import EVIL
from tunesmith.serve.app import DOCS_FILES
from tunesmith.web.errors import Limits

EXTENSION = "chrome-extension://abcdefghijklmnopabcdefghijklmnop"
CHAT = "/v1/chat/completions"
WAYS = [
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("POST", CHAT),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models/parrot"),
    ("GET", "/nothing"),
    ("DELETE", "/v1/models"),
    ("HEAD", "/metrics"),
]


class Paired:
    """A store with one paired extension."""

    def allows_origin(self, origin: str, path: str) -> bool:
        return origin == EXTENSION or (path == "/v1/pair" and origin.startswith("chrome-extension://"))

    def accepts_token(self, token: str, origin: str) -> bool:
        return token == "its own" and origin == EXTENSION

    def router(self) -> APIRouter:
        return APIRouter()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = Limits(rate=1e9, burst=1 << 30, body=20_000, body_seconds=0.3, header_seconds=0.3)
    with running(Parrot(), limits=limits) as running_server:
        yield running_server


def body(text: str = "x", **more: Any) -> bytes:
    return json.dumps({"model": "parrot", "messages": [{"role": "user", "content": text}], **more}).encode()


def request(
    server: Running,
    method: str = "POST",
    path: str = CHAT,
    *,
    content: bytes = b"",
    drop: tuple[str, ...] = (),
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """Send a request as written here, uncorrected by a library; return status, headers and body."""
    plain = {
        "Host": f"127.0.0.1:{server.port}",
        "Authorization": f"Bearer {TOKEN}",
        "Connection": "close",
        **({"Content-Type": "application/json", "Content-Length": str(len(content))} if content else {}),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in plain.items() if name not in drop)]
    answer = raw(server.port, "\r\n".join([*lines, "", ""]).encode() + content)
    head, _, payload = answer.partition(b"\r\n\r\n")
    first, *header_lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in header_lines)}, payload


def heard(server: Running) -> int:
    return len(server.backends[0].heard)


# --- the token -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN}, Bearer x",
        "Bearer \xff\xfe",
    ],
)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(way))
def test_nothing_without_the_token(server: Running, given: str | None, way: tuple[str, str]) -> None:
    before = heard(server)
    method, path = way
    content = body() if method == "POST" else b""
    more: dict[str, Any] = {"drop": ("Authorization",)} if given is None else {"Authorization": given}
    status, headers, payload = request(server, method, path, content=content, **more)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert method == "HEAD" or json.loads(payload)["error"]["code"] == "invalid_api_key"
    assert heard(server) == before


def test_what_is_open_tells_nothing(server: Running) -> None:
    for path in ("/health", *DOCS_FILES):
        status, headers, payload = request(server, "GET", path, drop=("Authorization",))
        assert status == 200
        assert b"parrot" not in payload
        assert TOKEN.encode() not in payload
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert set(json.loads(request(server, "GET", "/health", drop=("Authorization",))[2])) == {"status", "version"}


def test_the_token_stands_in_no_answer(server: Running) -> None:
    for way in WAYS:
        _, headers, payload = request(server, *way, content=body() if way[0] == "POST" else b"")
        assert TOKEN not in str(headers)
        assert TOKEN.encode() not in payload


# --- other pages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost",
        "127.0.0.1:{port}.evil.example",
        "127.0.0.1:{port}@evil.example",
        "0.0.0.0:{port}",
        "[::1]:{port}",
        "",
        "2130706433:{port}",
        "localhost.:{port}",
    ],
)
def test_another_host_is_not_served_even_with_the_token(server: Running, host: str) -> None:
    status, _, payload = request(server, "GET", "/v1/models", Host=host.format(port=server.port))
    assert status == 421
    assert json.loads(payload)["error"]["code"] == "host_not_allowed"
    assert request(server, "GET", "/health", Host=host.format(port=server.port))[0] == 421  # rebinding sees nothing


def test_names_of_this_machine_and_allowed_ones_are_served() -> None:
    with running(Parrot(), allow=["letters.example"]) as server:
        for host in (
            f"127.0.0.1:{server.port}",
            f"localhost:{server.port}",
            f"LOCALHOST:{server.port}",
            "letters.example",
        ):
            assert request(server, "GET", "/v1/models", Host=host)[0] == 200


def test_two_hosts_or_none_are_refused(server: Running) -> None:
    host_line = f"Host: 127.0.0.1:{server.port}\r\n"
    for lines in (host_line + host_line, "", host_line + "Host: evil.example\r\n"):
        answer = raw(server.port, f"GET /health HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
        assert answer.split()[1] in (b"400", b"421")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://localhost",
        EXTENSION,
        "http://127.0.0.1:{port}.evil.example",
        "file://",
        "moz-extension://x",
    ],
)
def test_a_foreign_page_may_not_ask_even_with_the_token(server: Running, origin: str) -> None:
    before = heard(server)
    origin = origin.format(port=server.port)
    for way in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/health"), ("POST", "/v1/pair")):
        content = body() if way[0] == "POST" else b""
        status, headers, _ = request(server, *way, content=content, Origin=origin)
        assert status == 403
        assert "access-control-allow-origin" not in headers
    preflight: dict[str, Any] = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization",
    }
    status, headers, _ = request(server, "OPTIONS", CHAT, Origin=origin, drop=("Authorization",), **preflight)
    assert status == 403  # so that the browser sends nothing
    assert not [name for name in headers if name.startswith("access-control")]
    assert heard(server) == before


def test_the_servers_own_page_may(server: Running) -> None:
    for host in ("127.0.0.1", "localhost"):
        assert request(server, content=body(), Origin=f"http://{host}:{server.port}")[0] == 200


def test_a_paired_extension_may_with_a_token_of_its_own() -> None:
    with running(Parrot(), pairing=Paired()) as server:
        preflight: dict[str, Any] = {
            "Access_Control_Request_Method": "POST",
            "Access_Control_Request_Headers": "authorization,content-type",
        }
        status, headers, _ = request(server, "OPTIONS", CHAT, Origin=EXTENSION, drop=("Authorization",), **preflight)
        assert status == 204
        assert headers["access-control-allow-origin"] == EXTENSION
        assert headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in headers
        status, headers, _ = request(server, content=body(), Origin=EXTENSION, Authorization="Bearer its own")
        assert status == 200
        assert headers["access-control-allow-origin"] == EXTENSION
        second = "chrome-extension://ponmlkjihgfedcbaponmlkjihgfedcba"
        assert request(server, content=body(), Origin=second, Authorization="Bearer its own")[0] == 403
        assert request(server, content=body(), Authorization="Bearer its own")[0] == 401
        assert request(server, content=body(), Origin=EXTENSION, Authorization="Bearer nothing")[0] == 401
        assert (
            request(server, "POST", "/v1/pair", content=b"{}", Origin=second)[0] == 404
        )  # may ask; nobody is there yet


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "text/plain;application/json",
        "application/jsonp",
        "application/json-seq",
    ],
)
def test_what_a_form_can_send_is_not_read(server: Running, kind: str) -> None:
    before = heard(server)
    status, _, payload = request(server, content=body(), Content_Type=kind)
    assert (status, json.loads(payload)["error"]["code"]) == (415, "unsupported_media_type")
    assert heard(server) == before
    assert request(server, content=body(), Content_Type="Application/JSON; charset=utf-8")[0] == 200


# --- sizes and times -----------------------------------------------------------------------------------------


def test_a_body_that_is_too_large(server: Running) -> None:
    status, headers, payload = request(server, content=body("x" * 30_000))
    assert (status, json.loads(payload)["error"]["code"]) == (413, "body_too_large")
    assert headers["connection"] == "close"
    started = time.monotonic()
    assert request(server, content=b"{}", Content_Length=str(10**15))[0] == 413  # by what it says, before it comes
    assert time.monotonic() - started < 5
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(server.port, head.encode() + chunk * 8).split()[1] == b"413"  # without a length, as it comes
    assert request(server, content=body("x" * 10_000))[0] == 200


def test_without_the_token_a_body_is_not_even_waited_for(server: Running) -> None:
    status, _, _ = request(server, content=b"{", Content_Length="1000", Authorization="Bearer wrong")
    assert status == 401


def test_a_body_that_comes_slowly(server: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as wire:
        wire.sendall(head.encode())
        for _ in range(12):  # a byte now and then helps nobody
            time.sleep(0.05)
            try:
                wire.sendall(b" ")
            except OSError:
                break
        answer = wire.recv(4096)
    assert answer.split()[1] == b"408"
    assert b"connection: close" in answer.lower()
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("begun", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_headers_that_come_slowly(server: Running, begun: bytes) -> None:
    started = time.monotonic()
    answer = raw(server.port, begun, seconds=5)
    assert answer == b"" or answer.split()[1] == b"408"
    assert time.monotonic() - started < 4
    with socket.create_connection(
        ("127.0.0.1", server.port), timeout=5
    ) as wire:  # a second request on a connection too
        wire.sendall(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        answer = wire.recv(4096)
        while not answer.endswith(b"}"):
            answer += wire.recv(4096)
        assert answer.split()[1] == b"200"
        wire.sendall(b"GET /hea")
        answer = wire.recv(4096)
    assert answer == b"" or answer.split()[1] == b"408"
    assert time.monotonic() - started < 8


def test_headers_without_end(server: Running) -> None:
    answer = raw(server.port, b"GET /health HTTP/1.1\r\n" + b"X-A: " + b"a" * 300_000)
    assert answer == b"" or answer.split()[1] in (b"400", b"431", b"408")
    assert server.client.get("/health").status_code == 200


def test_a_client_that_takes_nothing_is_left() -> None:
    parrot = Parrot(wait=0.0005)
    with running(parrot, limits=Limits(rate=1e9, stall_seconds=0.3)) as server:
        content = body("word" * 50 + " " + "y " * 200_000, stream=True)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect(("127.0.0.1", server.port))
            wire.sendall(head.encode() + content)
            until = time.monotonic() + 10
            while not parrot.heard and time.monotonic() < until:
                time.sleep(0.01)
            while parrot.now and time.monotonic() < until:
                time.sleep(0.02)
        assert parrot.now == 0


# --- paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/docs/../metrics",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/docs/%2e%2e/metrics",
        "/docs%2f..%2fmetrics",
        "//evil.example/health",
        "/health/",
        "/health%00",
        "/%00",
        "/docs.js%00.html",
        "/health%0d%0aX: y",
        "/docs%5c..",
        "/v1/models/..",
        "/v1/models/%2e%2e",
        "/v1/models/..%2f..%2fetc",
        "/HEALTH",
        "/v1//models",
        "/./health",
        "/docs.html",
        "/pages/docs.html",
        "/review.js",
        "/" + "a" * 2000,
        "/v1/models/" + "a" * 400,
        "/%ff%fe",
        "/v1/models/%E2%80%AE",
        "http://evil.example/health",
        "/health;x",
        "/.env",
        "/v1/recipes/../models",
    ],
)
def test_paths_lead_nowhere(server: Running, path: str) -> None:
    for drop in ((), ("Authorization",)):
        status, _, payload = request(server, "GET", path, drop=drop)
        assert status in (404, 401, 400, 405)
        assert b"root:" not in payload
        if status != 400:  # bytes that are no request at all are told so by the protocol
            assert set(json.loads(payload)["error"]) == {"message", "type", "param", "code"}
            assert "passwd" not in payload.decode()


def test_methods_that_are_not_there(server: Running) -> None:
    for method in ("PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "OPTIONS", "PROPFIND"):
        assert request(server, method, CHAT, content=b"{}")[0] in (400, 404, 405)
    assert request(server, "GET", CHAT)[0] == 405


def test_what_is_no_http_is_refused(server: Running) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"\x00" * 100, b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        answer = raw(server.port, data, seconds=1)
        assert answer == b"" or answer.split()[1] in (b"400", b"408", b"421", b"505")
    smuggled = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    smuggled += "Content-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET"
    before = heard(server)
    raw(server.port, smuggled.encode(), seconds=1)
    assert heard(server) == before
    assert server.client.get("/health").status_code == 200


# --- what is written -----------------------------------------------------------------------------------------

INJECTED = [
    "{{ 7 * 7 }}",
    "{% for x in messages %}{{ x }}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "{{ ''.__class__.__mro__ }}",
    "{%- raise_exception('x') -%}",
    "%s %d {0} {name}",
    EVIL,
    "<script>alert(1)</script>",
    "data: [DONE]\n\nevent: x\r\ndata: y",
    "\u2028\u2029\ufeff\u202e",
    "\x01\x1b[2J",
    "'; DROP TABLE x; --",
    "]]><!--",
    "a\ud83d\ude00b".encode("utf-16", "surrogatepass").decode("utf-16"),
]


@pytest.mark.parametrize("text", INJECTED)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_written_is_text_and_comes_back_as_text(server: Running, text: str, stream: bool) -> None:
    status, headers, payload = request(server, content=body(text, stream=stream))
    assert status == 200
    assert server.backends[0].heard[-1][0][-1].text == text
    assert headers["x-content-type-options"] == "nosniff"
    if stream:
        assert headers["content-type"].startswith("text/event-stream")
        plain = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", b"\r\n" + payload).removesuffix(b"\r\n").decode()
        result = events(plain)
        assert result[-1] == "[DONE]"
        assert result.count("[DONE]") == 1
        assert "".join(item["choices"][0]["delta"].get("content", "") for item in result[:-1]) == text
    else:
        assert headers["content-type"] == "application/json"
        assert json.loads(payload)["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("role", ["system<|im_end|>", "assistant\n", "USER", "", "tool", "{{ role }}", "root"])
def test_roles_are_three(server: Running, role: str) -> None:
    before = heard(server)
    content = json.dumps({"model": "parrot", "messages": [{"role": role, "content": "x"}]}).encode()
    assert request(server, content=content)[0] == 400
    assert heard(server) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"0",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"a":' * 3000,
        b"1" * 6000,
        b"NaN",
        b'{"model":"parrot","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"parrot","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"model":"parrot","messages":[{"role":"user","content":"x"}],"max_tokens":1e30}',
        b'{"model":"parrot","messages":[{"role":"user","content":"\\udfff"}]}',
        b'{"model":"parrot","messages":[{"role":"user","content":"a\\u0000b"}]}',
        b'{"model":"parrot","model":{"$ref":"x"},"messages":[]}',
        b'{"__proto__":{"x":1}}',
        b'\xef\xbb\xbf{"model":1}',
    ],
)
def test_bodies_that_are_no_request(server: Running, content: bytes) -> None:
    status, _, payload = request(server, content=content or b" ")
    assert status == 400
    error = json.loads(payload)["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500


def test_an_error_repeats_nothing_that_was_sent(server: Running) -> None:
    secret = "MARMALADE"
    for content in (
        body("x", **{secret.lower(): secret}),
        body("x", temperature=secret),
        body("x", stop=[secret * 40]),
        json.dumps({"model": secret, "messages": [{"role": "user", "content": secret}]}).encode(),
        json.dumps({"model": "parrot", "messages": secret}).encode(),
    ):
        status, _, payload = request(server, content=content)
        assert status in (400, 404)
        assert secret.encode() not in payload


def test_the_page_holds_to_its_policy() -> None:
    from tunesmith.serve.app import DOCS_FOLDER

    texts = {name: (DOCS_FOLDER / name).read_text() for name in ("docs.html", "docs.css", "docs.js")}
    for text in texts.values():
        assert not re.search(r"https?://", text)
    assert not re.search(r"\son\w+=|style=|<script>|<style", texts["docs.html"])
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "srcdoc"):
        assert way not in texts["docs.js"]
    assert FREE.rate > 1e6
