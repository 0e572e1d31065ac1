"""Access control: every route without the token, from another host, and from another site."""

from __future__ import annotations

import copy
import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'tunesmith[ui]'")

from finished_runs import finish, make_recipe
from tunesmith.errors import ResourceError, RunError
from tunesmith.ui.app import LARGEST_UPLOAD, RunningServer, make_app, serve_ui
from tunesmith.web import cookie_auth

OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ui")
    finish(make_recipe("one"), folder / "runs/one")
    (folder / "runs/one/report.html").write_text("<p>the report</p>")
    (folder / "secret.html").write_text("secret")
    (folder / "runs/one/audit.html").symlink_to(folder / "secret.html")
    (folder / "runs/away").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[RunningServer]:
    with serve_ui(place / "runs", here=place) as serving:
        yield serving


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers = response.status, response.headers
        self.body = response.read() if response.headers.get("content-type") != "text/event-stream" else b""


def ask(served: RunningServer, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    all_headers = {"Host": served.hosts[0]} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", int(served.hosts[0].split(":")[1]), timeout=10)
    try:
        connection.request(method, path, body, all_headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def cookie(served: RunningServer) -> str:
    answer = ask(served, f"/?token={served.token}")
    set_cookie = answer.headers["set-cookie"]
    assert answer.status == 200
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in set_cookie.split(";")}
    assert served.token not in set_cookie and served.token.encode() not in answer.body
    return str(set_cookie.split(";")[0])


def every_route(place: Path, home: Path) -> list[tuple[str, str]]:
    """Returns (method, path) of all routes of Gradio and its mounted app."""
    found_routes: list[tuple[str, str]] = []

    def walk(routes: Any) -> None:
        for route in routes:
            inner = getattr(route, "original_router", None) or getattr(route, "app", None)
            if inner is not None and hasattr(inner, "routes") and not hasattr(route, "methods"):
                walk(inner.routes)
                continue
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            found_routes.extend((method, path) for method in getattr(route, "methods", None) or ())

    walk(make_app(place / "runs", place, home)._app.routes)
    return found_routes


def test_every_route_needs_the_token(served: RunningServer, place: Path, tmp_path: Path) -> None:
    routes = every_route(place, tmp_path)
    paths = {path for _, path in routes}
    assert len(routes) > 60
    assert {
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
        "/gradio_api/upload",
        "/gradio_api/file=x",
        "/",
    } <= paths
    origin = f"http://{served.hosts[0]}"
    for method, path in [*routes, ("GET", "/pages/runs/one/report.html"), ("GET", "/gradio_api/mcp/sse")]:
        assert ask(served, path, method, Origin=origin).status == 401, (method, path)
    wrong = f"tunesmith-{served.hosts[0].split(':')[1]}={'x' * 43}"
    assert ask(served, "/", Cookie=wrong).status == 401
    assert ask(served, "/?token=wrong").status == 401
    assert ask(served, f"/config?token={served.token}").status == 401  # the token is only accepted at /
    answer = ask(served, "/", Accept="text/html")
    assert answer.status == 401 and b"that the terminal shows" in answer.body


def test_the_cookie_grants_access(served: RunningServer, cookie: str) -> None:
    answer = ask(served, "/", Cookie=cookie, Accept_Encoding="br, gzip")
    assert answer.status == 200 and b"gradio_config" in answer.body
    policy = answer.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([\w-]+)'", policy)
    scripts = re.search(r"script-src [^;]*", policy)
    assert nonce and scripts and "unsafe-inline" not in scripts[0]
    assert answer.body.count(b"<script") == answer.body.count(f'<script nonce="{nonce[1]}"'.encode()) > 3
    assert not re.search(rb'(?:src|href)="https?://', answer.body)
    assert ask(served, "/config", Cookie=cookie).status == 200
    assert ask(served, "/theme.css", Cookie=cookie).headers["referrer-policy"] == "no-referrer"
    assert ask(served, "/", Cookie=cookie).headers["content-security-policy"] != policy  # a nonce is used once
    second = ask(served, "/", Cookie=f"a=b; {cookie}; c=d", Host=served.hosts[1])
    assert second.status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", ""])
def test_other_hosts_are_refused(served: RunningServer, cookie: str, host: str) -> None:
    assert ask(served, "/", Cookie=cookie, Host=host).status == 421
    assert ask(served, f"/?token={served.token}", Host=host).status == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_other_origins_are_refused(served: RunningServer, cookie: str, origin: str) -> None:
    for method, path in (("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload"), ("GET", "/config")):
        assert ask(served, path, method, b"{}", Cookie=cookie, Origin=origin).status == 403


def test_writing_needs_the_origin_and_other_sites_cannot_read(served: RunningServer, cookie: str) -> None:
    assert ask(served, "/gradio_api/queue/join", "POST", b"{}", Cookie=cookie).status == 403
    for site in ("cross-site", "same-site"):  # a page on another port is same-site
        assert ask(served, "/config", Cookie=cookie, Sec_Fetch_Site=site).status == 403
        comes: dict[str, Any] = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
        assert ask(served, "/", Cookie=cookie, **comes).status == 200  # the user follows a link
        assert ask(served, "/", Cookie=cookie, **(comes | {"Sec_Fetch_Dest": "iframe"})).status == 403
    assert ask(served, "/config", Cookie=cookie, Sec_Fetch_Site="same-origin").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/docs",
        "/openapi.json",
        "/gradio_api/proxy=http://evil.example/",
        "/gradio_api/mcp/",
        "/gradio_api/mcp/sse",
        "/gradio_api/run-history/buckets",
        "/gradio_api/vibe-code",
        "/gradio_api/call/look",
        "/monitoring",
        "/gradio_api/dev/reload",
        "/gradio_api/deep_link",
        "/login",
        "/manifest.json",
    ],
)
def test_unneeded_routes_are_not_served(served: RunningServer, cookie: str, path: str) -> None:
    assert ask(served, path, Cookie=cookie).status == 404


def test_local_files_are_not_served(served: RunningServer, cookie: str, place: Path) -> None:
    for path in ("/etc/passwd", str(place / "secret.html"), str(place / "runs/one/report.html"), "../../etc/passwd"):
        assert ask(served, f"/gradio_api/file={path}", Cookie=cookie).status in (403, 404)
    for path in ("/static/../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py", "/svelte/../../routes.py"):
        assert ask(served, path, Cookie=cookie).status in (403, 404)


def test_pages_of_runs(served: RunningServer, cookie: str) -> None:
    answer = ask(served, "/pages/runs/one/report.html", Cookie=cookie)
    assert answer.status == 200 and b"the report" in answer.body
    assert "sandbox" in answer.headers["content-security-policy"]
    for path in (
        "/pages/runs/one/audit.html",  # a symlink to a file elsewhere
        "/pages/runs/away/secret.html",  # a folder that is a symlink
        "/pages/runs/one/recipe.yaml",
        "/pages/runs/one/replies/base.jsonl",
        "/pages/runs/../secret.html",
        "/pages/runs/%2e%2e/secret.html",
        "/pages/runs/..%2f/secret.html",
        "/pages/other/one/report.html",
        "/pages/runs//report.html",
        "/pages/runs/one/",
    ):
        assert ask(served, path, Cookie=cookie).status == 404, path


def test_request_bodies_are_limited(served: RunningServer, cookie: str) -> None:
    origin = f"http://{served.hosts[0]}"
    for path, most in (
        ("/gradio_api/queue/join", cookie_auth.MAX_FORM_BYTES),
        ("/gradio_api/upload", LARGEST_UPLOAD + (2 << 20)),
    ):
        answer = ask(served, path, "POST", b"", Cookie=cookie, Origin=origin, Content_Length=str(most + 1))
        assert answer.status == 413
    assert ask(
        served, "/gradio_api/queue/join", "POST", b"", Cookie=cookie, Origin=origin, Content_Length="-1"
    ).status in (400, 413)


def test_port_in_use_and_missing_run(served: RunningServer, place: Path) -> None:
    port = int(served.hosts[0].split(":")[1])
    with pytest.raises(ResourceError, match="already in use"), serve_ui(place / "runs", port=port):
        raise AssertionError
    with pytest.raises(RunError, match="no run called 'none'"), serve_ui(place / "runs", run="none"):
        raise AssertionError


def test_missing_gradio_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from tunesmith.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtra, match=r"tunesmith\[ui\]"):
        make_app(tmp_path / "runs", tmp_path, tmp_path)


def test_components_are_listed_while_events_add_some(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    pages = make_app(tmp_path / "runs", tmp_path, tmp_path / "home")._app
    session = copy.copy(next(r.app for r in pages.routes if hasattr(r.app, "get_blocks")).get_blocks().default_config)
    for number, _ in enumerate(session.blocks.values()):
        session.blocks[-number - 1] = None
