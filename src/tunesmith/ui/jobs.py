"""Background jobs: commands that run in their own process and keep their state in a folder, RUN/.job for a run.

A job survives the browser and the web server. Its status is always read from the folder, so every page and every later
start of the pages sees the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess  # always with a list of arguments, never through a shell
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import ResourceError, RunError

JOB_FOLDER = ".job"
LOG_BYTES = 64 * 1024  # only the end of a log is read
START_SECONDS = 20.0
Status = Literal["none", "running", "ended", "stopped", "failed", "gone"]


@dataclass(frozen=True)
class Job:
    """The last command of a folder. `arguments` are those after `tunesmith`; times are Unix timestamps.

    `reason` is set if the job failed or its process is gone. `log` is the end of the command's output.
    """

    status: Status
    arguments: tuple[str, ...] = ()
    pid: int = 0
    started: float = 0.0
    ended: float = 0.0
    reason: str = ""
    log: str = ""

    @property
    def command(self) -> str:
        """The command's name: train, run, …"""
        return self.arguments[0] if self.arguments else ""


def start(folder: Path, arguments: Sequence[str]) -> Job:
    """Starts `tunesmith ARGUMENTS` as the job of `folder`, which replaces the record of the last one.

    Raises RunError while another job of the folder runs, ResourceError if the process cannot be started.
    """
    current = read_job(folder)
    if current.status == "running":
        raise RunError(
            f"'{current.command}' is already running here", where=str(folder), next="Wait until it ends, or stop it"
        )
    job_folder = folder / JOB_FOLDER
    shutil.rmtree(job_folder, ignore_errors=True)
    job_folder.mkdir(parents=True, mode=0o700)
    command = [sys.executable, "-m", "tunesmith", *arguments]
    supervisor_command = [sys.executable, "-m", "tunesmith.ui.supervisor", str(job_folder), "--", *command]
    try:
        supervisor = subprocess.Popen(  # noqa: S603  (a list of our own arguments)
            supervisor_command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that a signal for the pages does not reach it
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        )
    except OSError as error:
        raise ResourceError(f"the command cannot be started ({error})", where=str(folder)) from error
    threading.Thread(target=supervisor.wait, name="job-supervisor", daemon=True).start()  # reaps the process
    deadline = time.monotonic() + START_SECONDS
    while not (job_folder / "job.json").exists():
        if supervisor.poll() is not None or time.monotonic() > deadline:
            raise ResourceError(
                "the command did not start", where=str(folder), next="Try again, or run it in a terminal to see why"
            )
        time.sleep(0.02)
    return read_job(folder)


def stop(folder: Path) -> None:
    """Interrupts the command like Ctrl-C: training finishes the current step and writes a checkpoint.

    A second call ends it at once. Raises RunError if nothing runs.
    """
    job = read_job(folder)
    if job.status != "running":
        raise RunError("no command is running here", where=str(folder), next="Start one first")
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pid, signal.SIGINT)


def read_job(folder: Path) -> Job:
    """Returns the folder's job with its current status."""
    job_folder = folder / JOB_FOLDER
    record = _read_record(job_folder)
    if record is not None and record.code is None and not record.is_alive():
        record = _read_record(job_folder)  # it may have ended since the first read
    if record is None:
        return Job("none")
    log, code = _tail(job_folder / "log"), record.code
    details: dict[str, Any] = {
        "arguments": record.arguments,
        "pid": record.pid,
        "started": record.started,
        "ended": record.ended,
        "log": log,
    }
    if code is None:
        if record.is_alive():
            return Job("running", **details)
        reason = "its process and its supervisor are gone: the machine went down, or both were killed"
        return Job("gone", reason=reason, **details)
    if code == 0:
        return Job("ended", **details)
    if code in (130, -signal.SIGINT):
        return Job("stopped", **details)
    return Job("failed", reason=_failure_reason(code, log), **details)


def read_memory(folder: Path) -> list[tuple[float, int]]:
    """Returns the memory that the command used: (Unix timestamp, bytes), a sample every two seconds."""
    samples = []
    for line in _tail(folder / JOB_FOLDER / "memory.jsonl", 1 << 20).splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            sample = json.loads(line)
            samples.append((float(sample["time"]), int(sample["bytes"])))
    return samples


@dataclass(frozen=True)
class _Record:
    """The contents of job.json. `code` is None until the end of the command is recorded."""

    arguments: tuple[str, ...]
    pid: int
    supervisor_pid: int
    started: float
    ended: float
    code: int | None

    def is_alive(self) -> bool:
        """Whether the command runs, or its supervisor, which is about to record how it ended."""
        return _is_alive(self.pid, self.started) or _is_alive(self.supervisor_pid, self.started)


def _read_record(job_folder: Path) -> _Record | None:
    try:
        fields = json.loads((job_folder / "job.json").read_text(encoding="utf-8"))
        arguments, code = tuple(str(argument) for argument in fields["command"][3:]), fields.get("code")
        values = (
            int(fields["pid"]),
            int(fields.get("warden", 0)),
            float(fields["began"]),
            float(fields.get("ended", 0)),
        )
        return _Record(arguments, *values, None if code is None else int(code))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _failure_reason(code: int, log: str) -> str:
    """Returns why a command ended with `code`: its last error message, or the meaning of its signal."""
    error_lines = [line for line in log.splitlines() if line.startswith("tunesmith: ")]
    if error_lines:
        return log[log.rindex(error_lines[-1]) :].removeprefix("tunesmith: ").strip()
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL), most likely by the system because memory was full"
    if code < 0:
        return f"it was terminated by {signal.Signals(-code).name}"
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else f"it exited with code {code} and wrote no message"


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process `pid` runs and is not a later one that got the same number."""
    import psutil

    if not pid:
        return False
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= started + 5)
    except psutil.Error:
        return False


def _tail(path: Path, max_bytes: int = LOG_BYTES) -> str:
    """Returns the end of a file as text; '' if there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def lock_owner(folder: Path) -> int:
    """Returns the process that holds the run's lock, also one started in a terminal; 0 if there is none."""
    try:
        file = folder / ".lock.owner"
        pid, since = int(file.read_text(encoding="utf-8").removeprefix("pid ")), file.stat().st_mtime
    except (OSError, ValueError):
        return 0
    return pid if _is_alive(pid, since) and _is_locked(folder) else 0


def _is_locked(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
