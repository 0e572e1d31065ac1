"""The training journal: one JSON line per event, and the same curves for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.runs.run import translate_disk_errors, write_atomic

Event = dict[str, Any]
Watcher = Callable[[Event], None]


class Journal:
    """Appends events to a file and TensorBoard, and passes them to a watcher."""

    def __init__(self, path: Path, tensorboard: Path, watcher: Watcher | None, *, from_step: int) -> None:
        """Resumes after `from_step` and removes later lines, whose steps a killed process did not save."""
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept_lines = [line for line in lines if (event := _parse(line)) and event.get("step", 0) <= from_step]
            write_atomic(path, "".join(line + "\n" for line in kept_lines))
        from torch.utils.tensorboard import SummaryWriter

        with translate_disk_errors(tensorboard):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
            self._board: Any = SummaryWriter(str(tensorboard), purge_step=from_step + 1)
        self._path, self._watcher = path, watcher

    def tell(self, kind: str, step: int, **values: Any) -> None:
        """Writes an event of a kind (start, resume, step, valid, saved, note, end) at a step."""
        event = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
        with translate_disk_errors(self._path):
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
            for name in ("loss", "rate", "grad_norm", "tokens_per_second"):
                if kind in ("step", "valid") and isinstance(values.get(name), int | float):
                    self._board.add_scalar(f"{'valid' if kind == 'valid' else 'train'}/{name}", values[name], step)
        if self._watcher:
            self._watcher(event)

    def close(self) -> None:
        """Flushes and closes the files."""
        with contextlib.suppress(OSError):
            self._file.close()
            self._board.close()


def read_journal(path: Path) -> list[Event]:
    """Returns the events of a journal; a last line truncated by a crash is skipped."""
    if not path.exists():
        return []
    return [event for line in path.read_text(encoding="utf-8").splitlines() if (event := _parse(line))]


def _parse(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


@contextlib.contextmanager
def open_journal(path: Path, tensorboard: Path, watcher: Watcher | None, *, from_step: int) -> Iterator[Journal]:
    """Opens a journal and closes it after the block, also on errors."""
    journal = Journal(path, tensorboard, watcher, from_step=from_step)
    try:
        yield journal
    finally:
        journal.close()
