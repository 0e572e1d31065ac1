"""Page Start: the demo run in one click, and the list of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.ui import html, jobs, progress
from tunesmith.ui.state import QUIET, State
from tunesmith.ui.train_page import SAMPLES

RECIPE = "shopsphere"
RUN_NAME = f"{RECIPE}-small"
REFRESH_SECONDS = 2.0  # while a run is running
COLUMNS = ("run", "state", "score", "base → tuned", "95 % interval", "verdict", "date", "size")


def page(state: State) -> None:
    """Builds the page inside its tab."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            gr.HTML(_intro_html())
            with gr.Row():
                start_button = gr.Button("Start the demo run", variant="primary", elem_id="demo-begin")
                stop_button = gr.Button("Stop", visible=False, elem_id="demo-stop")
                write_button = gr.Button("Write with the model", variant="primary", visible=False, elem_id="demo-write")
        with gr.Column(scale=2, min_width=300):
            demo = gr.HTML(elem_id="demo-progress")
    error_box = gr.HTML(elem_id="start-trouble")
    runs_table = gr.HTML(elem_id="start-runs")
    version = gr.State("")
    timer = gr.Timer(REFRESH_SECONDS, active=False)
    outputs = [demo, start_button, stop_button, write_button, runs_table, timer, version]

    def refresh(last_key: str = "", *, force: bool = True) -> Any:
        current = progress.read_progress(state.runs / RUN_NAME) if (state.runs / RUN_NAME).is_dir() else None
        key = current.key if current else "none"
        if key == last_key and not force:
            return [gr.skip() for _ in outputs]
        running, evaluated = (
            bool(current and current.pid),
            bool(current and "evaluate" in current.finished),
        )
        return (
            _demo_html(current),
            gr.Button(
                visible=not running and not (current and "report" in current.finished),
                value="Resume the demo run" if current and current.events else "Start the demo run",
            ),
            gr.Button(visible=running),
            gr.Button(visible=evaluated and not running),
            _runs_table(state.runs),
            gr.Timer(active=running),
            key,
        )

    def start() -> Any:
        try:
            _start_demo(state)
            message = ""
        except TunesmithError as error:
            message = html.error_boxes(error)
        return (message, state.select_run(RUN_NAME), *refresh())

    def stop() -> Any:
        try:
            jobs.stop(state.folder(RUN_NAME))
            message = html.part(html.paragraph("It stops after the current step and saves everything.", "soft"))
        except TunesmithError as error:
            message = html.error_boxes(error)
        return (message, *refresh())

    start_button.click(start, None, [error_box, state.run, *outputs], **QUIET)
    stop_button.click(stop, None, [error_box, *outputs], **QUIET)
    write_button.click(
        lambda: (state.select_run(RUN_NAME), gr.Tabs(selected="write")), None, [state.run, state.tabs], **QUIET
    )
    timer.tick(lambda last_key: refresh(last_key, force=False), version, outputs, **QUIET)
    state.blocks.load(refresh, None, outputs, **QUIET)
    state.run.change(lambda: _runs_table(state.runs), None, runs_table, **QUIET)


def _start_demo(state: State) -> None:
    import tunesmith
    from tunesmith.config.recipe import read_recipe

    run = tunesmith.open_run(read_recipe(RECIPE, small=True), state.runs)
    jobs.start(run.path, ["run", RECIPE, "--small", "--runs", str(state.runs), *SAMPLES])


def _intro_html() -> str:
    return html.part(
        html.heading("Start here"),
        html.paragraph(
            "tunesmith turns a table of examples into a small writing model and measures it before you use it. "
            "The demo run shows every step with rows and a model that come with the package:"
        ),
        "<ol><li>240 rows of step-by-step help for a made-up shopping app are checked and split.</li>"
        "<li>A model with 135 million parameters is trained on 144 of them.</li>"
        "<li>The tuned and the base model answer the same held-out questions and are compared.</li>"
        "<li>A file for llama.cpp and Ollama is exported and verified on the same questions.</li>"
        "<li>A report says whether tuning helped. Then you can write with the model.</li></ol>",
        html.tiles(
            [
                ("≈ 10 min", "on two CPU cores, no GPU needed"),
                ("≈ 0.8 GB", "of disk space"),
                ("≈ 3 GB", "of memory"),
                ("nothing", "leaves this machine"),
            ]
        ),
        html.paragraph(
            "The model's package is downloaded once if it is not installed. You can close this page or stop the run at "
            "any time and resume it later.",
            "soft",
        ),
    )


def _demo_html(current: progress.Progress | None) -> str:
    if current is None:
        return ""
    pieces = [
        html.heading("The demo run"),
        progress.headline(current),
        progress.stages_html(current),
        progress.progress_bar(current),
    ]
    if current.pid or "train" in current.finished or current.events:
        pieces.append(progress.figure_tiles(current))
    if "report" in current.finished:
        pieces.append(f"<p>{html.link(f'/pages/runs/{RUN_NAME}/report.html', 'Read the report')}</p>")
    if "prepare" in current.finished:
        pieces.append(f"<p>{html.link(f'/pages/runs/{RUN_NAME}/audit.html', 'Audit of the rows')}</p>")
    if current.pid and current.job.log:
        pieces.append(html.log(current.job.log, 12))
    return html.part(*pieces)


def _runs_table(folder: Path) -> str:
    """Returns the table of runs with links to their reports."""
    from tunesmith.commands.runs import list_runs

    rows = list_runs(folder) if folder.is_dir() else []
    if not rows:
        return html.part(html.heading("Runs"), html.paragraph(f"There are no runs in {folder} yet.", "soft"))
    table_rows = []
    for row in rows:
        cells = row.cells()
        if jobs.read_job(folder / row.name).status == "running" or jobs.lock_owner(folder / row.name):
            cells["state"] = "running"
        pages = [
            html.link(f"/pages/runs/{row.name}/{name}.html", name)
            for name in ("report", "audit")
            if (folder / row.name / f"{name}.html").is_file()
        ]
        note = f'<br><span class="soft">{html.escape(row.note)}</span>' if row.note else ""
        other_cells = (html.escape(cells[name]) for name in COLUMNS[1:])
        table_rows.append((html.escape(row.name) + note, *other_cells, ", ".join(pages)))
    table = html.table((*COLUMNS, "pages"), table_rows)
    box = f'<div class="card scroll" tabindex="0" role="region" aria-label="Runs">{table}</div>'
    return html.part(html.heading("Runs"), box)
