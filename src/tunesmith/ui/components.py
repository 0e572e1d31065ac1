"""Components that several pages are made of: a pane of escaped markup, and the letter that can be edited."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.ui.html import COPY, DELEGATE
from tunesmith.ui.state import QUIET, State

HERE = Path(__file__).parent


def pane(value: str = "", *, label: str = "", live: bool = False, within: str = "") -> Any:
    """A gr.HTML for what `marks` makes. Its buttons with data-do fire the event `asked`; data-copy copies a text.

    `live`: a screen reader says what changes. `within` is the component's id.
    """
    import gradio as gr

    told = f' role="region" aria-label="{label}"' if label else ""
    return gr.HTML(
        value,
        html_template=f"<div{told}{' aria-live=polite' if live else ''}>${{value}}</div>",
        css_template=_file("marks.css"),
        js_on_load=DELEGATE + COPY,
        apply_default_css=False,
        elem_id=within or None,
    )


def letter(document: Callable[[list[str]], dict[str, str]]) -> Any:
    """A text with marks behind it, editable, to be copied and taken along; fires `edited` when a pause follows an edit.

    Its value: {"text", "claims": [{"id", "start", "end", "verdict", …}], "version", "busy", "say"}, offsets in code
    points. `document` is given [kind, text] and returns {"name", "type", "data"} in base64, or {"error"}.
    """
    import gradio as gr

    document.__name__ = "document"
    return gr.HTML(
        blank(),
        html_template=_file("letter.html"),
        css_template=_file("letter.css"),
        js_on_load=_file("letter.js"),
        apply_default_css=False,
        server_functions=[document],
        elem_id="letter",
    )


def blank() -> dict[str, Any]:
    """The value of a letter that holds nothing."""
    return {"text": "", "claims": [], "version": 0, "busy": False, "say": ""}


def stamp(state: State, products: Sequence[str], files: Sequence[str] = ()) -> Any:
    """A gr.State that changes when the chosen run, or one of these of it, is another: what a page is drawn from.

    It is looked at when a page is opened, so that what was made meanwhile is there and nothing typed is lost.
    Its value: the run's name, then the seals of `products` and the times of `files`, a line each.
    """
    import gradio as gr

    def look(name: str | None) -> str:
        said = [name or ""]
        try:
            folder = state.folder(name)
        except TunesmithError:
            return said[0]
        for each in (*(f".seals/{product}.json" for product in products), *files):
            with contextlib.suppress(OSError):
                said.append(f"{each} {(folder / each).stat().st_mtime_ns}")
        return "\n".join(said)

    made = gr.State(None)
    events = [state.run.change, state.tabs.change]  # one after the other: two at once would both draw the page
    gr.on(events, look, state.run, made, trigger_mode="always_last", concurrency_limit=1, **QUIET)
    return made


def first_line(seen: str | None) -> str:
    """The run's name in the value of a `stamp`."""
    return (seen or "").partition("\n")[0]


@cache
def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
