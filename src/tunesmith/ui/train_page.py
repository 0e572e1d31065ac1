"""Page Train: start, watch, stop and resume the chosen run. Everything shown is read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import read_recipe
from tunesmith.errors import TunesmithError
from tunesmith.ui import html, jobs, progress
from tunesmith.ui.state import QUIET, State

REFRESH_SECONDS = 2.0  # between two refreshes
SAMPLES = ("--set", "train.samples=2")  # sample replies at each validation
COMMANDS = [
    ("all remaining steps: prepare, train, evaluate, export, report", "run"),
    ("prepare only", "prepare"),
    ("train only", "train"),
    ("evaluate only", "evaluate"),
    ("report only", "report"),
]


def page(state: State) -> None:
    """Builds the page inside its tab."""
    import gradio as gr

    state_html = gr.HTML(elem_id="train-state")
    with gr.Row(equal_height=True):
        command_choice = gr.Dropdown(
            COMMANDS,
            value="run",
            label="Steps",
            info="Steps that are up to date are skipped.",
            scale=3,
            min_width=280,
            filterable=False,
            elem_id="train-what",
        )
        with gr.Column(scale=2, min_width=240), gr.Row():
            start_button = gr.Button("Start", variant="primary", elem_id="train-begin")
            stop_button = gr.Button("Stop", elem_id="train-stop", interactive=False)
    with gr.Accordion("Train again", open=False):
        again = gr.Checkbox(
            False,
            label="Train again; the old adapter is kept in old/",
            info="Needed after a change of the recipe or the rows. The old adapter is kept in old/.",
            elem_id="train-again",
        )
    error_box = gr.HTML(elem_id="train-trouble")
    curves = gr.HTML(elem_id="train-curves")
    with gr.Accordion("Sample replies at each validation", open=True):
        replies = gr.HTML(elem_id="train-samples")
    with gr.Accordion("Output of the command", open=False):
        output = gr.HTML(elem_id="train-log")
    version = gr.State("")
    timer = gr.Timer(REFRESH_SECONDS, active=True)
    outputs = [state_html, start_button, stop_button, curves, replies, output, version]

    def refresh(name: str | None, last_key: str = "", *, force: bool = True) -> Any:
        try:
            current = progress.read_progress(state.folder(name))
        except TunesmithError as error:
            key = f"none: {error}"
            if key == last_key and not force:
                return [gr.skip() for _ in outputs]
            return (_no_run_html(error), gr.Button(interactive=False), gr.Button(interactive=False), "", "", "", key)
        if current.key == last_key and not force:
            return [gr.skip() for _ in outputs]
        stoppable = current.job.status == "running"
        return (
            _state_html(str(name), current),
            gr.Button("Resume" if is_resumable(current) else "Start", interactive=not current.pid),
            gr.Button(interactive=stoppable),
            html.part(progress.curves_html(current), progress.notes_html(current)),
            html.part(progress.samples_html(current)),
            html.part(html.log(current.job.log) or html.paragraph("Nothing yet.", "soft")),
            current.key,
        )

    def start(name: str | None, command: str, retrain: bool) -> Any:
        try:
            folder = state.folder(name)
            flags = ["--again"] if retrain and command in ("run", "train") else []
            jobs.start(
                folder, [command, str(folder), "--runs", str(state.runs), *_sample_options(command, folder), *flags]
            )
            message = ""
        except TunesmithError as error:
            message = html.error_boxes(error)
        return (message, gr.Checkbox(value=False), *refresh(name))

    def stop(name: str | None) -> Any:
        try:
            jobs.stop(state.folder(name))
            message = html.part(html.paragraph("It stops after the current step and writes a checkpoint.", "soft"))
        except TunesmithError as error:
            message = html.error_boxes(error)
        return (message, *refresh(name))

    start_button.click(start, [state.run, command_choice, again], [error_box, again, *outputs], **QUIET)
    stop_button.click(stop, state.run, [error_box, *outputs], **QUIET)
    timer.tick(lambda name, last_key: refresh(name, last_key, force=False), [state.run, version], outputs, **QUIET)
    state.run.change(lambda name: ("", *refresh(name)), state.run, [error_box, *outputs], **QUIET)


def is_resumable(current: progress.Progress) -> bool:
    """Whether the run was stopped before its report."""
    return bool(current.events) and not current.pid and "report" not in current.finished


def _state_html(name: str, current: progress.Progress) -> str:
    pages = [
        html.link(f"/pages/runs/{name}/{file}", text)
        for file, text in (("audit.html", "Audit of the rows"), ("report.html", "Read the report"))
        if (current.folder / file).is_file()
    ]
    return html.part(
        html.heading(name),
        progress.headline(current),
        progress.stages_html(current),
        progress.progress_bar(current),
        progress.figure_tiles(current),
        f"<p>{' · '.join(pages)}</p>" if pages else "",
    )


def _no_run_html(error: TunesmithError) -> str:
    advice = "Start the demo run on the page Start, or create a recipe on the page Recipe."
    return html.part(html.heading("Train"), html.paragraph("No run is chosen."), html.paragraph(advice, "soft"))


def _sample_options(command: str, folder: Path) -> Sequence[str]:
    """Returns options that turn on sample replies if the engine can write them and the recipe sets no number."""
    settings = read_recipe(str(folder)).train
    return SAMPLES if command in ("run", "train") and settings.engine.name == "native" and not settings.samples else ()
