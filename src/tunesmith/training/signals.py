"""Ends a run after the current step, with a checkpoint, on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
