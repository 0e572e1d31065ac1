"""Stands beside one long command and writes down how it ends: `python -m tunesmith.ui.supervisor FOLDER -- COMMAND…`.

It is a process of its own, so that neither a closed browser nor pages that end stop the command. In FOLDER it keeps
job.json (what, since when, its process, how it ended), log (what the command said) and memory.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess  # the command is given as a list, by our own pages
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith.runs.run import write_atomic

EVERY = 2.0  # seconds between two looks at the command's memory


def main(words: Sequence[str]) -> int:
    """Runs the command after `--`; returns its exit code. A signal for this process goes on to the command."""
    folder, command = Path(words[0]), list(words[2:])
    told: dict[str, Any] = {"command": command, "began": time.time(), "warden": os.getpid()}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)  # noqa: S603
        _tell(folder, {**told, "pid": child.pid})

        def pass_on(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)  # what a person's Ctrl-C is: the step in hand, a checkpoint, the end

        signal.signal(signal.SIGTERM, pass_on)
        signal.signal(signal.SIGINT, pass_on)
        with (folder / "memory.jsonl").open("w", encoding="utf-8") as memory:
            while True:
                try:
                    child.wait(EVERY)
                    break
                except subprocess.TimeoutExpired:
                    if used := _used(child.pid):
                        memory.write(json.dumps({"time": round(time.time(), 1), "bytes": used}) + "\n")
                        memory.flush()
    _tell(folder, {**told, "pid": child.pid, "ended": time.time(), "code": child.returncode})
    return child.returncode


def _tell(folder: Path, told: dict[str, Any]) -> None:
    write_atomic(folder / "job.json", json.dumps(told, indent=1) + "\n", mode=0o600)


def _used(pid: int) -> int:
    """Bytes of memory that the command and what it started have in use; 0 when it is gone."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        for each in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
