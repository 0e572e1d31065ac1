"""The theme, and components that several pages use: escaped HTML, the text editor, pages drawn for the chosen run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TunesmithError
from tunesmith.ui.html import ACTION_JS, COPY_JS, error_note
from tunesmith.ui.state import QUIET, State

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.runs.run import Run


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


def draw_for_run(
    state: State, build: Callable[[Recipe, Run], None], products: Sequence[str], files: Sequence[str] = ()
) -> None:
    """Draws a page by calling `build` for the chosen run, or shows why the run or a product cannot be read.

    The page is drawn again when the chosen run, one of `products` (their fingerprints) or one of `files` has changed
    since a tab was last opened, so that new results appear without losing what the user typed.
    """
    import gradio as gr

    version = gr.Textbox(visible="hidden")  # the run's name, then the modification times, one a line

    def read_version(name: str | None) -> Any:
        if not name and state.has_runs():
            return gr.skip()  # the browser has not chosen a run yet
        lines = [name or ""]
        try:
            folder = state.folder(name)
        except TunesmithError:
            return lines[0]
        for file in (*(f".fingerprints/{product}.json" for product in products), *files):
            with contextlib.suppress(OSError):
                lines.append(f"{file} {(folder / file).stat().st_mtime_ns}")
        return "\n".join(lines)

    def draw(current: str | None) -> None:
        try:
            build(*state.open_run((current or "").partition("\n")[0]))
        except TunesmithError as error:
            pane(error_note(error))

    # A page is drawn once per version: what is clicked while a page is drawn again is lost.
    events = [state.run.change, state.tabs.change]
    gr.on(events, read_version, state.run, version, trigger_mode="always_last", concurrency_limit=1, **QUIET)
    gr.render([version], [version.change], show_progress="hidden", concurrency_limit=1, concurrency_id="draw")(draw)


@cache
def _read_asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


CSS = (Path(__file__).parent / "pages.css").read_text(encoding="utf-8")
HEAD = '<meta name="color-scheme" content="light dark">'
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def theme() -> Any:
    """Returns the Gradio theme: stone neutrals with teal for primary actions."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        block_shadow="none",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
    )
