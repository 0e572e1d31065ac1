"""Train: start, watch, stop and go on with the chosen run. All that is shown is read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import read_recipe
from tunesmith.errors import TunesmithError
from tunesmith.ui import jobs, progress, text_html
from tunesmith.ui.state import QUIET, State

EVERY = 2.0  # seconds between two looks
SAMPLES = ("--set", "train.samples=2")  # replies to look at, at each validation
WAYS = [
    ("everything that is left: rows, training, comparison, files, report", "run"),
    ("the rows only", "prepare"),
    ("the training only", "train"),
    ("the comparison only", "evaluate"),
    ("the report only", "report"),
]


def page(state: State) -> None:
    """The page, inside its tab."""
    import gradio as gr

    shown = gr.HTML(elem_id="train-state")
    with gr.Row(equal_height=True):
        what = gr.Dropdown(
            WAYS,
            value="run",
            label="What",
            info="What was finished and still fits is not made again.",
            scale=3,
            min_width=280,
            filterable=False,
            elem_id="train-what",
        )
        with gr.Column(scale=2, min_width=240), gr.Row():
            begin = gr.Button("Start", variant="primary", elem_id="train-begin")
            end = gr.Button("Stop", elem_id="train-stop", interactive=False)
    with gr.Accordion("Train anew", open=False):
        again = gr.Checkbox(
            False,
            label="Put the old adapter aside and train anew",
            info="Needed after the recipe or the rows were changed. The old one is kept in old/.",
            elem_id="train-again",
        )
    trouble = gr.HTML(elem_id="train-trouble")
    drawn = gr.HTML(elem_id="train-curves")
    with gr.Accordion("Sample replies at each validation", open=True):
        replies = gr.HTML(elem_id="train-samples")
    with gr.Accordion("What the command said", open=False):
        said = gr.HTML(elem_id="train-log")
    seen = gr.State("")
    ticking = gr.Timer(EVERY, active=True)
    outputs = [shown, begin, end, drawn, replies, said, seen]

    def look(name: str | None, before: str = "", *, anew: bool = True) -> Any:
        try:
            found = progress.look(state.folder(name))
        except TunesmithError as error:
            key = f"none: {error}"
            if key == before and not anew:
                return [gr.skip() for _ in outputs]
            return (_none(error), gr.Button(interactive=False), gr.Button(interactive=False), "", "", "", key)
        if found.key == before and not anew:
            return [gr.skip() for _ in outputs]
        ours = found.job.standing == "at work"
        return (
            _state(str(name), found),
            gr.Button("Go on" if found.events and not found.at_work else "Start", interactive=not found.at_work),
            gr.Button(interactive=ours),
            text_html.part(progress.curves(found), progress.notes(found)),
            text_html.part(progress.samples(found)),
            text_html.part(text_html.log(found.job.log) or text_html.paragraph("Nothing yet.", "soft")),
            found.key,
        )

    def start(name: str | None, verb: str, anew: bool) -> Any:
        try:
            folder = state.folder(name)
            flags = ["--again"] if anew and verb in ("run", "train") else []
            jobs.start(folder, [verb, str(folder), "--runs", str(state.runs), *_samples(verb, folder), *flags])
            told = ""
        except TunesmithError as error:
            told = text_html.trouble(error)
        return (told, gr.Checkbox(value=False), *look(name))

    def stop(name: str | None) -> Any:
        try:
            jobs.stop(state.folder(name))
            told = text_html.part(text_html.paragraph("It ends after the step in hand, with a checkpoint.", "soft"))
        except TunesmithError as error:
            told = text_html.trouble(error)
        return (told, *look(name))

    begin.click(start, [state.run, what, again], [trouble, again, *outputs], **QUIET)
    end.click(stop, state.run, [trouble, *outputs], **QUIET)
    ticking.tick(lambda name, before: look(name, before, anew=False), [state.run, seen], outputs, **QUIET)
    state.run.change(lambda name: ("", *look(name)), state.run, [trouble, *outputs], **QUIET)


def _state(name: str, found: progress.Progress) -> str:
    pages = [
        text_html.link(f"/pages/runs/{name}/{file}", text)
        for file, text in (("audit.html", "The rows"), ("report.html", "The report"))
        if (found.folder / file).is_file()
    ]
    return text_html.part(
        text_html.heading(name),
        progress.headline(found),
        progress.stages(found),
        progress.bar(found),
        progress.figures(found),
        f"<p>{' · '.join(pages)}</p>" if pages else "",
    )


def _none(error: TunesmithError) -> str:
    advice = "Make the demo run on the page Start, or a recipe of your own on the page Recipe."
    return text_html.part(
        text_html.heading("Train"), text_html.paragraph("No run is chosen."), text_html.paragraph(advice, "soft")
    )


def _samples(verb: str, folder: Path) -> Sequence[str]:
    """Asks for replies to look at, where training can write some and the recipe does not say how many."""
    wish = read_recipe(str(folder)).train
    return SAMPLES if verb in ("run", "train") and wish.engine.name == "native" and not wish.samples else ()
