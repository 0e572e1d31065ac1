"""Measures training engines on this machine and adds a row a setting to a table.

Each engine, shape and way of checkpointing gets a process of its own; a crash, a failure or a step that takes too
long becomes a row with its reason. The same command goes on where it stopped: settings in the table are passed over.
`--page` writes docs/performance.md and its plots from the table and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.training import table
from benchmarks.training.table import Setting
from benchmarks.training.worker import AGAIN, FOLDER, Job

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "training.csv"
ENGINES = ("native", "native-fast", "trl", "trl-liger", "unsloth")
CHECKPOINTING = {"trl": ("no", "yes"), "trl-liger": ("no", "yes"), "peft": ("no", "yes"), "unsloth": ("no", "unsloth")}
LIMIT = 420.0  # seconds a setting may take, its process's start included


def main(words: list[str] | None = None) -> None:
    """Plans the jobs and runs them one after another."""
    given = _arguments(words)
    if given.page:
        from benchmarks.training.page import write

        write(given.out, ROOT / "docs")
        return
    scratch = given.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    plain = Job((), given.out.resolve(), scratch, given.device, given.commit or _commit())
    plain = replace(
        plain,
        deadline=time.time() + 60 * given.minutes if given.minutes else 0.0,
        rows=str(given.rows.resolve()) if given.rows else "",
        tokenizer=str(given.tokenizer.resolve()) if given.tokenizer else "",
        limit_rows=given.limit_rows,
    )
    for settings in groups(given):
        folder = next((shape for shape in given.shapes if shape_name(shape) == settings[0].shape), "")
        if not run(replace(plain, settings=settings, model=folder), given.retry, given.limit):
            print("the time is used up; the same command goes on", flush=True)
            return


def groups(given: argparse.Namespace) -> Iterator[tuple[Setting, ...]]:
    """The settings of each process: one engine, one shape, one way of checkpointing, small steps first."""
    for shape in given.shapes:
        for engine in given.engines:
            for checkpointing in CHECKPOINTING.get(engine, ("",)):
                if checkpointing and given.checkpointing and checkpointing not in given.checkpointing:
                    continue
                first = Setting(engine, shape_name(shape), "random", "", 0, checkpointing, rank=given.rank)
                if given.rows:
                    yield from _of_rows(given, first)
                    continue
                budgets = [*given.budgets, ""] if engine.startswith("native") else [""]
                yield tuple(
                    replace(first, batch=str(batch), length=length, budget=budget)
                    for batch, length in sorted(given.batches, key=lambda pair: pair[0] * pair[1])
                    for budget in budgets
                )


def shape_name(shape: str) -> str:
    """A shape as the table names it: a folder's last part, not where it lies."""
    return Path(shape.removeprefix(FOLDER)).name


def _of_rows(given: argparse.Namespace, first: Setting) -> Iterator[tuple[Setting, ...]]:
    """One fine-tune a process; rivals pack where the step is counted in tokens, `trl` also without packing."""
    base = replace(first, data=given.part, batch=given.step, length=given.longest)
    if first.engine.startswith("native"):
        yield (base,)
    elif given.step.endswith("tokens"):
        packings = ("bfd", "padded") if first.engine == "trl" else ("bfd",)
        yield from ((replace(base, packing=packing),) for packing in packings)
    else:
        yield (replace(base, packing="padded"),)


def run(job: Job, retry: bool, limit: float) -> bool:
    """Measures what the table lacks of a job, in as many processes as it takes. False when the time is used up."""
    tried: set[Setting] = set()
    while True:
        rows = table.read(job.out)
        done = {row.setting for row in rows if not (retry and _worth_again(row))} | tried
        left = tuple(setting for setting in job.settings if setting not in done)
        if not left:
            return True
        if job.deadline and time.time() > job.deadline:
            return False
        _make_model(job)
        _say(left)
        status, last = _process(replace(job, settings=left), limit)
        began = job.scratch / "began"
        current = Setting(**json.loads(began.read_text(encoding="utf-8"))) if began.exists() else left[0]
        added = table.read(job.out)[len(rows) :]
        tried.update([current, *(row.setting for row in added)])
        _show(added)
        if status not in (0, AGAIN):  # it died before it could write its row
            failed = table.make(
                current, commit=job.commit, device=f"{job.device}", precision="", failure=f"exit {status}: {last}"
            )
            table.append(job.out, failed)
            _show([failed])


def _worth_again(row: table.Row) -> bool:
    return bool(row.failure) and row.failure != "out of memory"


def _process(job: Job, limit: float) -> tuple[int, str]:
    """Runs a worker. Returns its exit status (124 if one setting took longer than `limit`) and its last line."""
    began = job.scratch / "began"
    began.unlink(missing_ok=True)
    log = job.scratch / "worker.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training.worker", job.dumps()],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=job.scratch,
            env=_environment(job),
        )
        started = time.time()
        try:
            while process.poll() is None:
                time.sleep(0.2)
                since = max(started, began.stat().st_mtime if began.exists() else 0.0)
                if time.time() - since > limit:
                    process.kill()
                    process.wait()
                    return 124, f"one setting took more than {limit:.0f} s"
        finally:
            if process.poll() is None:
                process.kill()
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return process.returncode, (lines or ["no output"])[-1].strip()[:300]


def _make_model(job: Job) -> None:
    """The model's folder, made by a process that no engine has changed anything in."""
    if job.model.startswith(FOLDER) or (job.folder / "config.json").exists():
        return
    words = [job.model, str(job.folder), job.device, *([job.tokenizer] if job.tokenizer else [])]
    command = [sys.executable, "-m", "benchmarks.training.shapes", *words]
    done = subprocess.run(command, cwd=job.scratch, env=_environment(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the model {job.model} could not be made:\n{done.stderr[-2000:]}")


def _environment(job: Job) -> dict[str, str]:
    """Nothing is fetched or reported, one card is seen, and this folder's packages are found from any folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if job.device == "cuda" else ""
    own = {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": card,
    }
    return {**os.environ, **own}


def _say(left: tuple[Setting, ...]) -> None:
    first = left[0]
    words = [first.engine, first.shape, first.data, first.packing]
    words += [f"checkpointing {first.checkpointing}"] if first.checkpointing else []
    print(", ".join(filter(None, words)), f"({len(left)} settings)", flush=True)


def _show(rows: list[table.Row]) -> None:
    for row in rows:
        budget = f" in {row.budget_gib} GiB" if row.budget_gib else ""
        found = row.failure or f"{row.tokens_s} tokens/s, peak {row.peak_gib} GiB"
        print(f"  {row.batch} x {row.length}{budget}: {found}", flush=True)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit("this is no git checkout: name the version that is measured with --commit")
    return done.stdout.strip()


def _pair(text: str) -> tuple[int, int]:
    batch, _, length = text.partition("x")
    return int(batch), int(length)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    listed: dict[str, Any] = {"type": lambda text: [part for part in text.split(",") if part]}
    parser.add_argument("--engines", **listed, default=list(ENGINES), help=f"of {', '.join(ENGINES)}, peft")
    parser.add_argument("--shapes", **listed, default=["llama2-7b"], help="see shapes.py, or folder:PATH")
    pairs: dict[str, Any] = {"type": lambda text: [_pair(part) for part in text.split(",")]}
    parser.add_argument("--batches", **pairs, default=[(1, 512), (4, 512), (16, 512), (8, 2048)], help="ROWSxTOKENS,…")
    parser.add_argument("--budgets", **listed, default=[], help="GiB for native; without one is measured too")
    parser.add_argument("--checkpointing", **listed, default=[], help="of no, yes, unsloth; all unless given")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=Path, help="a file of conversations: a whole epoch is measured on them")
    parser.add_argument("--part", choices=["finance", "support"], help="what the file of --rows holds")
    parser.add_argument("--step", default="8192 tokens", help="an optimizer step over --rows: 'N tokens' or 'N rows'")
    parser.add_argument("--longest", type=int, default=1024, help="longer rows of --rows are left out")
    parser.add_argument("--limit-rows", type=int, default=0, help="only so many of --rows; 0: all")
    parser.add_argument("--tokenizer", type=Path, help="a folder with the tokenizer for --rows")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/training-benchmark"), help="models are made here")
    parser.add_argument("--commit", default="", help="what is measured, where there is no git")
    parser.add_argument("--minutes", type=float, default=0.0, help="start no setting after so many minutes")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a setting is given up")
    parser.add_argument("--retry", action="store_true", help="measure failed settings again, out of memory excepted")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md from the table")
    given = parser.parse_args(words)
    if bool(given.rows) != bool(given.part):
        parser.error("--rows and --part belong together")
    known = {*ENGINES, "peft"}
    if unknown := sorted(set(given.engines) - known):
        parser.error(f"no engine is called '{unknown[0]}'; there are {', '.join(sorted(known))}")
    return given


if __name__ == "__main__":
    main()
