"""The Gradio app behind cookie authentication: header, tabs, and the server on the loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.extras import missing_extras_named
from tunesmith.ui.state import TABS, State
from tunesmith.web.cookie_auth import CookieAuth, StaticPages

LARGEST_UPLOAD = 512 << 20  # bytes: 100,000 rows of 5 KB
PAGES = {  # report files of a run or an audit that are served as they are: static and without scripts
    "runs": ("report.html", "audit.html", "curve.html"),
    "audits": ("audit.html",),
}
TITLES = {name: name.capitalize() for name in TABS}


@dataclass(frozen=True)
class RunningServer:
    """The running server. `url` contains the token; `thread` is alive as long as the server runs."""

    url: str
    token: str
    hosts: tuple[str, ...]
    thread: threading.Thread


@contextlib.contextmanager
def serve_ui(runs: Path, *, run: str = "", port: int = 0, here: Path | None = None) -> Iterator[RunningServer]:
    """Serves the pages on 127.0.0.1 inside the block. `run` is selected first; `here` holds audits and recipes.

    Raises MissingExtra without gradio, ResourceError if the port is in use, RunError if the run does not exist.
    """
    from tunesmith.web.server import LOOPBACK, listen, serve_in_thread

    with tempfile.TemporaryDirectory(prefix="tunesmith-ui-") as home, listen(port) as socket:
        bound_port = socket.getsockname()[1]
        hosts = (f"{LOOPBACK}:{bound_port}", f"localhost:{bound_port}")
        token = secrets.token_urlsafe(32)
        place = here or Path.cwd()
        app = make_app(runs.resolve(), place.resolve(), Path(home), run)
        pages = {
            name: StaticPages(folder, PAGES[name])
            for name, folder in (("runs", runs.resolve()), ("audits", place.resolve() / "audits"))
        }
        door = CookieAuth(app, hosts=hosts, token=token, pages=pages, max_upload=LARGEST_UPLOAD)
        with serve_in_thread(door, socket) as thread:
            yield RunningServer(f"http://{hosts[0]}/?token={token}", token, hosts, thread)


def make_app(runs: Path, here: Path, home: Path, run: str = "") -> Any:
    """Returns the pages as an ASGI app without authentication. Raises MissingExtra, RunError."""
    gr = load_gradio(home)

    async def build() -> Any:
        return _build_app(gr, runs, here, home, run)

    with ThreadPoolExecutor(1) as executor:  # within a running event loop Gradio creates none, which would stay open
        return executor.submit(asyncio.run, build()).result()


def _build_app(gr: Any, runs: Path, here: Path, home: Path, run: str) -> Any:
    from tunesmith.ui.components import CSS, HEAD, theme

    runs.mkdir(parents=True, exist_ok=True)
    with gr.Blocks(title="tunesmith", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="masthead"):
            gr.HTML('<p class="brand">tunesmith</p>', scale=1)
            run_choice = gr.Dropdown([], value=None, label="Run", elem_id="chosen-run", scale=1, min_width=260)
        rows = gr.State("")
        with gr.Tabs(selected="start", overflow_behavior="wrap", elem_id="pages") as tabs:
            state = State(runs, here / "audits", here / "recipes", home, run_choice, tabs, blocks, rows)
            if run:
                state.folder(run)
            for name in TABS:
                with gr.Tab(TITLES[name], id=name, elem_id=f"tab-{name}"):
                    importlib.import_module(f"tunesmith.ui.{name}_page").page(state)
        stored_run = gr.BrowserState(run, storage_key="tunesmith-run")
        blocks.load(
            state.select_run, stored_run, run_choice, queue=False, show_progress="hidden", api_visibility="private"
        )
        run_choice.change(
            lambda name: name, run_choice, stored_run, queue=False, show_progress="hidden", api_visibility="private"
        )
    blocks.blocks = _ComponentDict(blocks.blocks)
    blocks.queue(default_concurrency_limit=4, max_size=64, api_open=False)
    app = gr.mount_gradio_app(
        gr.routes.App(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        allowed_paths=[],
        blocked_paths=[],
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    return LazyLifespan(app)


class _ComponentDict(dict[int, Any]):
    """The components of a browser session, by id.

    Gradio 6.31 iterates over them in the thread that draws a page while events add some in the server's thread, and
    fails with "dictionary changed size during iteration"; the page stays as it was.
    """

    def values(self) -> Any:
        return [*super().values()]


class LazyLifespan:
    """Starts the app's lifespan (queue and cleanup of old sessions) in the server's loop at the first request."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lifespan_task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request (ASGI)."""
        if self._lifespan_task is None:
            self._lifespan_task = asyncio.create_task(self._run_lifespan())
        await self._started.wait()
        await self._app(scope, receive, send)

    async def _run_lifespan(self) -> None:
        """Runs the app's lifespan until the server's loop cancels it."""
        async with self._app.router.lifespan_context(self._app):
            self._started.set()
            await asyncio.Event().wait()


def load_gradio(home: Path) -> Any:
    """Imports Gradio with telemetry off and uploads kept in `home`. Raises MissingExtra."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(home / "files")
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["GRADIO_SSR_MODE"] = "False"
    os.environ["GRADIO_MCP_SERVER"] = "False"
    with missing_extras_named("ui"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that Gradio imports
        import gradio as gr
        import gradio.routes
    return gr
