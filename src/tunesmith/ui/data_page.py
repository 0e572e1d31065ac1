"""Page Data: audit rows, preview repairs, accept or undo them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, TunesmithError
from tunesmith.runs.run import child_folder
from tunesmith.ui import audits, html, jobs
from tunesmith.ui.state import QUIET, SLOW, State
from tunesmith.wording import show_time

REFRESH_SECONDS = 1.0  # while an audit is running
FILE_TYPES = [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".gz"]


def page(state: State) -> None:
    """Builds the page inside its tab."""
    import gradio as gr

    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=300):
            rows_input = gr.Dropdown(
                _recipe_names(),
                value=None,
                allow_custom_value=True,
                label="Rows",
                elem_id="data-what",
                info="Path of a data file or folder, hub:OWNER/NAME, or a recipe to audit its data.",
            )
            audit_button = gr.Button("Audit the rows", variant="primary", elem_id="data-begin")
        with gr.Column(scale=2, min_width=260):
            upload = gr.File(
                label="or drop a file here",
                file_types=FILE_TYPES,
                file_count="single",
                height=130,
                type="filepath",
                elem_id="data-upload",
            )
    error_box = gr.HTML(elem_id="data-trouble")
    with gr.Row():
        audit_choice = gr.Dropdown(
            _audit_names(state),
            value=None,
            label="Audit",
            elem_id="data-which",
            scale=2,
            min_width=240,
            info="Audits in this folder. An audit never changes the source files.",
        )
        stop_button = gr.Button("Stop", visible=False, elem_id="data-stop", scale=0, min_width=120)
    summary = gr.HTML(elem_id="data-summary")
    with gr.Row():
        preview_button = gr.Button("Preview repairs", visible=False, elem_id="data-propose")
        accept_button = gr.Button(
            "Accept: write the cleaned rows", variant="primary", visible=False, elem_id="data-accept"
        )
        undo_button = gr.Button("Undo: restore the original rows", visible=False, elem_id="data-undo")
        draft_button = gr.Button("Draft a recipe from these rows", visible=False, elem_id="data-draft")
    repairs = gr.HTML(elem_id="data-repairs")
    findings = gr.HTML(elem_id="data-findings")
    timer = gr.Timer(REFRESH_SECONDS, active=False)
    outputs = [summary, findings, preview_button, accept_button, undo_button, draft_button, repairs, stop_button, timer]

    def refresh(name: str | None) -> Any:
        try:
            folder = child_folder(state.audits, name, "audit")
        except TunesmithError:
            hidden = [gr.Button(visible=False) for _ in range(5)]
            return ("", "", *hidden[:4], "", hidden[4], gr.Timer(active=False))
        audit_job, repair_job = jobs.read_job(folder), jobs.read_job(folder / audits.PROPOSED)
        running = "running" in (audit_job.status, repair_job.status)
        audit, proposed_diffs, accepted_diffs = (
            None if audit_job.status == "running" else audits.read_audit(folder),
            audits.find_diffs(folder / audits.PROPOSED),
            audits.find_diffs(folder),
        )
        return (
            _audit_html(str(name), audit_job, audit),
            html.part(html.heading("Findings"), audits.findings_html(audit)) if audit else "",
            gr.Button(visible=bool(audit) and not running and not accepted_diffs and not proposed_diffs),
            gr.Button(visible=bool(proposed_diffs) and not running),
            gr.Button(visible=bool(accepted_diffs) and not running),
            gr.Button(
                visible=bool(audit) and not running,
                value="Draft a recipe from the cleaned rows" if accepted_diffs else "Draft a recipe from these rows",
            ),
            _repair_html(folder, repair_job),
            gr.Button(visible=running),
            gr.Timer(active=running),
        )

    def start(text: str | None) -> Any:
        try:
            name = _start_audit(state, (text or "").strip())
        except TunesmithError as error:
            return (html.error_boxes(error), gr.skip(), *(gr.skip() for _ in outputs))
        return ("", gr.Dropdown(choices=_audit_names(state), value=name), *refresh(name))

    def keep_upload(path: str | None) -> Any:
        return gr.skip() if not path else _relative(_keep_upload(state, Path(path)))

    def preview(name: str | None) -> Any:
        try:
            folder = child_folder(state.audits, name, "audit")
            _start_repair(folder)
            message = ""
        except TunesmithError as error:
            message = html.error_boxes(error)
        return (message, *refresh(name))

    def accept(name: str | None) -> Any:
        try:
            files = audits.accept_repair(child_folder(state.audits, name, "audit"))
            message = html.part(*(html.paragraph(f"The cleaned rows are in {file}", "good") for file in files))
        except TunesmithError as error:
            message = html.error_boxes(error)
        return (message, *refresh(name))

    def undo(name: str | None) -> Any:
        try:
            restored = audits.undo_repair(child_folder(state.audits, name, "audit"))
            message = html.part(
                *(html.paragraph(f"Restored {count:,} original rows in {file}", "good") for file, count in restored)
            )
        except TunesmithError as error:
            message = html.error_boxes(error)
        return (message, *refresh(name))

    def stop(name: str | None) -> Any:
        for subfolder in ("", audits.PROPOSED):
            folder = child_folder(state.audits, name, "audit") / subfolder
            if jobs.read_job(folder).status == "running":
                jobs.stop(folder)
        return refresh(name)

    def draft(name: str | None) -> Any:
        return _rows_path(child_folder(state.audits, name, "audit")), gr.Tabs(selected="recipe")

    audit_button.click(start, rows_input, [error_box, audit_choice, *outputs], **SLOW)
    upload.upload(keep_upload, upload, rows_input, **SLOW)
    audit_choice.change(refresh, audit_choice, outputs, **QUIET)
    timer.tick(refresh, audit_choice, outputs, **QUIET)
    preview_button.click(preview, audit_choice, [error_box, *outputs], **SLOW)
    accept_button.click(accept, audit_choice, [error_box, *outputs], **SLOW)
    undo_button.click(undo, audit_choice, [error_box, *outputs], **SLOW)
    stop_button.click(stop, audit_choice, outputs, **QUIET)
    draft_button.click(draft, audit_choice, [state.rows, state.tabs], **QUIET)
    state.blocks.load(
        lambda: gr.Dropdown(choices=_audit_names(state), value=next(iter(_audit_names(state)), None)),
        None,
        audit_choice,
        **QUIET,
    )


def _recipe_names() -> list[str]:
    from tunesmith.config.recipe import SHIPPED

    return sorted({file.stem for folder in SHIPPED if folder.is_dir() for file in folder.glob("*.yaml")})


def _audit_names(state: State) -> list[str]:
    """Returns the names of the audits, newest first."""
    if not state.audits.is_dir():
        return []
    folders = [path for path in state.audits.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return [path.name for path in sorted(folders, key=lambda path: -path.stat().st_mtime)]


def _start_audit(state: State, rows: str) -> str:
    """Starts the audit of `rows` and returns its name."""
    from tunesmith.commands.audit import audit_arguments

    if not rows:
        raise DataError("no rows given", where="Rows", next="Enter a path, drop a file, or choose a recipe")
    name, data, base, _ = audit_arguments(rows)
    sources = [data.source] if isinstance(data.source, str) else data.source
    paths = " ".join(sources if base == Path() else [str(base / item) for item in sources])
    folder = state.audits / name
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / audits.PROPOSED, folder / audits.UNDONE):
        shutil.rmtree(stale, ignore_errors=True)
    (folder / "audit.json").unlink(missing_ok=True)
    (folder / "what.txt").write_text(f"{rows}\n{paths}\n", encoding="utf-8")
    jobs.start(folder, ["audit", "--out", str(folder), "--", rows])
    return name


def _start_repair(folder: Path) -> None:
    """Starts an audit with repairs in a subfolder."""
    rows = (folder / "what.txt").read_text(encoding="utf-8").split("\n")[0]
    proposed = folder / audits.PROPOSED
    proposed.mkdir(exist_ok=True)
    jobs.start(proposed, ["audit", "--fix", "--out", str(proposed), "--", rows])


def _keep_upload(state: State, upload: Path) -> Path:
    """Copies an uploaded file into the folder data; adds a number to its name if another file has it."""
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
    raise DataError(f"1000 files are called {name}", where=str(state.data), next="Delete some of them")


def _relative(path: Path) -> str:
    """Returns the path relative to the working directory if it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _rows_path(folder: Path) -> str:
    """Returns the path of the rows to draft a recipe from: the cleaned ones if a repair was accepted."""
    for diff in audits.find_diffs(folder):
        return str(next(file for file in diff.parent.glob(diff.name.replace(".diff.jsonl", ".*")) if file != diff))
    return (folder / "what.txt").read_text(encoding="utf-8").split("\n")[1]


def _audit_html(name: str, job: jobs.Job, audit: dict[str, Any] | None) -> str:
    pieces = [html.heading(f"Audit of {name}")]
    if job.status == "running":
        pieces += [
            html.paragraph(f"Auditing since {show_time(job.started)} …", "good"),
            html.log(job.log, 6),
        ]
    elif job.status in ("failed", "gone"):
        pieces.append(html.error_box("The audit failed", "", job.reason.rstrip(".")))
    elif job.status == "stopped":
        pieces.append(html.paragraph("Stopped.", "warn"))
    if audit:
        pieces += [
            audits.summary_tiles(audit),
            f"<p>{html.link(f'/pages/audits/{name}/audit.html', 'Full audit report')}"
            " <span class='soft'>with lengths, groups and recurring words</span></p>",
        ]
    return html.part(*pieces)


def _repair_html(folder: Path, job: jobs.Job) -> str:
    if job.status == "running":
        return html.part(html.heading("Repairs"), html.paragraph("Repairing a copy …", "good"))
    if job.status in ("failed", "gone") and not audits.find_diffs(folder):
        return html.part(html.heading("Repairs"), html.error_box("The repair failed", "", job.reason.rstrip(".")))
    accepted, proposed = audits.find_diffs(folder), audits.find_diffs(folder / audits.PROPOSED)
    if accepted:
        files = ", ".join(diff.name.replace(".diff.jsonl", "") for diff in accepted)
        head = html.paragraph(f"Accepted: {files} in {folder}. The source file is unchanged.", "good")
        return html.part(html.heading("Accepted repairs"), head, *(audits.diff_html(diff) for diff in accepted))
    if proposed:
        head = html.paragraph("Proposed changes. Nothing is written until you accept.", "soft")
        return html.part(html.heading("Proposed repairs"), head, *(audits.diff_html(diff) for diff in proposed))
    return ""
