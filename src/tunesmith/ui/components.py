"""Components that several pages use: a pane for escaped HTML, the text editor, and a watch on the chosen run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.ui.html import ACTION_JS, COPY_JS
from tunesmith.ui.state import QUIET, State

FOLDER = Path(__file__).parent


def pane(value: str = "", *, label: str = "", live: bool = False, elem_id: str = "") -> Any:
    """Returns a gr.HTML for the markup of `ui.html`. Buttons with data-do fire its event `action`, data-copy copies.

    `live` makes screen readers announce changes.
    """
    import gradio as gr

    role = f' role="region" aria-label="{label}"' if label else ""
    return gr.HTML(
        value,
        html_template=f"<div{role}{' aria-live=polite' if live else ''}>${{value}}</div>",
        css_template=_read_asset("marks.css"),
        js_on_load=ACTION_JS + COPY_JS,
        apply_default_css=False,
        elem_id=elem_id or None,
    )


def text_editor(document: Callable[[list[str]], dict[str, str]]) -> Any:
    """Returns an editor that highlights claims and offers downloads; fires `edited` once typing pauses.

    Its value: {"text", "claims": [{"id", "start", "end", "verdict", …}], "version", "busy", "status"}, offsets in code
    points. `document` takes [kind, text] and returns {"name", "type", "data"} in base64, or {"error"}.
    """
    import gradio as gr

    document.__name__ = "document"
    return gr.HTML(
        empty_text(),
        html_template=_read_asset("letter.html"),
        css_template=_read_asset("letter.css"),
        js_on_load=_read_asset("letter.js"),
        apply_default_css=False,
        server_functions=[document],
        elem_id="letter",
    )


def empty_text() -> dict[str, Any]:
    """Returns the editor's value for an empty text."""
    return {"text": "", "claims": [], "version": 0, "busy": False, "status": ""}


def watch_run(state: State, products: Sequence[str], files: Sequence[str] = ()) -> Any:
    """Returns a gr.State that changes with the chosen run and its products and files; pages render from it.

    It is updated when a tab is opened, so new results appear without losing what the user typed. Its value: the run's
    name, then the modification times of the fingerprints of `products` and of `files`, one a line.
    """
    import gradio as gr

    def read_version(name: str | None) -> str:
        lines = [name or ""]
        try:
            folder = state.folder(name)
        except TunesmithError:
            return lines[0]
        for file in (*(f".seals/{product}.json" for product in products), *files):
            with contextlib.suppress(OSError):
                lines.append(f"{file} {(folder / file).stat().st_mtime_ns}")
        return "\n".join(lines)

    version = gr.State(None)
    events = [state.run.change, state.tabs.change]  # one at a time: two at once would render the page twice
    gr.on(events, read_version, state.run, version, trigger_mode="always_last", concurrency_limit=1, **QUIET)
    return version


def run_name(version: str | None) -> str:
    """Returns the run's name from the value of `watch_run`."""
    return (version or "").partition("\n")[0]


@cache
def _read_asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
