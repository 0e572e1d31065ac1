"""Input and result of a training engine, the journal of its steps, and the signals that stop it."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tunesmith.config.recipe import Adapter, Train
from tunesmith.runs.run import translate_disk_errors, write_atomic

if TYPE_CHECKING:  # `runs` and the pages read the journal without torch
    from tunesmith.kernels.block import Keep
    from tunesmith.models.build import Model
    from tunesmith.models.fuse import Forms
    from tunesmith.prompt.tokens import Example

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


@dataclass(frozen=True)
class Layout:
    """Memory layout of the fused decoder: each block's base form and saved activations.

    `chunk` is how many tokens with loss have their logits in memory at a time. Without `table` the embeddings are
    offloaded to the host. Empty `forms` mean that the decoder is not fused.
    """

    forms: tuple[Forms, ...] = ()
    keeps: tuple[Keep, ...] = ()
    chunk: int = 1024
    table: bool = True


@dataclass(frozen=True)
class Job:
    """A fine-tune to run.

    `inputs` holds the fingerprints of the adapter's inputs. `keeping` is called before each checkpoint is written,
    to store what resuming from it needs.
    """

    model: Model  # without an adapter
    tokenizer: Any
    train: Sequence[Example]
    valid: Sequence[Example]
    adapter: Adapter
    settings: Train
    seed: int
    pad: int
    micro_tokens: int
    recompute: bool
    precision: str
    folder: Path
    inputs: Mapping[str, str]
    keeping: Callable[[], None] = lambda: None
    watcher: Watcher | None = None
    layout: Layout = Layout()
    scorer: Callable[[Any], float] | None = (
        None  # score of generated replies, higher is better; takes the fused decoder
    )
    sampler: Callable[[Any], list[dict[str, str]]] | None = None  # sample prompts and replies; takes the fused decoder


@dataclass(frozen=True)
class Outcome:
    """Result of a training: the adapter's tensors and configuration, a summary, parameters planned and trained."""

    tensors: dict[str, Any]
    config: dict[str, object]
    summary: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)


class StopRequest:
    """Records whether the user wants to stop."""

    stop = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first signal into a stop request; a second one ends the process as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.stop = True
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
