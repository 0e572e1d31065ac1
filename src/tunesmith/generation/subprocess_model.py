"""A model in a separate process: started at once, restarted after it ended, and ended with the object that owns it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.generation.model_process import ModelProcess
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode_prompt, stop_ids

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
    def render(self, turns: Sequence[Turn]) -> str:
        """Return the conversation rendered with the model's own template, up to where the assistant begins."""

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a rendered text."""

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

    def _context_error(self, context: int, trained_context: int) -> ModelError:
        message, advice = (
            f"context is {context} tokens, but the model was trained on {trained_context}",
            f"Set context to {trained_context} or less",
        )
        return ModelError(message, where=str(self._path), next=advice)
