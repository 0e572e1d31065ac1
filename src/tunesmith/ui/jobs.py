"""Long commands in processes of their own. What is known of one lies in a folder; nothing is kept here.

A run's job lies in RUN/.job. The command goes on when the browser or the pages end; whoever looks later reads the same
folder: at work, ended well, stopped, failed and why, or gone without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess  # the command is a list of our own words; nothing is given to a shell
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import ResourceError, RunError

PLACE = ".job"
KEPT_LOG = 64 * 1024  # bytes of a log that are read: its end
START_SECONDS = 20.0
Standing = Literal["none", "at work", "ended", "stopped", "failed", "gone"]


@dataclass(frozen=True)
class Job:
    """What became of a folder's last command. `words` are those after `tunesmith`; times in seconds since 1970.

    `why` is said of one that failed or is gone. `log` is the end of what it said.
    """

    standing: Standing
    words: tuple[str, ...] = ()
    pid: int = 0
    began: float = 0.0
    ended: float = 0.0
    why: str = ""
    log: str = ""

    @property
    def verb(self) -> str:
        """Its first word: train, run, …"""
        return self.words[0] if self.words else ""


def start(folder: Path, words: Sequence[str]) -> Job:
    """Starts `tunesmith WORDS` beside `folder`, whose job it is from now on; the command's own log is anew.

    Raises RunError while another is at work there, ResourceError when it cannot be started.
    """
    before = look(folder)
    if before.standing == "at work":
        raise RunError(
            f"'{before.verb}' is at work on this already", where=str(folder), next="Wait for it to end, or stop it"
        )
    place = folder / PLACE
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, mode=0o700)
    command = [sys.executable, "-m", "tunesmith", *words]
    warden = [sys.executable, "-m", "tunesmith.ui.supervisor", str(place), "--", *command]
    try:
        made = subprocess.Popen(  # noqa: S603  (a list, of our own words)
            warden,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends the pages does not end it
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
        )
    except OSError as error:
        raise ResourceError(f"the command cannot be started ({error})", where=str(folder)) from error
    threading.Thread(target=made.wait, name="warden", daemon=True).start()  # none stays as a zombie
    until = time.monotonic() + START_SECONDS
    while not (place / "job.json").exists():
        if made.poll() is not None or time.monotonic() > until:
            raise ResourceError("the command did not start", where=str(folder), next="Try it again")
        time.sleep(0.02)
    return look(folder)


def stop(folder: Path) -> None:
    """Asks the command to end as Ctrl-C does: a training keeps a checkpoint after the step in hand.

    Asked a second time it ends at once. Raises RunError where none is at work.
    """
    job = look(folder)
    if job.standing != "at work":
        raise RunError("nothing is at work here", where=str(folder), next="Start it first")
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pid, signal.SIGINT)


def look(folder: Path) -> Job:
    """The folder's job as it stands now."""
    place = folder / PLACE
    told = _told(place)
    if told is not None and told.code is None and not told.lives():
        told = _told(place)  # its end may have been written since
    if told is None:
        return Job("none")
    log, code = _tail(place / "log"), told.code
    known: dict[str, Any] = {"words": told.words, "pid": told.pid, "began": told.began, "ended": told.ended, "log": log}
    if code is None:
        if told.lives():
            return Job("at work", **known)
        why = "its process is gone, and so is the one that watched it: the machine went down, or someone ended both"
        return Job("gone", why=why, **known)
    if code == 0:
        return Job("ended", **known)
    if code in (130, -signal.SIGINT):
        return Job("stopped", **known)
    return Job("failed", why=_why(code, log), **known)


def memory(folder: Path) -> list[tuple[float, int]]:
    """What the command had in use: (seconds since 1970, bytes), every two seconds."""
    found = []
    for line in _tail(folder / PLACE / "memory.jsonl", 1 << 20).splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            found.append((float(event["time"]), int(event["bytes"])))
    return found


@dataclass(frozen=True)
class _Told:
    """What job.json says; `code` is None as long as the end is not written."""

    words: tuple[str, ...]
    pid: int
    warden: int
    began: float
    ended: float
    code: int | None

    def lives(self) -> bool:
        """Whether the command is there, or its warden, who is about to say how it ended."""
        return _alive(self.pid, self.began) or _alive(self.warden, self.began)


def _told(place: Path) -> _Told | None:
    try:
        told = json.loads((place / "job.json").read_text(encoding="utf-8"))
        words, code = tuple(str(word) for word in told["command"][3:]), told.get("code")
        numbers = int(told["pid"]), int(told.get("warden", 0)), float(told["began"]), float(told.get("ended", 0))
        return _Told(words, *numbers, None if code is None else int(code))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why(code: int, log: str) -> str:
    """Why a command ended with `code`: what it said last, or what its signal means."""
    said = [line for line in log.splitlines() if line.startswith("tunesmith: ")]
    if said:
        return log[log.rindex(said[-1]) :].removeprefix("tunesmith: ").strip()
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL). Most often that is the system, whose memory was full"
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with code {code} and said nothing"


def _alive(pid: int, began: float) -> bool:
    """Whether the process lives and is that one: one that began later only has its number."""
    import psutil

    if not pid:
        return False
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= began + 5)
    except psutil.Error:
        return False


def _tail(path: Path, most: int = KEPT_LOG) -> str:
    """The end of a file as text; '' where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def owner(folder: Path) -> int:
    """The process that holds the run's lock, one of a terminal included; 0 where none does."""
    try:
        file = folder / ".lock.owner"
        pid, since = int(file.read_text(encoding="utf-8").removeprefix("pid ")), file.stat().st_mtime
    except (OSError, ValueError):
        return 0
    return pid if _alive(pid, since) and _locked(folder) else 0


def _locked(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
