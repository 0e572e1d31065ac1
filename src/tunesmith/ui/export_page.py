"""Export: the recipe's targets and how far each is, what the files weigh and how fast they are, how to use them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

from tunesmith.commands.exported_files import entries
from tunesmith.config.recipe import Named, Recipe
from tunesmith.errors import TunesmithError
from tunesmith.reporting.exported_files import shipped
from tunesmith.runs.run import Run
from tunesmith.ui import jobs
from tunesmith.ui.components import first_line, pane, stamp
from tunesmith.ui.html import code, note, plain, table, trouble
from tunesmith.ui.state import QUIET, State

ALL = ""
LOOK = 1.5  # seconds between two looks at a command at work
SHOWN_LINES = 12
VERBS = ("export", "push")
WHAT = {
    "adapter": "the adapter, for PEFT over its base",
    "merged": "base and adapter as one folder, for transformers and vLLM",
    "gguf": "one file, for llama.cpp, Ollama and tunesmith chat",
    "gguf_lora": "the adapter as a GGUF, beside its base",
    "ollama": "a Modelfile over the GGUF",
    "hub": "a folder ready for a model repository",
    "space": "a small app for a public page",
}
SNIPPET = """from pathlib import Path
import tunesmith
from tunesmith.data.conversation import Turn

with tunesmith.chat_file(Path({path!r})) as model:
    for piece in model.stream([Turn("user", "Your prompt")], max_new_tokens=256):
        print(piece, end="", flush=True)"""


def page(state: State) -> None:
    """The page Export."""

    drawn = stamp(state, ["train"], ["recipe.yaml"])

    @gr.render(inputs=[drawn], show_progress="hidden")  # type: ignore[untyped-decorator, unused-ignore]
    def room(seen: str | None) -> None:
        try:
            recipe, run = state.opened(first_line(seen))
            run.fingerprint("train")
        except TunesmithError as error:
            pane(trouble(error))
            return
        _room(recipe, run)


def _room(recipe: Recipe, run: Run) -> None:
    names = [named.name for named in recipe.export.files]
    job = jobs.look(run.path)
    at_work = job.standing == "at work"
    targets = pane(targets_of(recipe, run), label="Targets")
    only = gr.Dropdown([("all of them", ALL), *((name, name) for name in names)], value=ALL, label="Make",
                       info="What is finished and fresh is not made again")  # fmt: skip
    with gr.Row():
        go = gr.Button("Make and verify", variant="primary", interactive=bool(names) and not at_work, min_width=150)
        stop = gr.Button("Stop", interactive=at_work, min_width=90)
        dry = gr.Button("Push: dry run", interactive="hub" in names and not at_work, min_width=150)
    told = pane(progress_of(recipe, run, job), label="Progress", live=True)
    files = pane(files_of(run), label="Files")
    commands = pane(commands_of(run), label="Commands")
    clock = gr.Timer(LOOK, active=at_work)

    def look() -> list[Any]:
        now = jobs.look(run.path)
        works = now.standing == "at work"
        return [
            progress_of(recipe, run, now), targets_of(recipe, run), files_of(run), commands_of(run),
            gr.Button(interactive=bool(names) and not works), gr.Button(interactive=works),
            gr.Button(interactive="hub" in names and not works), gr.Timer(active=works),
        ]  # fmt: skip

    def begin(words: Sequence[str]) -> list[Any]:
        try:
            jobs.start(run.path, words)
        except TunesmithError as error:
            return [trouble(error), *look()[1:]]
        return look()

    def make(chosen: str) -> list[Any]:
        return begin(["export", str(run.path), *(["--only", chosen] if chosen else [])])

    def push() -> list[Any]:
        return begin(["push", str(run.path), "--dry-run"])

    def halt() -> list[Any]:
        try:
            jobs.stop(run.path)
        except TunesmithError as error:
            return [trouble(error), *look()[1:]]
        return look()

    seen = [told, targets, files, commands, go, stop, dry, clock]
    go.click(make, only, seen, **QUIET)
    dry.click(push, None, seen, **QUIET)
    stop.click(halt, None, seen, queue=False, **QUIET)
    clock.tick(look, None, seen, queue=False, **QUIET)


def targets_of(recipe: Recipe, run: Run) -> str:
    """The recipe's targets, each with its state and why."""
    if not recipe.export.files:
        return note("This recipe names nothing to export. Add a target to export.files on the page Recipe.")
    made = entries(run)
    rows = [row for named in recipe.export.files for row in _target(named, made)]
    return table(("target", "what it is", "state"), rows, "What the recipe wants")


def _target(named: Named, made: Sequence[dict[str, Any]]) -> list[list[str]]:
    own = [entry for entry in made if entry["target"] == named.name]
    wanted = [str(each) for each in named.options.get("types", [])] if named.name == "gguf" else []
    missing = [name for name in wanted if name not in {entry["name"] for entry in own}]
    what = plain(WHAT.get(named.name, ""))
    rows = [[_name(named.name, entry["name"]), what, standing(entry)] for entry in own]
    rows += [[_name(named.name, name), what, badge("not made", "none")] for name in missing]
    return rows or [[_name(named.name, ""), what, badge("not made", "none")]]


def _name(target: str, file: str) -> str:
    return plain(target if file in ("", target) else f"{target}: {file}")


def standing(entry: dict[str, Any]) -> str:
    """Whether a file is verified, and why not."""
    if not entry["problems"]:
        return badge("verified", "good")
    why = "".join(f"<li>{plain(each)}</li>" for each in entry["problems"])
    return f"{badge('NOT VERIFIED', 'bad')}<ul>{why}</ul>"


def badge(words: str, kind: str) -> str:
    """A state in a frame; without colour the word, the sign and the frame's line tell it."""
    sign = {"good": "✓", "bad": "✗", "none": "–"}[kind]
    return f'<span class="state {kind}"><span aria-hidden="true">{sign} </span>{plain(words)}</span>'


def files_of(run: Run) -> str:
    """What each file keeps of the gain, what it weighs, how fast it is here."""
    found = shipped(run.path)
    if found is None:
        return ""
    proofs = {each["name"]: each for each in found["proofs"]}
    rows = []
    for cost in found["costs"]:
        proof = proofs[cost["name"]]
        state = badge("verified", "good") if proof["verified"] else badge("NOT VERIFIED", "bad")
        ends = f'<br><span class="soft">{plain(proof["ends"])}</span>' if proof["ends"] else ""
        speed = f"{cost['rate']} tokens/s" if cost["rate"] else "–"
        rows.append(
            [
                f'{plain(cost["name"])}<br><span class="soft">{plain(cost["path"])}</span>', state,
                f"{plain(proof['keeps'] or '–')}{ends}", plain(cost["size"]), plain(cost["memory"] or "–"), speed,
                plain(cost["load"] or "–"),
            ]
        )  # fmt: skip
    head = ("file", "state", "keeps of the gain", "size", "memory", "speed here", "loads in")
    return table(head, rows, "What lies in the export folder")


def commands_of(run: Run) -> str:
    """Ready commands for each file that can be used."""
    parts: list[str] = []
    number = 0
    for entry in entries(run):
        ready = {**entry["commands"]}
        if entry["target"] == "gguf":
            ready["Python"] = SNIPPET.format(path=str(run / entry["path"]))
        lines = []
        for runtime, command in ready.items():
            number += 1
            lines.append(f"<p>{plain(runtime)}</p>{code(placed(command, entry['path'], run), f'command-{number}')}")
        if lines:
            warned = note("This file is not verified: it may answer otherwise than what was tested.", "bad")
            doubt = warned if entry["problems"] else ""
            parts.append(
                f"<details{' open' if not parts else ''}><summary>Use {plain(entry['name'])}</summary>"
                f"{doubt}{''.join(lines)}</details>"
            )
    return f"<h3>Ready commands</h3>{''.join(parts)}" if parts else ""


def placed(command: str, path: str, run: Run) -> str:
    """A command with the run's folder as it is now: since the export the run may have moved."""
    found = re.search(rf"[^\s'\"=]*(?={re.escape(path)})", command)
    return command.replace(found[0], f"{run.path}/") if found and found[0] else command


def progress_of(recipe: Recipe, run: Run, job: jobs.Job) -> str:
    """How far the command is that was started here, or how it ended."""
    if job.verb not in VERBS:
        busy = job.standing == "at work"
        return note(f"The page Train is busy with '{job.verb}' on this run.") if busy else ""
    lines = [line for line in job.log.splitlines() if line.strip()]
    shown = plain("\n".join(lines[-SHOWN_LINES:]))
    log = f'<details open><summary>What it says</summary><pre tabindex="0">{shown}</pre></details>'
    if job.standing == "at work":
        return f"<h3>At work: {plain(job.verb)}</h3>{_bars(recipe, run)}{log if lines else note('It begins.')}"
    if job.standing == "failed" and job.verb == "export" and "NOT VERIFIED" in job.log:
        return note("All is written, but not every file is the model that was tested. See below why.", "bad") + log
    done = "All is made and verified." if job.verb == "export" else "The dry run sent nothing. It would send:"
    told = {
        "ended": (done, "good"),
        "stopped": ("Stopped. What is finished is kept; the same button goes on.", "soft"),
        "failed": (f"It failed: {job.why}", "bad"),
        "gone": (f"It is gone: {job.why}", "bad"),
    }  # fmt: skip
    if job.standing not in told:
        return ""
    return note(*told[job.standing]) + (log if lines else "")


def _bars(recipe: Recipe, run: Run) -> str:
    """How many of the test rows each file under proof has answered, by the replies that are kept as they come."""
    most = len(_lines(run / "data/test.jsonl")) + len(_lines(run / "data/unseen.jsonl"))
    wanted = min(each for each in (most, recipe.export.rows, recipe.evaluate.rows) if each) if most else 0
    bars = []
    for part in sorted((run / "replies").glob("export-*.part")):
        name, done = part.stem.removeprefix("export-"), max(0, len(_lines(part)) - 1)
        done = min(done, wanted)
        bars.append(
            f"<p>{plain(name)} has answered {done} of {wanted} rows</p>"
            f'<progress max="{max(wanted, 1)}" value="{done}" aria-label="Rows answered by {plain(name)}"></progress>'
        )
    return "".join(bars)


def _lines(path: Any) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    except OSError:
        return []
