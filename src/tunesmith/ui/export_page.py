"""Page Export: the recipe's targets and their state, sizes and speeds of the files, and commands to use them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

from tunesmith.commands.exported_files import export_entries
from tunesmith.config.recipe import NamedSetting, Recipe
from tunesmith.errors import TunesmithError
from tunesmith.reporting.exported_files import read_exported_files
from tunesmith.runs.run import Run
from tunesmith.ui import jobs
from tunesmith.ui.components import draw_for_run, pane
from tunesmith.ui.html import code, error_note, escape, note, table
from tunesmith.ui.state import QUIET, State

ALL_TARGETS = ""
REFRESH_SECONDS = 1.5  # while a command is running
LOG_LINES = 12
COMMANDS = ("export", "push")
TARGET_HELP = {
    "adapter": "adapter for PEFT",
    "merged": "merged model for transformers and vLLM",
    "gguf": "one file for llama.cpp, Ollama and tunesmith chat",
    "gguf_lora": "adapter as GGUF, used with its base model",
    "ollama": "Modelfile for the GGUF",
    "hub": "folder for a model repository on the Hub",
    "space": "small Gradio app for a Space",
}
SNIPPET = """from pathlib import Path
import tunesmith
from tunesmith.data.conversation import Turn

with tunesmith.chat_file(Path({path!r})) as model:
    for piece in model.stream([Turn("user", "Your prompt")], max_new_tokens=256):
        print(piece, end="", flush=True)"""


def page(state: State) -> None:
    """Builds the page Export."""
    draw_for_run(state, _build, ["train"], ["recipe.yaml"])


def _build(recipe: Recipe, run: Run) -> None:
    run.fingerprint("train")
    names = [target_setting.name for target_setting in recipe.export.files]
    job = jobs.read_job(run.path)
    running = job.status == "running"
    targets = pane(targets_html(recipe, run), label="Targets")
    choices = [("all", ALL_TARGETS), *((name, name) for name in names)]
    target_choice = gr.Dropdown(
        choices, value=ALL_TARGETS, label="Targets", info="Files that are up to date are skipped."
    )
    with gr.Row():
        export_button = gr.Button(
            "Export and verify", variant="primary", interactive=bool(names) and not running, min_width=150
        )
        stop_button = gr.Button("Stop", interactive=running, min_width=90)
        push_button = gr.Button("Push: dry run", interactive="hub" in names and not running, min_width=150)
    progress = pane(progress_html(recipe, run, job), label="Progress", live=True)
    files = pane(files_html(run), label="Files")
    commands = pane(commands_html(run), label="Commands")
    timer = gr.Timer(REFRESH_SECONDS, active=running)

    def refresh() -> list[Any]:
        current = jobs.read_job(run.path)
        busy = current.status == "running"
        return [
            progress_html(recipe, run, current), targets_html(recipe, run), files_html(run), commands_html(run),
            gr.Button(interactive=bool(names) and not busy), gr.Button(interactive=busy),
            gr.Button(interactive="hub" in names and not busy), gr.Timer(active=busy),
        ]  # fmt: skip

    def start_job(arguments: Sequence[str]) -> list[Any]:
        try:
            jobs.start(run.path, arguments)
        except TunesmithError as error:
            return [error_note(error), *refresh()[1:]]
        return refresh()

    def export(target: str) -> list[Any]:
        return start_job(["export", str(run.path), *(["--only", target] if target else [])])

    def push() -> list[Any]:
        return start_job(["push", str(run.path), "--dry-run"])

    def stop() -> list[Any]:
        try:
            jobs.stop(run.path)
        except TunesmithError as error:
            return [error_note(error), *refresh()[1:]]
        return refresh()

    outputs = [progress, targets, files, commands, export_button, stop_button, push_button, timer]
    export_button.click(export, target_choice, outputs, **QUIET)
    push_button.click(push, None, outputs, **QUIET)
    stop_button.click(stop, None, outputs, queue=False, **QUIET)
    timer.tick(refresh, None, outputs, queue=False, **QUIET)


def targets_html(recipe: Recipe, run: Run) -> str:
    """Returns the recipe's targets with their state and the reasons for it."""
    if not recipe.export.files:
        return note("This recipe has no export targets. Add one to export.files on the page Recipe.")
    exported = export_entries(run)
    rows = [row for target in recipe.export.files for row in _target_rows(target, exported)]
    return table(("target", "description", "state"), rows, "Targets of the recipe")


def _target_rows(target: NamedSetting, exported: Sequence[dict[str, Any]]) -> list[list[str]]:
    files = [entry for entry in exported if entry["target"] == target.name]
    types = [str(item) for item in target.options.get("types", [])] if target.name == "gguf" else []
    missing = [name for name in types if name not in {entry["name"] for entry in files}]
    help_text = escape(TARGET_HELP.get(target.name, ""))
    rows = [[_target_name(target.name, entry["name"]), help_text, verification_badge(entry)] for entry in files]
    rows += [[_target_name(target.name, name), help_text, badge("not exported", "none")] for name in missing]
    return rows or [[_target_name(target.name, ""), help_text, badge("not exported", "none")]]


def _target_name(target: str, file: str) -> str:
    return escape(target if file in ("", target) else f"{target}: {file}")


def verification_badge(entry: dict[str, Any]) -> str:
    """Returns whether a file is verified, and if not, why."""
    if not entry["problems"]:
        return badge("verified", "good")
    reasons = "".join(f"<li>{escape(problem)}</li>" for problem in entry["problems"])
    return f"{badge('NOT VERIFIED', 'bad')}<ul>{reasons}</ul>"


def badge(text: str, kind: str) -> str:
    """Returns a framed state; text, sign and border style distinguish states without color."""
    sign = {"good": "✓", "bad": "✗", "none": "–"}[kind]
    return f'<span class="state {kind}"><span aria-hidden="true">{sign} </span>{escape(text)}</span>'


def files_html(run: Run) -> str:
    """Returns for each file the share of the gain that it keeps, its size and its speed on this machine."""
    exported = read_exported_files(run.path)
    if exported is None:
        return ""
    verifications = {item["name"]: item for item in exported["proofs"]}
    rows = []
    for cost in exported["costs"]:
        verification = verifications[cost["name"]]
        state = badge("verified", "good") if verification["verified"] else badge("NOT VERIFIED", "bad")
        interval = f'<br><span class="soft">{escape(verification["ends"])}</span>' if verification["ends"] else ""
        speed = f"{cost['rate']} tokens/s" if cost["rate"] else "–"
        rows.append(
            [
                f'{escape(cost["name"])}<br><span class="soft">{escape(cost["path"])}</span>', state,
                f"{escape(verification['keeps'] or '–')}{interval}", escape(cost["size"]),
                escape(cost["memory"] or "–"), speed, escape(cost["load"] or "–"),
            ]
        )  # fmt: skip
    header = ("file", "state", "share of the gain", "size", "memory", "speed", "load time")
    return table(header, rows, "Exported files")


def commands_html(run: Run) -> str:
    """Returns the commands to use each file."""
    parts: list[str] = []
    number = 0
    for entry in export_entries(run):
        commands = {**entry["commands"]}
        if entry["target"] == "gguf":
            commands["Python"] = SNIPPET.format(path=str(run / entry["path"]))
        lines = []
        for runtime, command in commands.items():
            number += 1
            lines.append(
                f"<p>{escape(runtime)}</p>{code(with_current_path(command, entry['path'], run), f'command-{number}')}"
            )
        if lines:
            warning = note("This file is not verified: its replies may differ from the evaluated model's.", "bad")
            doubt = warning if entry["problems"] else ""
            parts.append(
                f"<details{' open' if not parts else ''}><summary>Use {escape(entry['name'])}</summary>"
                f"{doubt}{''.join(lines)}</details>"
            )
    return f"<h3>Commands</h3>{''.join(parts)}" if parts else ""


def with_current_path(command: str, path: str, run: Run) -> str:
    """Returns a command with the run's current path, which may have changed since the export."""
    old_path = re.search(rf"[^\s'\"=]*(?={re.escape(path)})", command)
    return command.replace(old_path[0], f"{run.path}/") if old_path and old_path[0] else command


def progress_html(recipe: Recipe, run: Run, job: jobs.Job) -> str:
    """Returns the progress of the last export or push, or how it ended."""
    if job.command not in COMMANDS:
        running = job.status == "running"
        return note(f"'{job.command}' is running on this run. Watch it on the page Train.") if running else ""
    lines = [line for line in job.log.splitlines() if line.strip()]
    tail = escape("\n".join(lines[-LOG_LINES:]))
    log = f'<details open><summary>Output</summary><pre tabindex="0">{tail}</pre></details>'
    if job.status == "running":
        return (
            f"<h3>Running: {escape(job.command)}</h3>{_progress_bars(recipe, run)}{log if lines else note('Starting.')}"
        )
    if job.status == "failed" and job.command == "export" and "NOT VERIFIED" in job.log:
        return (
            note("All files are written, but some failed verification. See the reasons in the list of targets.", "bad")
            + log
        )
    finished = (
        "All files are exported and verified."
        if job.command == "export"
        else "The dry run sent nothing. It would send:"
    )
    notes = {
        "ended": (finished, "good"),
        "stopped": ("Stopped. Finished files are kept; click the button again to resume.", "soft"),
        "failed": (f"Failed: {job.reason}", "bad"),
        "gone": (f"The process is gone: {job.reason}", "bad"),
    }  # fmt: skip
    if job.status not in notes:
        return ""
    return note(*notes[job.status]) + (log if lines else "")


def _progress_bars(recipe: Recipe, run: Run) -> str:
    """Returns for each file being verified how many test rows it has answered, counted in its partial reply file."""
    available = len(_read_lines(run / "data/test.jsonl")) + len(_read_lines(run / "data/unseen.jsonl"))
    total = min(limit for limit in (available, recipe.export.rows, recipe.evaluate.rows) if limit) if available else 0
    bars = []
    for part in sorted((run / "replies").glob("export-*.part")):
        name, answered = part.stem.removeprefix("export-"), max(0, len(_read_lines(part)) - 1)
        answered = min(answered, total)
        label = f"Rows answered by {escape(name)}"
        bars.append(
            f"<p>{escape(name)} has answered {answered} of {total} rows</p>"
            f'<progress max="{max(total, 1)}" value="{answered}" aria-label="{label}"></progress>'
        )
    return "".join(bars)


def _read_lines(path: Any) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    except OSError:
        return []
