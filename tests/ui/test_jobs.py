"""Long commands: they outlive the pages, and their folder says what became of them."""

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
SPEAKS = "import sys\nprint('tunesmith: the disk is full. Free some', flush=True)\nsys.exit(6)"


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def guarded(folder: Path, code: str) -> subprocess.Popen[bytes]:
    """A command beside its warden, as `start` makes them, but of our own."""
    place = folder / jobs.PLACE
    place.mkdir(parents=True)
    warden = [
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
    made = subprocess.Popen(warden)
    until(lambda: (place / "job.json").exists())
    return made


def asleep(folder: Path) -> subprocess.Popen[bytes]:
    made = guarded(folder, SLEEPS)
    until(lambda: "asleep" in jobs.look(folder).log)
    return made


def test_a_command_from_start_to_end(tmp_path: Path) -> None:
    assert jobs.look(tmp_path).standing == "none"
    job = jobs.start(tmp_path, ["recipes"])
    assert job.words == ("recipes",)
    assert job.standing in ("at work", "ended")
    if job.standing == "at work":
        with pytest.raises(RunError, match="at work on this already"):
            jobs.start(tmp_path, ["recipes"])
    until(lambda: jobs.look(tmp_path).standing == "ended")
    done = jobs.look(tmp_path)
    assert "shopsphere" in done.log and done.ended >= done.began
    assert (tmp_path / jobs.PLACE).stat().st_mode & 0o077 == 0
    with pytest.raises(RunError, match="nothing is at work"):
        jobs.stop(tmp_path)


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    made = guarded(tmp_path, SPEAKS)
    made.wait()
    job = jobs.look(tmp_path)
    assert (job.standing, job.why) == ("failed", "the disk is full. Free some")


def test_stopped_as_by_ctrl_c(tmp_path: Path) -> None:
    made = asleep(tmp_path)
    assert jobs.look(tmp_path).standing == "at work"
    jobs.stop(tmp_path)
    made.wait()
    assert jobs.look(tmp_path).standing in ("stopped", "failed")  # this one has no handler: KeyboardInterrupt, 1 or -2
    assert json.loads((tmp_path / jobs.PLACE / "job.json").read_text())["code"] in (130, 1, -signal.SIGINT)


def test_a_signal_for_the_warden_reaches_the_command(tmp_path: Path) -> None:
    made = asleep(tmp_path)
    child = jobs.look(tmp_path).pid
    made.terminate()
    made.wait()
    assert not psutil.pid_exists(child)


def test_killed_for_memory(tmp_path: Path) -> None:
    made = asleep(tmp_path)
    os.kill(jobs.look(tmp_path).pid, signal.SIGKILL)
    made.wait()
    job = jobs.look(tmp_path)
    assert job.standing == "failed" and "memory was full" in job.why


def test_both_gone_without_a_word(tmp_path: Path) -> None:
    made = asleep(tmp_path)
    child = jobs.look(tmp_path).pid
    made.kill()
    made.wait()
    assert jobs.look(tmp_path).standing == "at work"  # the command itself goes on
    os.kill(child, signal.SIGKILL)
    until(lambda: jobs.look(tmp_path).standing != "at work")
    assert jobs.look(tmp_path).standing == "gone"


def test_a_number_that_another_process_has_now_is_not_the_command(tmp_path: Path) -> None:
    place = tmp_path / jobs.PLACE
    place.mkdir()
    told = {"command": ["python", "-m", "tunesmith", "train"], "pid": os.getpid(), "began": 1000.0}
    (place / "job.json").write_text(json.dumps(told))
    assert jobs.look(tmp_path).standing == "gone"
    (place / "job.json").write_text("{damaged")
    assert jobs.look(tmp_path).standing == "none"


def test_who_holds_a_run(tmp_path: Path) -> None:
    from tunesmith.runs.run import Run

    assert jobs.owner(tmp_path) == 0
    with Run(tmp_path).lock():
        assert jobs.owner(tmp_path) == os.getpid()
    assert jobs.owner(tmp_path) == 0


def test_the_end_is_not_a_loss_while_the_warden_is_about_to_write_it(tmp_path: Path) -> None:
    place = tmp_path / jobs.PLACE
    place.mkdir()
    told = {
        "command": ["python", "-m", "tunesmith", "train"],
        "pid": 1 << 22,
        "warden": os.getpid(),
        "began": time.time(),
    }
    (place / "job.json").write_text(json.dumps(told))
    assert jobs.look(tmp_path).standing == "at work"
    (place / "job.json").write_text(json.dumps({**told, "warden": 1 << 22}))
    assert jobs.look(tmp_path).standing == "gone"
