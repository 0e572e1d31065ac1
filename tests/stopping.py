"""What stops a training where a test wants it to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


def crash() -> None:
    """As if the process died: nothing more is written."""
    raise KeyboardInterrupt


def interrupt() -> None:
    """Ctrl-C: the training pauses after its step."""
    signal.raise_signal(signal.SIGINT)


def at(kind: str, step: int, action: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    """A `watch` for `commands.train` that acts once, at the first event of this kind from this step on."""
    acted = False

    def watch(event: dict[str, Any]) -> None:
        nonlocal acted
        if not acted and event["kind"] == kind and event["step"] >= step:
            acted = True
            action()

    return watch
