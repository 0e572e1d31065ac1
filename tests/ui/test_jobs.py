"""Background jobs: they outlive the pages, and their folder records how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tunesmith.errors import RunError
from tunesmith.ui import jobs

SLEEPS = "import time\nprint('asleep', flush=True)\ntime.sleep(60)"
FAILS = "import sys\nprint('tunesmith: the disk is full. Free some', flush=True)\nsys.exit(6)"


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def supervised(folder: Path, code: str) -> subprocess.Popen[bytes]:
    """Starts a command under the supervisor like `start`, but with Python code as the command."""
    place = folder / jobs.JOB_FOLDER
    place.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "tunesmith.ui.supervisor",
        str(place),
        "--",
        sys.executable,
        "-c",
        code,
        "train",
        "x",
    ]
    process = subprocess.Popen(command)
    wait_until(lambda: (place / "job.json").exists())
    return process


def asleep(folder: Path) -> subprocess.Popen[bytes]:
    process = supervised(folder, SLEEPS)
    wait_until(lambda: "asleep" in jobs.read_job(folder).log)
    return process


def test_a_command_from_start_to_end(tmp_path: Path) -> None:
    assert jobs.read_job(tmp_path).status == "none"
    job = jobs.start(tmp_path, ["recipes"])
    assert job.arguments == ("recipes",)
    assert job.status in ("running", "ended")
    if job.status == "running":
        with pytest.raises(RunError, match="already running here"):
            jobs.start(tmp_path, ["recipes"])
    wait_until(lambda: jobs.read_job(tmp_path).status == "ended")
    done = jobs.read_job(tmp_path)
    assert "shopsphere" in done.log and done.ended >= done.started
    assert (tmp_path / jobs.JOB_FOLDER).stat().st_mode & 0o077 == 0
    with pytest.raises(RunError, match="no command is running here"):
        jobs.stop(tmp_path)


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    process = supervised(tmp_path, FAILS)
    process.wait()
    job = jobs.read_job(tmp_path)
    assert (job.status, job.reason) == ("failed", "the disk is full. Free some")


def test_stopped_as_by_ctrl_c(tmp_path: Path) -> None:
    process = asleep(tmp_path)
    assert jobs.read_job(tmp_path).status == "running"
    jobs.stop(tmp_path)
    process.wait()
    assert jobs.read_job(tmp_path).status in (
        "stopped",
        "failed",
    )  # this one has no handler: KeyboardInterrupt, 1 or -2
    assert json.loads((tmp_path / jobs.JOB_FOLDER / "job.json").read_text())["code"] in (130, 1, -signal.SIGINT)


def test_a_signal_for_the_supervisor_reaches_the_command(tmp_path: Path) -> None:
    process = asleep(tmp_path)
    child = jobs.read_job(tmp_path).pid
    process.terminate()
    process.wait()
    assert not psutil.pid_exists(child)


def test_killed_for_memory(tmp_path: Path) -> None:
    process = asleep(tmp_path)
    os.kill(jobs.read_job(tmp_path).pid, signal.SIGKILL)
    process.wait()
    job = jobs.read_job(tmp_path)
    assert job.status == "failed" and "memory was full" in job.reason


def test_command_and_supervisor_killed(tmp_path: Path) -> None:
    process = asleep(tmp_path)
    child = jobs.read_job(tmp_path).pid
    process.kill()
    process.wait()
    assert jobs.read_job(tmp_path).status == "running"  # the command itself still runs
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: jobs.read_job(tmp_path).status != "running")
    assert jobs.read_job(tmp_path).status == "gone"


def test_a_reused_process_number_is_not_the_command(tmp_path: Path) -> None:
    place = tmp_path / jobs.JOB_FOLDER
    place.mkdir()
    record = {"command": ["python", "-m", "tunesmith", "train"], "pid": os.getpid(), "began": 1000.0}
    (place / "job.json").write_text(json.dumps(record))
    assert jobs.read_job(tmp_path).status == "gone"
    (place / "job.json").write_text("{damaged")
    assert jobs.read_job(tmp_path).status == "none"


def test_lock_owner(tmp_path: Path) -> None:
    from tunesmith.runs.run import Run

    assert jobs.lock_owner(tmp_path) == 0
    with Run(tmp_path).lock():
        assert jobs.lock_owner(tmp_path) == os.getpid()
    assert jobs.lock_owner(tmp_path) == 0


def test_a_job_counts_as_running_until_the_supervisor_records_its_end(tmp_path: Path) -> None:
    place = tmp_path / jobs.JOB_FOLDER
    place.mkdir()
    record = {
        "command": ["python", "-m", "tunesmith", "train"],
        "pid": 1 << 22,
        "warden": os.getpid(),
        "began": time.time(),
    }
    (place / "job.json").write_text(json.dumps(record))
    assert jobs.read_job(tmp_path).status == "running"
    (place / "job.json").write_text(json.dumps({**record, "warden": 1 << 22}))
    assert jobs.read_job(tmp_path).status == "gone"
