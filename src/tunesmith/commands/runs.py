"""Lists the runs of a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import parse_yaml
from tunesmith.errors import RunError, TunesmithError
from tunesmith.reporting.html_page import format_number
from tunesmith.runs.run import Run, hash_file
from tunesmith.training.job import read_journal
from tunesmith.wording import show_bytes

STATES = {"report": "reported", "evaluate": "evaluated", "train": "trained", "prepare": "prepared"}
RUN_FILES = (
    "recipe.yaml",
    ".fingerprints",
    ".lock",
    "journal.jsonl",
    "scores.json",
)  # a folder with one of them is a run
PRODUCT_CHAIN = (  # a product, the name of one of its inputs, and the product that this input is
    ("train", "data", "prepare"),
    ("evaluate", "adapter", "train"),
    ("report", "scores", "evaluate"),
)


@dataclass(frozen=True)
class RunRow:
    """One run of a folder, as far as it can be read; None for what does not exist yet.

    `state`: begun, prepared, stopped, trained, evaluated, reported or damaged; `note` says more. `rows` counts training
    rows, `steps` the steps done and in total. `primary` is the score that the verdict is about: `scores` are its means
    for base and tuned, `interval` is the 95 % interval of the difference. `date`: when the newest product was written,
    in seconds since 1970. `bytes`: total size of the run's files.
    """

    name: str
    state: str
    note: str = ""
    base: str = ""
    rows: int | None = None
    steps: tuple[int, int] | None = None
    primary: str = ""
    scores: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    verdict: str = ""
    date: float = 0.0
    bytes: int = 0

    def cells(self) -> dict[str, str]:
        """Returns the row as text, by column."""
        steps_text = (
            ""
            if self.steps is None
            else f"{self.steps[0]:,}" + ("" if _finished(self.steps) else f"/{self.steps[1]:,}")
        )
        return {
            "run": self.name,
            "state": self.state,
            "base model": self.base,
            "rows": "" if self.rows is None else f"{self.rows:,}",
            "steps": steps_text,
            "score": self.primary.replace("_", " "),
            "base → tuned": f"{format_number(self.scores[0])} → {format_number(self.scores[1])}" if self.scores else "",
            "95 % interval": f"{format_number(self.interval[0])} to {format_number(self.interval[1])}"
            if self.interval
            else "",
            "verdict": self.verdict,
            "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(self.date)) if self.date else "",
            "size": show_bytes(self.bytes),
            "note": self.note,
        }


def list_runs(folder: Path) -> list[RunRow]:
    """Lists the runs in `folder`, newest first, unfinished and damaged ones included. Loads no model, writes nothing.

    Only scores.json is hashed; of other files only the existence is checked. Raises RunError if the folder does not
    exist.
    """
    if not folder.is_dir():
        raise RunError("this folder does not exist", where=str(folder), next="Give the folder of your runs with --runs")
    return sorted(map(_row, run_folders(folder)), key=lambda row: (-row.date, row.name))


def run_folders(folder: Path) -> Iterator[Path]:
    """Yields the folders of the runs in `folder`, in any order."""
    for path in folder.iterdir():
        is_visible_folder = path.is_dir() and not path.name.startswith(".")
        if is_visible_folder and any((path / marker).exists() for marker in RUN_FILES):
            yield path


# --- one run's line ----------------------------------------------------------------------------------------


def _row(path: Path) -> RunRow:
    size, date = _size_and_date(path)
    try:
        return replace(_facts(path), date=date, bytes=size)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, TunesmithError) as error:
        why = error.what if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
        return RunRow(path.name, "damaged", why, date=date, bytes=size)


def _facts(path: Path) -> RunRow:
    """Reads the run's small files. Raises what reading damaged files raises."""
    run = Run(path)
    recipe = _recipe(path)
    records = {product: run.read_fingerprints(product) for product in STATES}
    finished = [product for product in STATES if records[product]]
    events = [] if "train" in finished else read_journal(path / "journal.jsonl")
    row = RunRow(
        path.name, STATES[finished[0]] if finished else "begun", base=str(_nested(recipe, "base", "model") or "")
    )
    if "prepare" in finished:
        row = replace(row, rows=_nested(run.read_json("audit.json"), "parts", "train"))
    if steps := _steps(records["train"], events):
        row = replace(row, steps=steps)
        if "train" not in finished:
            row = replace(row, state="stopped", note=_stopped(path, steps))
    if damage := _damage(path, records):
        return replace(row, state="damaged", note=damage)
    if "evaluate" in finished:
        row = _with_scores(row, run.read_json("scores.json"))
    return replace(row, note=row.note or outdated_product(run))


def _recipe(path: Path) -> dict[str, Any]:
    if not (path / "recipe.yaml").is_file():
        raise RunError("there is no recipe.yaml")
    return parse_yaml((path / "recipe.yaml").read_text(encoding="utf-8"), "recipe.yaml")[0]


def _with_scores(row: RunRow, scores: Any) -> RunRow:
    primary = str(scores["primary"])
    score = _nested(next(iter(scores["sections"].values()), {}), primary)
    if not score:
        return replace(row, primary=primary, verdict="not measured")
    ends = (score.get("low"), score.get("high"))
    return replace(
        row,
        primary=primary,
        scores=(float(score["base"]), float(score["tuned"])),
        interval=None if ends[0] is None or ends[1] is None else (float(ends[0]), float(ends[1])),
        verdict=str(score.get("verdict", "")),
    )


def _steps(record: dict[str, Any] | None, events: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """Returns the steps done and in total, from the record of a finished training or the journal of a stopped one."""
    if record:
        steps = _nested(record, "summary", "steps")
        return (int(steps), int(steps)) if steps else None
    total = next((event["total"] for event in reversed(events) if "total" in event), None)
    last = max((event["step"] for event in events if event.get("kind") in ("step", "saved", "resume")), default=0)
    return None if total is None else (int(last), int(total))


def _stopped(path: Path, steps: tuple[int, int]) -> str:
    """Says how far an unfinished training came, and at which step the same command resumes it."""
    checkpoints = [name.removeprefix("step-") for name in _names(path / "checkpoints") if name.startswith("step-")]
    newest = max((int(name) for name in checkpoints if name.isdigit()), default=0)
    pid = _running_process(path)
    state = f"at step {steps[0]} of {steps[1]}"
    state += f", process {pid} is still running" if pid else ""
    return f"{state}; resumes at step {newest}" if newest else state


def _running_process(path: Path) -> int | None:
    """Returns the id of the process that last held the lock, if it is running and did not start after that."""
    import psutil

    try:
        owner = path / ".lock.owner"
        pid = int(owner.read_text().removeprefix("pid "))
        return pid if psutil.Process(pid).create_time() <= owner.stat().st_mtime else None
    except (OSError, ValueError, psutil.Error):
        return None


def _damage(path: Path, records: dict[str, dict[str, Any] | None]) -> str:
    for product, record in records.items():
        if record is None:
            if (path / f".fingerprints/{product}.json").exists():
                return f"the fingerprint of {product} cannot be read"
            continue
        for name in record["files"]:
            if not (path / name).exists():
                return f"{name} is missing"
        if "scores.json" in record["files"] and hash_file(path / "scores.json") != record["files"]["scores.json"]:
            return "scores.json was edited or is damaged"
    return ""


def outdated_product(run: Run, chain: Sequence[tuple[str, str, str]] = PRODUCT_CHAIN) -> str:
    """Says which product is older than its inputs, or ''. Compares fingerprints; no file is hashed."""
    for product, name, source in chain:
        record, behind = run.read_fingerprints(product), run.read_fingerprints(source)
        if record and behind and record["inputs"].get(name) != run.fingerprint(source):
            return f"{STATES[product]} before it was last {STATES[source]}"
    return ""


def _nested(value: Any, *keys: str) -> Any:
    """Returns the nested value at `keys`, or None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _finished(steps: tuple[int, int]) -> bool:
    return steps[0] == steps[1]


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _size_and_date(path: Path) -> tuple[int, float]:
    """Returns the size of all files below `path` in bytes, and the time of the newest product in seconds since 1970."""
    total, latest = 0, 0.0
    for folder, _, names in os.walk(path):  # files that cannot be listed, or are deleted meanwhile, count as 0
        for name in names:
            file = Path(folder) / name
            try:
                status = file.stat(follow_symlinks=False)
            except OSError:
                continue
            total += status.st_size
            if file.parent.name == ".fingerprints" or name in ("journal.jsonl", "recipe.yaml"):
                latest = max(latest, status.st_mtime)
    return total, latest
