"""How far a run has come, as its folder tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.runs.run import Run
from tunesmith.training.journal import read_journal
from tunesmith.ui import jobs, text_html
from tunesmith.ui.curves import curve, short

STAGES = {
    "prepare": "Rows",
    "train": "Training",
    "evaluate": "Comparison",
    "export": "Files",
    "report": "Report",
}  # in the order in which `run` goes through them


@dataclass(frozen=True)
class Progress:
    """A run as its folder shows it now. `at_work` is the process that works on it, 0 where none does."""

    folder: Path
    job: jobs.Job
    at_work: int
    done: tuple[str, ...]
    events: tuple[dict[str, Any], ...]

    @property
    def stage(self) -> str:
        """The stage in hand; '' where nothing is at work."""
        if not self.at_work:
            return ""
        verb = self.job.verb if self.job.standing == "at work" else "run"
        if verb != "run":
            return verb
        return next((name for name in STAGES if name not in self.done), "report")

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done, and all."""
        total = next((int(each["total"]) for each in reversed(self.events) if "total" in each), 0)
        return max((int(each.get("step", 0)) for each in self.events), default=0), total

    @property
    def key(self) -> str:
        """What changes when there is something new to show."""
        return json.dumps(
            [str(self.folder), self.job.standing, self.at_work, self.done, len(self.events), len(self.job.log)]
        )


def look(folder: Path) -> Progress:
    """Reads the run's folder: its job, its seals, its journal. Writes nothing."""
    job = jobs.look(folder)
    run = Run(folder)
    done = tuple(
        name for name in STAGES if run.read_seal(name) or (name == "export" and (run / "export.json").is_file())
    )
    at_work = job.pid if job.standing == "at work" else jobs.owner(folder)
    return Progress(folder, job, at_work, done, tuple(read_journal(folder / "journal.jsonl")))


def stages(found: Progress) -> str:
    """The stages: done, in hand, to come."""
    now = found.stage
    parts = []
    for name, title in STAGES.items():
        kind, sign = ("now", "●") if name == now else ("done", "✓") if name in found.done else ("", "○")
        said = {"now": "at work", "done": "done", "": "to come"}[kind]
        parts.append(f'<li class="{kind}">{sign} {escape(title)}<span class="sr-only"> {said}</span></li>')
    return f'<ul class="stages">{"".join(parts)}</ul>'


def bar(found: Progress) -> str:
    """How much of the training is done, as a bar."""
    done, total = found.steps
    share = 100 * done / total if total else 0
    label = f"Training: step {done} of {total}" if total else "Training has not begun"
    return (
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share:.0f}" '
        f'aria-label="{label}"><i style="width:{share:.1f}%"></i></div>'
    )


def headline(found: Progress) -> str:
    """What is going on, in a sentence, with its kind; of a command that failed or is gone, why."""
    job, (done, total) = found.job, found.steps
    if found.at_work:
        since = f" since {text_html.clock(job.began)}" if job.began and job.standing == "at work" else ""
        what = STAGES.get(found.stage, found.stage or "A command")
        by = f"process {found.at_work}" if job.standing == "at work" else f"process {found.at_work}, started elsewhere"
        return text_html.paragraph(f"{what}: at work{since} ({by}). It goes on when this page is closed.", "good")
    if job.standing == "failed":
        return text_html.parts_of(f"The command '{job.verb}' failed", text_html.clock(job.ended), job.why.rstrip("."))
    if job.standing == "gone":
        return text_html.parts_of(
            f"The command '{job.verb}' is gone",
            f"begun {text_html.clock(job.began)}",
            f"{job.why[:1].upper()}{job.why[1:]}. Start it again: it goes on from the last checkpoint",
        )
    if "train" in found.done:
        return text_html.paragraph("Trained." if "report" not in found.done else "Finished.", "good")
    if job.standing == "stopped" or found.events:
        kept = f" at step {done} of {total}" if total else ""
        return text_html.paragraph(f"Stopped{kept}. Everything is kept: start it again, and it goes on.", "warn")
    return text_html.paragraph("Nothing was trained here yet.", "soft")


def figures(found: Progress) -> str:
    """The newest figures as tiles."""
    steps = [each for each in found.events if each.get("kind") == "step"]
    valid = [each for each in found.events if each.get("kind") == "valid"]
    done, total = found.steps
    told = [(f"{done} / {total}" if total else "–", "steps")]
    if steps:
        last = steps[-1]
        told.append((f"{last.get('loss', float('nan')):.3f}", "loss"))
        if valid:
            told.append((f"{valid[-1].get('loss', float('nan')):.3f}", "validation loss"))
        if "tokens_per_second" in last:
            told.append((f"{last['tokens_per_second']:,.0f}", "tokens/s"))
        if found.at_work and done < total and "eta" in last:
            told.append((text_html.span(last["eta"]), "left to train"))
        elif "time" in last and "time" in found.events[0]:
            told.append((text_html.span(last["time"] - found.events[0]["time"]), "since the start"))
    used = jobs.memory(found.folder)
    if found.at_work and used:
        told.append((text_html.size(used[-1][1]), "memory in use"))
    elif peak := _peak(found.folder):
        told.append((text_html.size(peak[1]), peak[0]))
    return text_html.tiles(told)


def _peak(folder: Path) -> tuple[str, int] | None:
    """What training took at most, measured; or else what the plan says."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(plan, dict):
        for key, name in (("measured", "memory, at most"), ("peak", "memory, planned")):
            if isinstance(plan.get(key), int | float) and plan[key]:
                return name, int(plan[key])
    return None


def curves(found: Progress) -> str:
    """Loss, validation, rate, gradient's norm, tokens/s and memory of the training."""
    steps = [each for each in found.events if each.get("kind") == "step"]
    valid = [each for each in found.events if each.get("kind") == "valid"]
    if not steps and not valid:
        return text_html.paragraph("The curves appear with the first step.", "soft")

    def line(events: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
        return [(float(each["step"]), float(each[name])) for each in events if isinstance(each.get(name), int | float)]

    def newest(points: list[tuple[float, float]], unit: str = "") -> str:
        return f"{short(points[-1][1])}{unit}" if points else ""

    loss, checked = line(steps, "loss"), line(valid, "loss")
    names = "line: training, with dots: validation" if checked else ""
    both = " / ".join(each for each in (newest(loss), newest(checked)) if each)
    made = [curve("Loss and validation", loss, other=checked, now=both, names=names)]
    for title, name, unit in (
        ("Learning rate", "rate", ""),
        ("Gradient norm", "grad_norm", ""),
        ("Tokens per second", "tokens_per_second", " /s"),
    ):
        points = line(steps, name)
        made.append(curve(title, points, now=newest(points, unit)))
    if scores := line(valid, "score"):
        made.append(curve("Score at validation", [], other=scores, now=newest(scores)))
    if used := jobs.memory(found.folder):
        points = [(at - used[0][0], count / (1 << 30)) for at, count in used]
        made.append(curve("Memory of the process, GiB", points, now=text_html.size(used[-1][1]), across="", unit="s"))
    return f'<div class="curves">{"".join(made)}</div>'


def samples(found: Progress) -> str:
    """Replies written at each validation, if the journal has some; it is said if it has not."""
    kept = [each for each in found.events if each.get("kind") == "valid" and isinstance(each.get("samples"), list)]
    told = []
    for event in reversed(kept[-8:]):
        pieces = []
        for each in event["samples"]:
            if isinstance(each, dict):
                prompt, reply = str(each.get("prompt", "")), str(each.get("reply", ""))
                pieces.append(f'<p class="soft text">{escape(prompt)}</p><p class="text">{escape(reply)}</p>')
        opened = " open" if event is kept[-1] else ""
        told.append(
            f"<details{opened}><summary>After step {int(event.get('step', 0))}</summary>{''.join(pieces)}</details>"
        )
    if told:
        return "".join(told)
    if "train" in found.done or any(each.get("kind") == "valid" for each in found.events):
        text = (
            "This training's journal holds figures only, no replies. Those to held-out rows come with the comparison."
        )
        return text_html.paragraph(text, "soft")
    return text_html.paragraph("They appear with the first validation.", "soft")


def notes(found: Progress) -> str:
    """What the training wanted to say: a resume, memory that was short, an early end."""
    told = []
    for each in found.events:
        if each.get("kind") == "note" and each.get("text"):
            told.append(f"Step {each.get('step', 0)}: {each['text']}")
        elif each.get("kind") == "resume":
            told.append(f"Went on after step {each.get('step', 0)}")
    return "".join(text_html.paragraph(text, "soft") for text in told[-8:])
