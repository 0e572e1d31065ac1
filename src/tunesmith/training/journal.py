"""The journal: a line a step, in JSON, and the same curves for TensorBoard."""

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
    """Appends events to a file, to TensorBoard and to whoever watches."""

    def __init__(self, path: Path, tensorboard: Path, watcher: Watcher | None, *, from_step: int) -> None:
        """Goes on at `from_step`: later lines are of steps that a killed process did not keep, and go."""
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if (event := _parse(line)) and event.get("step", 0) <= from_step]
            write_atomic(path, "".join(line + "\n" for line in kept))
        from torch.utils.tensorboard import SummaryWriter

        with translate_disk_errors(tensorboard):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
            self._board: Any = SummaryWriter(str(tensorboard), purge_step=from_step + 1)
        self._path, self._watcher = path, watcher

    def tell(self, kind: str, step: int, **values: Any) -> None:
        """Writes one event: its kind (start, resume, step, valid, saved, note, end), its step, its values."""
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
        """Flushes everything."""
        with contextlib.suppress(OSError):
            self._file.close()
            self._board.close()


def read_journal(path: Path) -> list[Event]:
    """The events of a journal; a last line cut by a crash is left out."""
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
def opened(path: Path, tensorboard: Path, watcher: Watcher | None, *, from_step: int) -> Iterator[Journal]:
    """A journal that is closed whatever happens."""
    journal = Journal(path, tensorboard, watcher, from_step=from_step)
    try:
        yield journal
    finally:
        journal.close()
