"""The pages as one app behind a door: header, tabs, the server on the loopback address."""

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

from tunesmith.errors import MissingExtra
from tunesmith.ui.state import TABS, State
from tunesmith.web.cookie_auth import Door, Kept

LARGEST_UPLOAD = 512 << 20  # bytes: 100,000 rows of 5 KB
PAGES = {  # files of a run or an audit that are pages of their own: written by report/, offline and without script
    "runs": ("report.html", "audit.html", "curve.html"),
    "audits": ("audit.html",),
}
TITLES = {name: name.capitalize() for name in TABS}


@dataclass(frozen=True)
class Serving:
    """The pages, being served: `url` holds the token, `thread` lives as long as the server does."""

    url: str
    token: str
    hosts: tuple[str, ...]
    thread: threading.Thread


@contextlib.contextmanager
def serving_ui(runs: Path, *, run: str = "", port: int = 0, here: Path | None = None) -> Iterator[Serving]:
    """Inside the block the pages answer on 127.0.0.1. `run` is chosen at first; `here` holds audits and recipes.

    Raises MissingExtra without gradio, ResourceError when the port is taken, RunError for a run that is not there.
    """
    from tunesmith.web.local_server import LOOPBACK, listening, serving

    with tempfile.TemporaryDirectory(prefix="tunesmith-ui-") as home, listening(port) as own:
        at = own.getsockname()[1]
        hosts = (f"{LOOPBACK}:{at}", f"localhost:{at}")
        token = secrets.token_urlsafe(32)
        place = here or Path.cwd()
        app = make(runs.resolve(), place.resolve(), Path(home), run)
        pages = {
            name: Kept(folder, PAGES[name])
            for name, folder in (("runs", runs.resolve()), ("audits", place.resolve() / "audits"))
        }
        door = Door(app, hosts=hosts, token=token, pages=pages, largest=LARGEST_UPLOAD)
        with serving(door, own) as thread:
            yield Serving(f"http://{hosts[0]}/?token={token}", token, hosts, thread)


def make(runs: Path, here: Path, home: Path, run: str = "") -> Any:
    """The pages as an ASGI app, not yet guarded. Raises MissingExtra, RunError."""
    gr = gradio(home)

    async def made() -> Any:
        return _made(gr, runs, here, home, run)

    with ThreadPoolExecutor(1) as beside:  # inside a loop Gradio makes no loops of its own, which nobody would close
        return beside.submit(asyncio.run, made()).result()


def _made(gr: Any, runs: Path, here: Path, home: Path, run: str) -> Any:
    from tunesmith.ui.theme import CSS, HEAD, theme

    runs.mkdir(parents=True, exist_ok=True)
    with gr.Blocks(title="tunesmith", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="masthead"):
            gr.HTML('<p class="brand">tunesmith</p>', scale=1)
            chosen = gr.Dropdown([], value=None, label="Run", elem_id="chosen-run", scale=1, min_width=260)
        rows = gr.State("")
        with gr.Tabs(selected="start", overflow_behavior="wrap", elem_id="pages") as tabs:
            state = State(runs, here / "audits", here / "recipes", home, chosen, tabs, blocks, rows)
            if run:
                state.folder(run)
            for name in TABS:
                with gr.Tab(TITLES[name], id=name, elem_id=f"tab-{name}"):
                    importlib.import_module(f"tunesmith.ui.{name}_page").page(state)
        kept = gr.BrowserState(run, storage_key="tunesmith-run")
        blocks.load(state.chosen, kept, chosen, queue=False, show_progress="hidden", api_visibility="private")
        chosen.change(lambda name: name, chosen, kept, queue=False, show_progress="hidden", api_visibility="private")
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
    return Started(app)


class Started:
    """The app, begun in the server's own loop with the first request: its queue, and what clears up old sessions."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._life: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request (ASGI)."""
        if self._life is None:
            self._life = asyncio.create_task(self._live())
        await self._begun.wait()
        await self._app(scope, receive, send)

    async def _live(self) -> None:
        """What the app does as long as it lives; the server's loop cancels it in the end."""
        async with self._app.router.lifespan_context(self._app):
            self._begun.set()
            await asyncio.Event().wait()


def gradio(home: Path) -> Any:
    """Gradio, told before it loads to send nothing and to keep uploads in `home`. Raises MissingExtra."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(home / "files")
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["GRADIO_SSR_MODE"] = "False"
    os.environ["GRADIO_MCP_SERVER"] = "False"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it loads itself
            import gradio as gr
            import gradio.routes
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise MissingExtra(
            "the pages need the package 'gradio', which is not installed",
            where="tunesmith ui",
            next="pip install 'tunesmith[ui]'",
        ) from error
    return gr
