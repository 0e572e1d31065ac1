"""Data: look at rows, see what is wrong with them, see what mending would change, take it or leave it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, TunesmithError
from tunesmith.runs.run import inside
from tunesmith.ui import audits, jobs, text_html
from tunesmith.ui.state import QUIET, SLOW, State

EVERY = 1.0  # seconds between two looks at an audit that is at work
ENDINGS = [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".gz"]


def page(state: State) -> None:
    """The page, inside its tab."""
    import gradio as gr

    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=300):
            what = gr.Dropdown(
                _recipes(),
                value=None,
                allow_custom_value=True,
                label="Rows",
                elem_id="data-what",
                info="A data file's path, a folder, hub:OWNER/NAME, or a recipe for its data.",
            )
            begin = gr.Button("Look at the rows", variant="primary", elem_id="data-begin")
        with gr.Column(scale=2, min_width=260):
            upload = gr.File(
                label="or drop a file here",
                file_types=ENDINGS,
                file_count="single",
                height=130,
                type="filepath",
                elem_id="data-upload",
            )
    trouble = gr.HTML(elem_id="data-trouble")
    with gr.Row():
        which = gr.Dropdown(
            _audits(state),
            value=None,
            label="Audit",
            elem_id="data-which",
            scale=2,
            min_width=240,
            info="Those made here. Nothing of the rows' own files is changed by any of them.",
        )
        end = gr.Button("Stop", visible=False, elem_id="data-stop", scale=0, min_width=120)
    shown = gr.HTML(elem_id="data-shown")
    with gr.Row():
        propose = gr.Button("See what mending would change", visible=False, elem_id="data-propose")
        accept = gr.Button("Accept: write the cleaned rows", variant="primary", visible=False, elem_id="data-accept")
        undo = gr.Button("Undo: the rows as they were", visible=False, elem_id="data-undo")
        drafted = gr.Button("Draft a recipe from them", visible=False, elem_id="data-draft")
    mended = gr.HTML(elem_id="data-mended")
    found = gr.HTML(elem_id="data-findings")
    ticking = gr.Timer(EVERY, active=False)
    outputs = [shown, found, propose, accept, undo, drafted, mended, end, ticking]

    def look(name: str | None) -> Any:
        try:
            folder = inside(state.audits, name, "audit")
        except TunesmithError:
            hidden = [gr.Button(visible=False) for _ in range(5)]
            return ("", "", *hidden[:4], "", hidden[4], gr.Timer(active=False))
        first, second = jobs.look(folder), jobs.look(folder / audits.PROPOSED)
        at_work = "at work" in (first.standing, second.standing)
        told, proposed, kept = (
            None if first.standing == "at work" else audits.account(folder),
            audits.diffs(folder / audits.PROPOSED),
            audits.diffs(folder),
        )
        return (
            _audit(str(name), first, told),
            text_html.part(text_html.heading("Findings"), audits.findings(told)) if told else "",
            gr.Button(visible=bool(told) and not at_work and not kept and not proposed),
            gr.Button(visible=bool(proposed) and not at_work),
            gr.Button(visible=bool(kept) and not at_work),
            gr.Button(
                visible=bool(told) and not at_work,
                value="Draft a recipe from the cleaned rows" if kept else "Draft a recipe from them",
            ),
            _mending(folder, second),
            gr.Button(visible=at_work),
            gr.Timer(active=at_work),
        )

    def start(text: str | None) -> Any:
        try:
            name = _start(state, (text or "").strip())
        except TunesmithError as error:
            return (text_html.trouble(error), gr.skip(), *(gr.skip() for _ in outputs))
        return ("", gr.Dropdown(choices=_audits(state), value=name), *look(name))

    def take(path: str | None) -> Any:
        return gr.skip() if not path else _shortly(_keep(state, Path(path)))

    def tried(name: str | None) -> Any:
        try:
            folder = inside(state.audits, name, "audit")
            _propose(folder)
            said = ""
        except TunesmithError as error:
            said = text_html.trouble(error)
        return (said, *look(name))

    def accepted(name: str | None) -> Any:
        try:
            files = audits.accept(inside(state.audits, name, "audit"))
            said = text_html.part(*(text_html.paragraph(f"The cleaned rows are in {file}", "good") for file in files))
        except TunesmithError as error:
            said = text_html.trouble(error)
        return (said, *look(name))

    def undone(name: str | None) -> Any:
        try:
            made = audits.take_back(inside(state.audits, name, "audit"))
            said = text_html.part(
                *(text_html.paragraph(f"{count:,} rows as they were, in {file}", "good") for file, count in made)
            )
        except TunesmithError as error:
            said = text_html.trouble(error)
        return (said, *look(name))

    def stop(name: str | None) -> Any:
        for part in ("", audits.PROPOSED):
            folder = inside(state.audits, name, "audit") / part
            if jobs.look(folder).standing == "at work":
                jobs.stop(folder)
        return look(name)

    def draft(name: str | None) -> Any:
        return _source(inside(state.audits, name, "audit")), gr.Tabs(selected="recipe")

    begin.click(start, what, [trouble, which, *outputs], **SLOW)
    upload.upload(take, upload, what, **SLOW)
    which.change(look, which, outputs, **QUIET)
    ticking.tick(look, which, outputs, **QUIET)
    propose.click(tried, which, [trouble, *outputs], **SLOW)
    accept.click(accepted, which, [trouble, *outputs], **SLOW)
    undo.click(undone, which, [trouble, *outputs], **SLOW)
    end.click(stop, which, outputs, **QUIET)
    drafted.click(draft, which, [state.rows, state.tabs], **QUIET)
    state.blocks.load(
        lambda: gr.Dropdown(choices=_audits(state), value=next(iter(_audits(state)), None)), None, which, **QUIET
    )


def _recipes() -> list[str]:
    from tunesmith.config.recipe import SHIPPED

    return sorted({file.stem for folder in SHIPPED if folder.is_dir() for file in folder.glob("*.yaml")})


def _audits(state: State) -> list[str]:
    """The audits made here, the newest first."""
    if not state.audits.is_dir():
        return []
    found = [path for path in state.audits.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]


def _start(state: State, what: str) -> str:
    """Starts the audit of `what`; returns its name."""
    from tunesmith.commands.audit import to_audit

    if not what:
        raise DataError("no rows are named", where="Rows", next="Name a file, drop one, or choose a recipe")
    name, data, base, _ = to_audit(what)
    sources = [data.source] if isinstance(data.source, str) else data.source
    told = " ".join(sources if base == Path() else [str(base / each) for each in sources])
    folder = state.audits / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / audits.PROPOSED, folder / audits.TAKEN_BACK):
        shutil.rmtree(old, ignore_errors=True)
    (folder / "audit.json").unlink(missing_ok=True)
    (folder / "what.txt").write_text(f"{what}\n{told}\n", encoding="utf-8")
    jobs.start(folder, ["audit", "--out", str(folder), "--", what])
    return name


def _propose(folder: Path) -> None:
    """Tries the mending in a folder of its own."""
    what = (folder / "what.txt").read_text(encoding="utf-8").split("\n")[0]
    proposed = folder / audits.PROPOSED
    proposed.mkdir(exist_ok=True)
    jobs.start(proposed, ["audit", "--fix", "--out", str(proposed), "--", what])


def _keep(state: State, upload: Path) -> Path:
    """Keeps an uploaded file in the folder data, under its own name, or another where that is taken by other rows."""
    from tunesmith.runs.run import hash_file

    name = re.sub(r"[^A-Za-z0-9._-]+", "_", upload.name).lstrip("._") or "rows.csv"
    state.data.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = state.data / (name if number == 1 else f"{number}-{name}")
        if not path.exists():
            shutil.copyfile(upload, path)
            return path
        if hash_file(path) == hash_file(upload):
            return path
    raise DataError("there are too many files of this name", where=str(state.data), next="Remove some")


def _shortly(path: Path) -> str:
    """The path as one would write it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _source(folder: Path) -> str:
    """The rows that a recipe is drafted from: the cleaned ones, if they were accepted."""
    for diff in audits.diffs(folder):
        return str(next(file for file in diff.parent.glob(diff.name.replace(".diff.jsonl", ".*")) if file != diff))
    return (folder / "what.txt").read_text(encoding="utf-8").split("\n")[1]


def _audit(name: str, job: jobs.Job, told: dict[str, Any] | None) -> str:
    pieces = [text_html.heading(f"The rows of {name}")]
    if job.standing == "at work":
        pieces += [
            text_html.paragraph(f"Looking, since {text_html.clock(job.began)} …", "good"),
            text_html.log(job.log, 6),
        ]
    elif job.standing in ("failed", "gone"):
        pieces.append(text_html.parts_of("The audit did not end", "", job.why.rstrip(".")))
    elif job.standing == "stopped":
        pieces.append(text_html.paragraph("Stopped.", "warn"))
    if told:
        pieces += [
            audits.summary(told),
            f"<p>{text_html.link(f'/pages/audits/{name}/audit.html', 'The audit as a page of its own')}"
            " <span class='soft'>with lengths, groups and words that recur</span></p>",
        ]
    return text_html.part(*pieces)


def _mending(folder: Path, job: jobs.Job) -> str:
    if job.standing == "at work":
        return text_html.part(text_html.heading("Mending"), text_html.paragraph("Trying it on a copy …", "good"))
    if job.standing in ("failed", "gone") and not audits.diffs(folder):
        return text_html.part(
            text_html.heading("Mending"), text_html.parts_of("Mending could not be tried", "", job.why.rstrip("."))
        )
    kept, proposed = audits.diffs(folder), audits.diffs(folder / audits.PROPOSED)
    if kept:
        files = ", ".join(diff.name.replace(".diff.jsonl", "") for diff in kept)
        head = text_html.paragraph(f"Accepted: {files} in {folder}. The source is as it was.", "good")
        return text_html.part(text_html.heading("Mended"), head, *(audits.changes(diff) for diff in kept))
    if proposed:
        head = text_html.paragraph("This is what would change. Nothing is written until you accept.", "soft")
        return text_html.part(
            text_html.heading("What mending would change"), head, *(audits.changes(diff) for diff in proposed)
        )
    return ""
