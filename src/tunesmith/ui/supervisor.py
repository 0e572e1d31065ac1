"""Runs one long command and records how it ends: `python -m tunesmith.ui.supervisor FOLDER -- COMMAND…`.

It is its own process, so the command survives the browser and the web server. In FOLDER it writes job.json (command,
start, process, end and exit code), log (the command's output) and memory.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess  # always with a list of arguments from our own pages
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith.runs.run import write_atomic

SAMPLE_SECONDS = 2.0  # between two samples of the command's memory


def main(arguments: Sequence[str]) -> int:
    """Runs the command after `--` and returns its exit code. SIGINT and SIGTERM are forwarded as SIGINT."""
    folder, command = Path(arguments[0]), list(arguments[2:])
    record: dict[str, Any] = {"command": command, "began": time.time(), "warden": os.getpid()}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)  # noqa: S603
        _write_record(folder, {**record, "pid": child.pid})

        def forward(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)  # like Ctrl-C: training ends with a checkpoint

        signal.signal(signal.SIGTERM, forward)
        signal.signal(signal.SIGINT, forward)
        with (folder / "memory.jsonl").open("w", encoding="utf-8") as memory:
            while True:
                try:
                    child.wait(SAMPLE_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if used := _memory_bytes(child.pid):
                        memory.write(json.dumps({"time": round(time.time(), 1), "bytes": used}) + "\n")
                        memory.flush()
    _write_record(folder, {**record, "pid": child.pid, "ended": time.time(), "code": child.returncode})
    return child.returncode


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_atomic(folder / "job.json", json.dumps(record, indent=1) + "\n", mode=0o600)


def _memory_bytes(pid: int) -> int:
    """Returns the resident memory of the command and its child processes in bytes; 0 if it is gone."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
