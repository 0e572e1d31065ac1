"""Progress of a run, read from its folder: stages, figures and SVG curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.runs.run import Run
from tunesmith.training.job import read_journal
from tunesmith.ui import html, jobs
from tunesmith.wording import show_bytes, show_duration, show_time

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
MAX_POINTS = 400  # of a line; more cannot be distinguished at this width


def curve(
    title: str,
    line: Points,
    *,
    dots: Points = (),
    latest: str = "",
    x_label: str = "step",
    x_unit: str = "",
    legend: str = "",
) -> str:
    """Returns a figure with a line, and with `dots` a second one with markers; `latest` is the newest value as text.

    Points that are not finite are left out. `x_label` and `x_unit` surround the values on the x axis.
    """
    line, dots = _downsample(_finite(line)), _downsample(_finite(dots))
    all_points = [*line, *dots]
    head = f"<figcaption>{html.escape(title)}<span>{html.escape(latest)}</span></figcaption>"
    if not all_points:
        return f'<figure>{head}<p class="soft">Nothing yet</p></figure>'
    xs, ys = [x for x, _ in all_points], [y for _, y in all_points]
    y_min, y_max = _axis_range(min(ys), max(ys))
    x_min, x_max = min(xs), max(max(xs), min(xs) + 1)

    def to_pixels(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - x_min) / (x_max - x_min) * (WIDTH - LEFT - RIGHT)
        y = TOP + (y_max - point[1]) / (y_max - y_min) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']
    ticks = (y_min, (y_min + y_max) / 2, y_max)
    parts += [_label(LEFT - 5, to_pixels((x_min, value))[1] + 4, "end", short_number(value)) for value in ticks]
    for value, anchor in ((x_min, "start"), (x_max, "end")):
        parts.append(
            _label(
                to_pixels((value, y_min))[0], HEIGHT - 6, anchor, f"{x_label} {short_number(value)} {x_unit}".strip()
            )
        )
    for points, kind in ((line, "line"), (dots, "dots")):
        if points:
            coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(to_pixels, points))
            parts.append(f'<polyline class="{kind}" points="{coordinates}"/>')
    for x, y in map(to_pixels, dots if len(dots) < 40 else ()):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
    end = latest or short_number((line or dots)[-1][1])
    description = f"{title}: {legend + '; ' if legend else ''}from {short_number(all_points[0][1])} to {end}"
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(description)}">{"".join(parts)}</svg>'
    )
    legend_html = f'<p class="soft">{html.escape(legend)}</p>' if legend else ""
    return f"<figure>{head}{svg}{legend_html}</figure>"


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def short_number(value: float) -> str:
    """Formats a number in a few characters: 2.0e-4, 12.5, 34.6k."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.4g}" if size >= 100 else f"{value:.3g}"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _downsample(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most MAX_POINTS evenly spaced points and the last one."""
    stride = max(1, -(-len(points) // MAX_POINTS))
    return points if stride == 1 else [*points[:-1:stride], points[-1]]


def _axis_range(low: float, high: float) -> tuple[float, float]:
    """Returns the axis limits: the values with a margin, from zero if they come near it."""
    if low == high:
        return low - abs(low or 1) * 0.5, high + abs(high or 1) * 0.5
    margin = (high - low) * 0.06
    return (0.0 if 0 <= low < (high - low) * 0.5 else low - margin), high + margin


STAGES = {
    "prepare": "Prepare",
    "train": "Train",
    "evaluate": "Evaluate",
    "export": "Export",
    "report": "Report",
}  # in the order of `tunesmith run`


@dataclass(frozen=True)
class Progress:
    """State of a run. `pid` is the process that works on it, 0 if there is none."""

    folder: Path
    job: jobs.Job
    pid: int
    finished: tuple[str, ...]
    events: tuple[dict[str, Any], ...]

    @property
    def stage(self) -> str:
        """The current stage; '' if nothing is running."""
        if not self.pid:
            return ""
        command = self.job.command if self.job.status == "running" else "run"
        if command != "run":
            return command
        return next((name for name in STAGES if name not in self.finished), "report")

    @property
    def steps(self) -> tuple[int, int]:
        """Finished steps and total steps."""
        total = next((int(event["total"]) for event in reversed(self.events) if "total" in event), 0)
        return max((int(event.get("step", 0)) for event in self.events), default=0), total

    @property
    def key(self) -> str:
        """A key that changes when there is something new to show."""
        return json.dumps(
            [str(self.folder), self.job.status, self.pid, self.finished, len(self.events), len(self.job.log)]
        )


def read_progress(folder: Path) -> Progress:
    """Reads the run's job, fingerprints and journal."""
    job = jobs.read_job(folder)
    run = Run(folder)
    finished = tuple(
        name for name in STAGES if run.read_fingerprints(name) or (name == "export" and (run / "export.json").is_file())
    )
    pid = job.pid if job.status == "running" else jobs.lock_owner(folder)
    return Progress(folder, job, pid, finished, tuple(read_journal(folder / "journal.jsonl")))


def stages_html(progress: Progress) -> str:
    """Returns the list of stages: done, running, pending."""
    current = progress.stage
    parts = []
    for name, title in STAGES.items():
        kind, sign = ("now", "●") if name == current else ("done", "✓") if name in progress.finished else ("", "○")
        status = {"now": "running", "done": "done", "": "pending"}[kind]
        parts.append(f'<li class="{kind}">{sign} {html.escape(title)}<span class="sr-only"> {status}</span></li>')
    return f'<ul class="stages">{"".join(parts)}</ul>'


def progress_bar(progress: Progress) -> str:
    """Returns the progress bar of the training."""
    step, total = progress.steps
    percent = 100 * step / total if total else 0
    label = f"Training: step {step} of {total}" if total else "Training has not started"
    return (
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}" '
        f'aria-label="{label}"><i style="width:{percent:.1f}%"></i></div>'
    )


def headline(progress: Progress) -> str:
    """Returns the state of the run in one sentence; if the command failed or is gone, why."""
    job, (step, total) = progress.job, progress.steps
    if progress.pid:
        since = f" since {show_time(job.started)}" if job.started and job.status == "running" else ""
        title = STAGES.get(progress.stage, progress.stage or "A command")
        process = f"process {progress.pid}" if job.status == "running" else f"process {progress.pid}, started elsewhere"
        return html.paragraph(f"{title}: running{since} ({process}). It continues if you close this page.", "good")
    if job.status == "failed":
        return html.error_box(f"The command '{job.command}' failed", show_time(job.ended), job.reason.rstrip("."))
    if job.status == "gone":
        return html.error_box(
            f"The process of '{job.command}' is gone",
            f"started {show_time(job.started)}",
            f"{job.reason[:1].upper()}{job.reason[1:]}. Start it again to resume from the last checkpoint",
        )
    if "train" in progress.finished:
        return html.paragraph("Trained." if "report" not in progress.finished else "Finished.", "good")
    if job.status == "stopped" or progress.events:
        at_step = f" at step {step} of {total}" if total else ""
        return html.paragraph(f"Stopped{at_step}. Everything is saved: start it again to resume.", "warn")
    return html.paragraph("Not trained yet.", "soft")


def figure_tiles(progress: Progress) -> str:
    """Returns the latest metrics as tiles."""
    steps = [event for event in progress.events if event.get("kind") == "step"]
    valid = [event for event in progress.events if event.get("kind") == "valid"]
    step, total = progress.steps
    figures = [(f"{step} / {total}" if total else "–", "steps")]
    if steps:
        last = steps[-1]
        figures.append((f"{last.get('loss', float('nan')):.3f}", "loss"))
        if valid:
            figures.append((f"{valid[-1].get('loss', float('nan')):.3f}", "validation loss"))
        if "tokens_per_second" in last:
            figures.append((f"{last['tokens_per_second']:,.0f}", "tokens/s"))
        if progress.pid and step < total and "eta" in last:
            figures.append((show_duration(last["eta"]), "time left"))
        elif "time" in last and "time" in progress.events[0]:
            figures.append((show_duration(last["time"] - progress.events[0]["time"]), "training time"))
    memory = jobs.read_memory(progress.folder)
    if progress.pid and memory:
        figures.append((show_bytes(memory[-1][1]), "memory in use"))
    elif peak := _peak_memory(progress.folder):
        figures.append((show_bytes(peak[1]), peak[0]))
    return html.tiles(figures)


def _peak_memory(folder: Path) -> tuple[str, int] | None:
    """Returns the caption and bytes of the measured peak memory, or else of the planned one."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(plan, dict):
        for key, name in (("measured", "peak memory"), ("peak", "planned peak memory")):
            if isinstance(plan.get(key), int | float) and plan[key]:
                return name, int(plan[key])
    return None


def curves_html(progress: Progress) -> str:
    """Returns the curves of loss, learning rate, gradient norm, tokens/s and memory."""
    steps = [event for event in progress.events if event.get("kind") == "step"]
    valid = [event for event in progress.events if event.get("kind") == "valid"]
    if not steps and not valid:
        return html.paragraph("Curves appear after the first step.", "soft")

    def line(events: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
        return [
            (float(event["step"]), float(event[name])) for event in events if isinstance(event.get(name), int | float)
        ]

    def latest_value(points: list[tuple[float, float]], unit: str = "") -> str:
        return f"{short_number(points[-1][1])}{unit}" if points else ""

    loss, valid_loss = line(steps, "loss"), line(valid, "loss")
    legend = "line: training, dots: validation" if valid_loss else ""
    latest_loss = " / ".join(filter(None, (latest_value(loss), latest_value(valid_loss))))
    figures = [curve("Training and validation loss", loss, dots=valid_loss, latest=latest_loss, legend=legend)]
    for title, name, unit in (
        ("Learning rate", "rate", ""),
        ("Gradient norm", "grad_norm", ""),
        ("Tokens per second", "tokens_per_second", " /s"),
    ):
        points = line(steps, name)
        figures.append(curve(title, points, latest=latest_value(points, unit)))
    if scores := line(valid, "score"):
        figures.append(curve("Validation score", [], dots=scores, latest=latest_value(scores)))
    if memory := jobs.read_memory(progress.folder):
        points = [(seconds - memory[0][0], count / (1 << 30)) for seconds, count in memory]
        figures.append(
            curve("Memory of the process, GiB", points, latest=show_bytes(memory[-1][1]), x_label="", x_unit="s")
        )
    return f'<div class="curves">{"".join(figures)}</div>'


def samples_html(progress: Progress) -> str:
    """Returns the sample replies of each validation, or a note if there are none."""
    with_samples = [
        event for event in progress.events if event.get("kind") == "valid" and isinstance(event.get("samples"), list)
    ]
    blocks = []
    for event in reversed(with_samples[-8:]):
        pieces = []
        for item in event["samples"]:
            if isinstance(item, dict):
                prompt, reply = str(item.get("prompt", "")), str(item.get("reply", ""))
                pieces.append(f'<p class="soft text">{html.escape(prompt)}</p><p class="text">{html.escape(reply)}</p>')
        attribute = " open" if event is with_samples[-1] else ""
        blocks.append(
            f"<details{attribute}><summary>After step {int(event.get('step', 0))}</summary>{''.join(pieces)}</details>"
        )
    if blocks:
        return "".join(blocks)
    if "train" in progress.finished or any(event.get("kind") == "valid" for event in progress.events):
        text = "This training wrote no sample replies. Set train.samples to get them at each validation."
        return html.paragraph(text, "soft")
    return html.paragraph("Sample replies appear after the first validation.", "soft")


def notes_html(progress: Progress) -> str:
    """Returns the notes of the journal, for example a resume, short memory or early stopping."""
    lines = []
    for event in progress.events:
        if event.get("kind") == "note" and event.get("text"):
            lines.append(f"Step {event.get('step', 0)}: {event['text']}")
        elif event.get("kind") == "resume":
            lines.append(f"Resumed after step {event.get('step', 0)}")
    return "".join(html.paragraph(text, "soft") for text in lines[-8:])
