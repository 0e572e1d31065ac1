"""A child process with one model: its stderr is kept, and every caller learns why it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

import psutil

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode_prompt, stop_ids

_STDERR_LINES, _STDERR_CHARS = 8, 200  # lines of stderr in an error, characters of each
EXIT_SECONDS = 5.0  # for a child to end by itself


class ProcessEnded(ModelError):
    """The process of a model ended or hangs; the request itself was not refused."""


class ModelProcess(ABC):
    """A started Python script with pipes to its standard streams."""

    def __init__(self, script: Path, env: Mapping[str, str], where: str, patience: float) -> None:
        """Starts the script. `patience`: seconds without output until it counts as hung; `where` begins errors."""
        self.where, self.patience = where, patience
        self._exit_lock, self._failure = threading.Lock(), ""
        self._stderr_lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self.process = subprocess.Popen(  # noqa: S603 (our own file, no shell)
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,  # Ctrl+C is for the parent; has no effect outside POSIX
        )
        self._threads: list[threading.Thread] = []
        self._start_thread(self._read_stderr)

    @property
    def alive(self) -> bool:
        """Whether the process accepts requests."""
        return not self._failure and self.process.poll() is None

    @property
    def memory(self) -> int:
        """Resident bytes of the process, including a mapped file."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def close(self) -> None:
        """End the process; requests in progress fail."""
        with self._exit_lock:
            self._failure = self._failure or ("it was closed" if self.process.poll() is None else self._exit_text())
        self._stop_input()
        self._wait()

    def exit_error(self, *, silent: bool, advice: str, unfinished: str = "") -> ProcessEnded:
        """Return the error for a process that ended or hangs; every caller gets the first cause that was noticed.

        `silent`: nothing was received for `patience` seconds; `unfinished` describes a process that still runs
        otherwise. `advice` is what to change if a restarted process fails again.
        """
        with self._exit_lock:
            if not self._failure:
                hangs = f"no output for {self.patience:g} s"
                exited = self._wait(0.0 if silent else EXIT_SECONDS)
                self._failure = self._exit_text() if exited else hangs if silent else unfinished or hangs
        message = f"{self._library} failed: {self._failure}{self._stderr_tail()}"
        return ProcessEnded(message, where=self.where, next=f"Try again: the process is restarted. {advice}")

    @property
    @abstractmethod
    def _library(self) -> str:
        """The library that runs the model, for errors."""

    @abstractmethod
    def _stop_input(self) -> None:
        """Close the process's standard input, which makes it end."""

    def _stderr_text(self, line: str) -> str:
        return line

    def _start_thread(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _read_stderr(self) -> None:
        with contextlib.suppress(ValueError, OSError), self.process.stderr as pipe:  # type: ignore[union-attr]
            for line in pipe:
                if text := self._stderr_text(line.decode("utf-8", "replace").strip()):
                    self._stderr_lines.append(text[:_STDERR_CHARS])

    def _stderr_tail(self) -> str:
        """Return the last lines of stderr as the end of an error message."""
        tail = " | ".join(self._stderr_lines)
        return f". Its last output: {tail}" if tail else ""

    def _exit_text(self) -> str:
        code = self.process.returncode
        if code >= 0:
            return f"it ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"it was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"it was killed by signal {-code}"

    def _wait(self, seconds: float = EXIT_SECONDS) -> bool:
        """Return whether the process ended by itself within `seconds`; otherwise kill it.

        Its output has been read to the end afterwards.
        """
        try:
            self.process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        finally:
            self._stop_input()
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(EXIT_SECONDS)


PATIENCE = 600.0  # seconds without a token; a long prompt takes a large model minutes on a laptop
CONTEXT = 2048  # tokens by default; the cache takes 0.5 MiB per token for Llama-2-7b, 23 KiB for the embedded model
PROBE = (Turn("user", "Does it know 3 words, or 4?"),)


_Child = TypeVar("_Child", bound=ModelProcess)


class SubprocessModel(ABC, Generic[_Child]):
    """Base class of models in a separate process. `path` is the file or folder, `kind` the word for it in errors."""

    context: int

    def __init__(
        self, path: Path, kind: str, *, stop: Sequence[str], template: Template | None, patience: float
    ) -> None:
        """Starts nothing yet. The subclasses describe the arguments."""
        self._path, self._kind = path, kind
        self.texts, self.template, self.patience = tuple(stop), template, patience
        self.stops = frozenset(stop_ids(template)) if template else frozenset()
        self.form = template.form if template else ReplyFormat()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.close()
                self._child = None

    @abstractmethod
    def _start(self) -> _Child:
        """Return a new process with the model loaded."""

    @abstractmethod
    def _loaded_context(self) -> int:
        """Return the context of the loaded model in tokens."""

    @abstractmethod
    def _check_template(self, template: Template) -> None:
        """Refuse a template whose tokens mean something else to the model."""

    @abstractmethod
    def render(self, turns: Sequence[Turn]) -> str:
        """Return the conversation rendered with the model's own template, up to where the assistant begins."""

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a rendered text."""

    def _load(self) -> None:
        """Start the process, and set the context; end the process if it or the template is refused."""
        self._running()
        try:
            self.context = self._loaded_context()
            if self.template:
                self._check_template(self.template)
        except BaseException:
            self.close()
            raise

    def _running(self) -> _Child:
        """Return the process, started again if it ended."""
        with self._lock:
            if self._closed:
                raise ModelError("the model was closed", where=str(self._path), next=f"Open the {self._kind} again")
            if self._child is not None and not self._child.alive:
                self._child.close()
                self._child = None
            if self._child is None:
                self._child = self._start()
            return self._child

    def _encode(self, prompt: Sequence[Turn], limit: int) -> list[int]:
        ids = encode_prompt(prompt, self.template) if self.template else self.tokens(self.render(prompt))
        if len(ids) + limit > self.context:
            message = f"a prompt of {len(ids)} tokens and a reply of {limit} do not fit the context of {self.context}"
            raise ModelError(
                message, where=str(self._path), next="Increase context, or shorten the prompt or the reply"
            )
        return ids

    def _checked_context(self, context: int | None, trained_context: int) -> int:
        """Return the context to load: by default the trained length, or CONTEXT if that is unknown (0)."""
        if context is not None and 0 < trained_context < context:
            message = f"context is {context} tokens, but the model was trained on {trained_context}"
            raise ModelError(message, where=str(self._path), next=f"Set context to {trained_context} or less")
        return context or trained_context or CONTEXT
