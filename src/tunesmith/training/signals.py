"""Ctrl-C and SIGTERM end a run after the step in hand, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the user wants to stop."""

    stop = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first signal into a wish; a second one ends the process as usual."""
    wish = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def heard(number: int, frame: FrameType | None) -> None:
        wish.stop = True
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, heard)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
