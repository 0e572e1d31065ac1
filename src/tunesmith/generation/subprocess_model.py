"""A model in a process of its own: started at once, started again when it has ended, ended with its keeper."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode_prompt, stop_ids

LAST_WORDS, QUOTED = 8, 200  # lines of stderr in an error, characters of each
BURIAL = 5.0  # seconds for a child to end by itself
PATIENCE = 600.0  # seconds without a token; a long prompt of a large model takes minutes on a laptop
CONTEXT = 2048  # tokens unless more is asked for; Llama-2-7b keeps 0.5 MiB for each, the embedded model 23 KiB
PROBE = (Turn("user", "Does it know 3 words, or 4?"),)


class Kept(Protocol):
    """The process."""

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


_Child = TypeVar("_Child", bound=Kept)


class Keeper(ABC, Generic[_Child]):
    """What models in a process of their own share. `where` is the file or folder, `kind` its word."""

    context: int

    def __init__(
        self, where: Path, kind: str, *, stop: Sequence[str], template: Template | None, patience: float
    ) -> None:
        """Starts nothing yet. See the subclasses for what the settings mean."""
        self._where, self._kind = where, kind
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
        """Ends the process."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.close()
                self._child = None

    @abstractmethod
    def _start(self) -> _Child:
        """A new process with the model loaded."""

    @abstractmethod
    def render(self, turns: Sequence[Turn]) -> str:
        """See Runtime."""

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """See Runtime."""

    def _running(self) -> _Child:
        """The process, started again if it ended."""
        with self._lock:
            if self._closed:
                raise ModelError("the model was closed", where=str(self._where), next=f"Open the {self._kind} again")
            if self._child is not None and not self._child.alive:
                self._child.close()
                self._child = None
            if self._child is None:
                self._child = self._start()
            return self._child

    def _encode(self, prompt: Sequence[Turn], limit: int) -> list[int]:
        ids = encode_prompt(prompt, self.template) if self.template else self.tokens(self.render(prompt))
        if len(ids) + limit > self.context:
            what = f"a prompt of {len(ids)} tokens and a reply of {limit} do not fit the context of {self.context}"
            raise ModelError(what, where=str(self._where), next="Give more context, or shorten the prompt or the reply")
        return ids

    def _too_long(self, context: int, trained: int) -> ModelError:
        what, advice = f"the model was trained on {trained} tokens, not {context}", "Set context to that, or less"
        return ModelError(what, where=str(self._where), next=advice)


def ending(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"it ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"it was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"it was ended by signal {-code}"


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ended by itself within `seconds`; if not, it is ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def last_words(words: Iterable[str]) -> str:
    """The last lines of a process' stderr, to go behind an error."""
    said = " | ".join(words)
    return f". Its last words: {said}" if said else ""
