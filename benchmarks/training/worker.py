"""One process: measures some settings of one engine and shape, and adds a row for each as soon as it has it.

It is started by `python -m benchmarks.training` with a job on its command line. After a failure it ends, so that the
next setting finds a card without remains.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.training import table
from benchmarks.training.table import Setting

GIB = 1 << 30
FOLDER = "folder:"
AGAIN = 75  # the exit status of a worker that stopped after a failure it wrote down


@dataclass(frozen=True)
class Job:
    """Settings of one engine and shape, smallest first. `deadline` is in seconds since 1970, 0 for none."""

    settings: tuple[Setting, ...]
    out: Path
    scratch: Path
    device: str
    commit: str
    model: str = ""  # a name in shapes.py, or folder:PATH
    deadline: float = 0.0
    rows: str = ""
    tokenizer: str = ""
    limit_rows: int = 0

    @property
    def folder(self) -> Path:
        """Where the model lies; one from shapes.py is made there."""
        if self.model.startswith(FOLDER):
            return Path(self.model.removeprefix(FOLDER)).resolve()
        return self.scratch / (f"{self.model}-{Path(self.tokenizer).name}" if self.tokenizer else self.model)

    def dumps(self) -> str:
        """As one word of a command line."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> Job:
        """The job that `dumps` wrote."""
        plain = json.loads(text)
        settings = tuple(Setting(**setting) for setting in plain.pop("settings"))
        return cls(settings, Path(plain.pop("out")), Path(plain.pop("scratch")), **plain)


def main() -> None:
    """Measures every setting of the job."""
    job = Job.loads(sys.argv[1])
    try:
        measurer = _conversations(job) if job.rows else _random(job)
    except Exception as error:  # an engine that cannot be loaded is the same failure for each of its settings
        for setting in job.settings:
            table.append(job.out, _row(job, setting, failure=reason(error)))
        _leave(error)
    for setting in job.settings:
        if job.deadline and time.time() > job.deadline:
            return
        (job.scratch / "began").write_text(json.dumps(asdict(setting)), encoding="utf-8")
        try:
            measured = measurer(setting)
        except Exception as error:
            table.append(job.out, _row(job, setting, failure=reason(error)))
            _leave(error)
        table.append(job.out, _row(job, setting, **measured))


def _leave(error: Exception) -> NoReturn:
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(AGAIN)  # at once: a card without memory can hang in the libraries' own farewells


def reason(error: BaseException) -> str:
    """An error in one short line; running out of memory reads alike for every engine."""
    import torch

    text = re.sub(r"(/[\w.+-]+){2,}/", "", " ".join(str(error).split()))  # where files lie is nobody else's matter
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text.lower():
        return "out of memory"
    return f"{type(error).__name__}: {text}"[:300]


def _row(job: Job, setting: Setting, **measured: str) -> table.Row:
    return table.make(
        setting, commit=job.commit, device=device_name(job.device), precision=_precision(setting), **measured
    )


def device_name(device: str) -> str:
    """The card's or the processor's name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    from tunesmith.hardware import core_count, cpu_name

    return f"{cpu_name()}, {core_count()} cores"


def _precision(setting: Setting) -> str:
    if setting.engine.startswith("native"):
        from benchmarks.training.native import PRECISIONS

        return PRECISIONS[setting.engine]
    return "bfloat16"


def _conversations(job: Job) -> Callable[[Setting], dict[str, str]]:
    _first(job)
    from benchmarks.training.conversations import measure

    return lambda setting: measure(job, setting)


def _first(job: Job) -> None:
    if job.settings[0].engine == "unsloth":
        import unsloth  # noqa: F401  (it patches transformers, PEFT and TRL, so it comes before them)


def _random(job: Job) -> Callable[[Setting], dict[str, str]]:
    _first(job)
    if job.settings[0].engine.startswith("native"):
        return lambda setting: _native(job.folder, setting, job)
    return _rival(job.folder, job)


def _rival(folder: Path, job: Job) -> Callable[[Setting], dict[str, str]]:
    from benchmarks.training.clock import random_ids, timed

    first = job.settings[0]
    if first.engine == "unsloth":
        from benchmarks.training import rival_unsloth

        longest = max(setting.length for setting in job.settings)
        whole, vocabulary = rival_unsloth.make_step(
            folder, checkpointing=first.checkpointing, rank=first.rank, longest=longest
        )
    else:
        from benchmarks.training import rival_trl

        whole, vocabulary = rival_trl.make_step(
            first.engine, folder, checkpointing=first.checkpointing == "yes", rank=first.rank, device=job.device
        )

    def measurer(setting: Setting) -> dict[str, str]:
        batch = int(setting.batch)
        draw = random_ids(batch, setting.length, vocabulary, job.device)
        return figures(timed(lambda: whole(draw()), batch * setting.length, job.device))

    return measurer


def _native(folder: Path, setting: Setting, job: Job) -> dict[str, str]:
    from benchmarks.training import native

    from tunesmith.errors import ResourceError

    batch = int(setting.batch)
    budget = int(float(setting.budget) * GIB) if setting.budget else None
    try:
        precision = native.PRECISIONS[setting.engine]
        how = native.planned(folder, batch, setting.length, budget_bytes=budget, rank=setting.rank, precision=precision)
    except ResourceError as error:  # known before anything is loaded, so the process may go on
        return {"failure": reason(error)}
    planned = {"planned_gib": f"{how.peak / GIB:.2f}", "note": how.name}
    for row in table.read(job.out):
        same = replace(row.setting, budget="") == replace(setting, budget="") and row.commit == job.commit
        if same and row.note == planned["note"] and not row.failure:  # the same plan needs no second measurement
            kept = ("tokens_s", "tokens_s_p20", "tokens_s_p80", "ms_median", "steps", "peak_gib", "reserved_gib")
            return {**{name: getattr(row, name) for name in kept}, **planned}
    measured = native.measure(
        folder,
        batch,
        setting.length,
        how=how,
        budget=budget,
        device=job.device,
        rank=setting.rank,
    )
    return {**figures(measured), **planned}


def figures(measured: Any) -> dict[str, str]:
    """Columns of the table from what the clock read."""
    from benchmarks.training.clock import quantile

    low, middle, high = measured.rates
    return {
        "tokens_s": f"{middle:.0f}",
        "tokens_s_p20": f"{low:.0f}",
        "tokens_s_p80": f"{high:.0f}",
        "ms_median": f"{quantile(measured.seconds, 0.5) * 1e3:.1f}",
        "steps": str(len(measured.seconds)),
        "peak_gib": f"{measured.peak / GIB:.2f}",
        "reserved_gib": f"{measured.reserved / GIB:.2f}",
    }


if __name__ == "__main__":
    main()
