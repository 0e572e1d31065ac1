"""The verbs that look at finished work: runs, compare_runs, card. The first two write nothing into a run."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.commands.shared import (
    Say,
    is_fresh,
    load_template_of,
    load_weights,
    refuse_changed,
    silent,
    template_file,
    template_hash,
)
from tunesmith.config.recipe import Recipe, parse_yaml
from tunesmith.errors import ModelError, RunError, TunesmithError
from tunesmith.reporting.html_page import number
from tunesmith.reporting.runs_page import SideBySide, page_name, runs_page, side_by_side
from tunesmith.runs.run import Run, hash_file, hash_plain, write_atomic
from tunesmith.training.journal import read_journal

STATES = {"report": "reported", "evaluate": "evaluated", "train": "trained", "prepare": "prepared"}
MARKS = ("recipe.yaml", ".seals", ".lock", "journal.jsonl", "scores.json")  # one of them makes a folder a run
MADE_FROM = (  # product, the name that its seal gives to what it was made from, the product that this is
    ("train", "data", "prepare"),
    ("evaluate", "adapter", "train"),
    ("report", "scores", "evaluate"),
)


@dataclass(frozen=True)
class RunRow:
    """One run of a folder, as far as it can be read; None for what is not there yet.

    `state`: begun, prepared, stopped, trained, evaluated, reported or damaged, and `note` says more. `rows` are those
    to learn from, `steps` those done and all. `primary` is the score that the verdict is about: `scores` its mean for
    base and tuned, `interval` the ends of the difference's 95 % interval. `date`: seconds since 1970, of the newest
    product. `bytes` on disk, of files' lengths.
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
        """The row as words, by column."""
        done = "" if self.steps is None else f"{self.steps[0]:,}" + ("" if _even(self.steps) else f"/{self.steps[1]:,}")
        return {
            "run": self.name,
            "state": self.state,
            "base model": self.base,
            "rows": "" if self.rows is None else f"{self.rows:,}",
            "steps": done,
            "score": self.primary.replace("_", " "),
            "base → tuned": f"{number(self.scores[0])} → {number(self.scores[1])}" if self.scores else "",
            "95 % interval": f"{number(self.interval[0])} to {number(self.interval[1])}" if self.interval else "",
            "verdict": self.verdict,
            "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(self.date)) if self.date else "",
            "size": _size(self.bytes),
            "note": self.note,
        }


def list_runs(folder: Path) -> list[RunRow]:
    """The runs that lie in `folder`, the newest first; half-done and damaged ones too. Loads no model, writes nothing.

    Of what is sealed, scores.json alone is hashed; of the rest it is looked whether it is there. Raises RunError when
    there is no such folder.
    """
    if not folder.is_dir():
        raise RunError("there is no such folder", where=str(folder), next="Name the folder of the runs with --runs")
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found = [_row(path) for path in inside if any((path / mark).exists() for mark in MARKS)]
    return sorted(found, key=lambda row: (-row.date, row.name))


def compare_runs(names: Sequence[str], runs: Path, say: Say = silent, *, out: Path | None = None) -> SideBySide:
    """Finished runs (folders, or names in `runs`) on the rows that all of them were asked, against the first.

    Writes compare-<names>.html into `out` (`runs` by default). Raises RunError for fewer than two runs, one that is
    not evaluated or damaged, and runs that have no row in common.
    """
    folders = [_find(name, runs) for name in names]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise RunError("a comparison needs two runs or more, each once", where=" ".join(names), next="Name two runs")
    found = side_by_side(folders)
    path = (out or runs) / page_name(found.labels)
    write_atomic(path, runs_page(found))
    for line in found.lines():
        say(f"compare: {line}")
    say(f"compare: see {path}")
    return replace(found, page=path)


def card(recipe: Recipe, run: Run, say: Say = silent, *, license: str = "") -> Path:
    """Writes card.md, the README.md of a model repository, from what was measured. `license` is the hub's word for it.

    Raises RunError when the run is not evaluated, or its scores are those of another adapter.
    """
    refuse_changed(recipe, run)
    made_from = {
        "scores": run.fingerprint("evaluate"),
        "adapter": run.fingerprint("train"),
        "data": run.fingerprint("prepare"),
        "recipe": hash_plain(_without_paths(recipe, run)),
        "license": license,
    }
    if stale := _stale(run, MADE_FROM[:2]):
        raise RunError(stale, where=str(run.path), next=f"Run: tunesmith run {shlex.quote(str(run.path))}")
    if is_fresh(run, "card", made_from, say):
        return run / "card.md"
    from tunesmith.reporting.model_card import model_card

    seals = {name: run.read_seal(name) or {} for name in ("prepare", "train", "evaluate")}
    template = _template(recipe, run, seals["train"].get("weights"), say)
    text = model_card(recipe, run.path, seals=seals, template=template, license=license)
    run.write("card.md", text)
    run.seal("card", made_from, ["card.md"])
    say(f"card: {run / 'card.md'}")
    return run / "card.md"


def _without_paths(recipe: Recipe, run: Run) -> dict[str, Any]:
    """The recipe as plain values, but for where files lie: what they hold is in the seals of what is made of them."""
    plain = recipe.dump()
    named = [source for source in plain["data"].pop("source") if source.startswith("hub:")]
    plain["data"].pop("pseudonyms")
    plain["evaluate"].pop("probes")
    plain["prompt"]["template"] = template_hash(template_file(recipe, run))
    return {**plain, "sources": named}


def _template(recipe: Recipe, run: Run, trained: Any, say: Say) -> Any:
    """The template that the model was trained with; None, said, where the base model cannot be had any more."""
    try:
        weights = load_weights(recipe, say)
        if trained and weights.fingerprint != trained:
            raise ModelError("the base model here is no longer the one that was trained", where=recipe.base.model)
        return load_template_of(recipe, weights, run)
    except TunesmithError as error:
        say(f"card: the chat template is not written out: {error.what}")
        return None


def _find(name: str, runs: Path) -> Path:
    for path in (Path(name), runs / name):
        if (path / "recipe.yaml").is_file():
            return path
    raise RunError(f"there is no run '{name}'", where=str(runs), next="List them: tunesmith runs")


# --- one run's line ----------------------------------------------------------------------------------------


def _row(path: Path) -> RunRow:
    size, date = _weigh(path)
    try:
        return replace(_facts(path), date=date, bytes=size)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, TunesmithError) as error:
        why = error.what if isinstance(error, TunesmithError) else f"{type(error).__name__}: {error}"
        return RunRow(path.name, "damaged", why, date=date, bytes=size)


def _facts(path: Path) -> RunRow:
    """What the run's small files say. Raises what reading damaged ones raises."""
    run = Run(path)
    recipe = _recipe(path)
    seals = {product: run.read_seal(product) for product in STATES}
    done = [product for product in STATES if seals[product]]
    events = [] if "train" in done else read_journal(path / "journal.jsonl")
    row = RunRow(path.name, STATES[done[0]] if done else "begun", base=str(_dig(recipe, "base", "model") or ""))
    if "prepare" in done:
        row = replace(row, rows=_dig(run.read_json("audit.json"), "parts", "train"))
    if steps := _steps(seals["train"], events):
        row = replace(row, steps=steps)
        if "train" not in done:
            row = replace(row, state="stopped", note=_stopped(path, steps))
    if damage := _damage(path, seals):
        return replace(row, state="damaged", note=damage)
    if "evaluate" in done:
        row = _with_scores(row, run.read_json("scores.json"))
    return replace(row, note=row.note or _stale(run))


def _recipe(path: Path) -> dict[str, Any]:
    if not (path / "recipe.yaml").is_file():
        raise RunError("there is no recipe.yaml")
    return parse_yaml((path / "recipe.yaml").read_text(encoding="utf-8"), "recipe.yaml")[0]


def _with_scores(row: RunRow, scores: Any) -> RunRow:
    primary = str(scores["primary"])
    found = _dig(next(iter(scores["sections"].values()), {}), primary)
    if not found:
        return replace(row, primary=primary, verdict="not measured")
    ends = (found.get("low"), found.get("high"))
    return replace(
        row,
        primary=primary,
        scores=(float(found["base"]), float(found["tuned"])),
        interval=None if ends[0] is None or ends[1] is None else (float(ends[0]), float(ends[1])),
        verdict=str(found.get("verdict", "")),
    )


def _steps(seal: dict[str, Any] | None, events: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """Steps done and all of them, from the seal of a finished training or the journal of one that is not."""
    if seal:
        done = _dig(seal, "summary", "steps")
        return (int(done), int(done)) if done else None
    total = next((event["total"] for event in reversed(events) if "total" in event), None)
    last = max((event["step"] for event in events if event.get("kind") in ("step", "saved", "resume")), default=0)
    return None if total is None else (int(last), int(total))


def _stopped(path: Path, steps: tuple[int, int]) -> str:
    """Where a training that is not finished stands, and from which step the same command goes on."""
    kept = [name.removeprefix("step-") for name in _names(path / "checkpoints") if name.startswith("step-")]
    newest = max((int(name) for name in kept if name.isdigit()), default=0)
    at_work = _at_work(path)
    state = f"at step {steps[0]} of {steps[1]}"
    state += f", process {at_work} is still there" if at_work else ""
    return f"{state}; a checkpoint of step {newest} is kept" if newest else state


def _at_work(path: Path) -> int | None:
    """The process that last held the lock, if it lives: one that began later only has its number."""
    import psutil

    try:
        owner = path / ".lock.owner"
        pid = int(owner.read_text().removeprefix("pid "))
        return pid if psutil.Process(pid).create_time() <= owner.stat().st_mtime else None
    except (OSError, ValueError, psutil.Error):
        return None


def _damage(path: Path, seals: dict[str, dict[str, Any] | None]) -> str:
    for product, seal in seals.items():
        if seal is None:
            if (path / f".seals/{product}.json").exists():
                return f"the seal of {product} cannot be read"
            continue
        for name in seal["files"]:
            if not (path / name).exists():
                return f"{name} is gone"
        if "scores.json" in seal["files"] and hash_file(path / "scores.json") != seal["files"]["scores.json"]:
            return "scores.json was changed by hand or damaged"
    return ""


def _stale(run: Run, chain: Sequence[tuple[str, str, str]] = MADE_FROM) -> str:
    """Which product is older than what it was made from; '' where none is. By the seals alone: nothing is hashed."""
    for product, name, source in chain:
        seal, behind = run.read_seal(product), run.read_seal(source)
        if seal and behind and seal["made_from"].get(name) != run.fingerprint(source):
            return f"{STATES[product]} before it was last {STATES[source]}"
    return ""


def _dig(value: Any, *keys: str) -> Any:
    """The value below `keys`, or None where something on the way is no mapping or lacks the key."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _even(steps: tuple[int, int]) -> bool:
    return steps[0] == steps[1]


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _weigh(path: Path) -> tuple[int, float]:
    """The length of all files below `path` in bytes, and when the newest product was written, in seconds since 1970."""
    total, newest = 0, 0.0
    for folder, _, names in os.walk(path):  # what cannot be listed, or vanishes meanwhile, weighs nothing
        for name in names:
            file = Path(folder) / name
            try:
                facts = file.stat(follow_symlinks=False)
            except OSError:
                continue
            total += facts.st_size
            if file.parent.name == ".seals" or name in ("journal.jsonl", "recipe.yaml"):
                newest = max(newest, facts.st_mtime)
    return total, newest


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"
