"""Start: a first run that needs a click and nothing else, and the runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.ui import jobs, progress, text_html
from tunesmith.ui.state import QUIET, State
from tunesmith.ui.train_page import SAMPLES

RECIPE = "shopsphere"
NAME = f"{RECIPE}-small"
EVERY = 2.0  # seconds between two looks at a run that is at work
COLUMNS = ("run", "state", "score", "base → tuned", "95 % interval", "verdict", "date", "size")


def page(state: State) -> None:
    """The page, inside its tab."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            gr.HTML(_about())
            with gr.Row():
                begin = gr.Button("Make the demo run", variant="primary", elem_id="demo-begin")
                end = gr.Button("Stop it", visible=False, elem_id="demo-stop")
                write = gr.Button("Write with it", variant="primary", visible=False, elem_id="demo-write")
        with gr.Column(scale=2, min_width=300):
            shown = gr.HTML(elem_id="demo-progress")
    trouble = gr.HTML(elem_id="start-trouble")
    there = gr.HTML(elem_id="start-runs")
    seen = gr.State("")
    ticking = gr.Timer(EVERY, active=False)
    outputs = [shown, begin, end, write, there, ticking, seen]

    def look(before: str = "", *, anew: bool = True) -> Any:
        found = progress.look(state.runs / NAME) if (state.runs / NAME).is_dir() else None
        key = found.key if found else "none"
        if key == before and not anew:
            return [gr.skip() for _ in outputs]
        at_work, done = bool(found and found.at_work), bool(found and "evaluate" in found.done)
        return (
            _demo(found),
            gr.Button(
                visible=not at_work and not (found and "report" in found.done),
                value="Go on with the demo run" if found and found.events else "Make the demo run",
            ),
            gr.Button(visible=at_work),
            gr.Button(visible=done and not at_work),
            _runs(state.runs),
            gr.Timer(active=at_work),
            key,
        )

    def start() -> Any:
        try:
            _start(state)
            said = ""
        except TunesmithError as error:
            said = text_html.trouble(error)
        return (said, state.chosen(NAME), *look())

    def stop() -> Any:
        try:
            jobs.stop(state.folder(NAME))
            said = text_html.part(text_html.paragraph("It ends after the step in hand and keeps everything.", "soft"))
        except TunesmithError as error:
            said = text_html.trouble(error)
        return (said, *look())

    begin.click(start, None, [trouble, state.run, *outputs], **QUIET)
    end.click(stop, None, [trouble, *outputs], **QUIET)
    write.click(lambda: (state.chosen(NAME), gr.Tabs(selected="write")), None, [state.run, state.tabs], **QUIET)
    ticking.tick(lambda before: look(before, anew=False), seen, outputs, **QUIET)
    state.blocks.load(look, None, outputs, **QUIET)
    state.run.change(lambda: _runs(state.runs), None, there, **QUIET)


def _start(state: State) -> None:
    import tunesmith
    from tunesmith.config.recipe import read_recipe

    made = tunesmith.open_run(read_recipe(RECIPE, small=True), state.runs)
    jobs.start(made.path, ["run", RECIPE, "--small", "--runs", str(state.runs), *SAMPLES])


def _about() -> str:
    return text_html.part(
        text_html.heading("Begin here"),
        text_html.paragraph(
            "A table of examples becomes a small writing model that is measured before it is used. See it "
            "happen once, with rows and a model that come with the package:"
        ),
        "<ol><li>240 rows of step-by-step help for a made-up shopping app are checked and split.</li>"
        "<li>A model of 135 million parameters learns from 144 of them.</li>"
        "<li>It and the untuned one answer the same held-out questions, and are compared.</li>"
        "<li>A file for llama.cpp and Ollama is written, and answers the questions too.</li>"
        "<li>A report says whether it helped; then you can write with it.</li></ol>",
        text_html.tiles(
            [
                ("≈ 10 min", "on two cores, no card needed"),
                ("≈ 0.8 GB", "of disk: model and run"),
                ("≈ 3 GB", "of memory"),
                ("nothing", "leaves this machine"),
            ]
        ),
        text_html.paragraph(
            "The model's package is fetched once if it is not here. You may close this page or "
            "stop the run whenever you like: it goes on where it was.",
            "soft",
        ),
    )


def _demo(found: progress.Progress | None) -> str:
    if found is None:
        return ""
    pieces = [text_html.heading("The demo run"), progress.headline(found), progress.stages(found), progress.bar(found)]
    if found.at_work or "train" in found.done or found.events:
        pieces.append(progress.figures(found))
    if "report" in found.done:
        pieces.append(f"<p>{text_html.link(f'/pages/runs/{NAME}/report.html', 'Read the report')}</p>")
    if "prepare" in found.done:
        pieces.append(f"<p>{text_html.link(f'/pages/runs/{NAME}/audit.html', 'What became of the rows')}</p>")
    if found.at_work and found.job.log:
        pieces.append(text_html.log(found.job.log, 12))
    return text_html.part(*pieces)


def _runs(folder: Path) -> str:
    """The runs as a table, each with its report."""
    from html import escape

    from tunesmith.commands.runs import list_runs

    rows = list_runs(folder) if folder.is_dir() else []
    if not rows:
        return text_html.part(text_html.heading("Runs"), text_html.paragraph(f"There is none in {folder} yet.", "soft"))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (*COLUMNS, "pages"))
    body = []
    for row in rows:
        cells = row.cells()
        if jobs.look(folder / row.name).standing == "at work" or jobs.owner(folder / row.name):
            cells["state"] = "at work"
        pages = [
            text_html.link(f"/pages/runs/{row.name}/{name}.html", name)
            for name in ("report", "audit")
            if (folder / row.name / f"{name}.html").is_file()
        ]
        note = f'<br><span class="soft">{escape(row.note)}</span>' if row.note else ""
        rest = "".join(f"<td>{escape(cells[name])}</td>" for name in COLUMNS[1:])
        first = f"<td>{escape(row.name)}{note}</td>"
        body.append(f"<tr>{first}{rest}<td>{', '.join(pages)}</td></tr>")
    made = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    box = f'<div class="card scroll" tabindex="0" role="region" aria-label="Runs">{made}</div>'
    return text_html.part(text_html.heading("Runs"), box)
