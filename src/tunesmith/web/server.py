"""The HTTP server under the application: one that waits for nobody for ever."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from socket import socket
from typing import Any

import h11
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.web.limits import Limits
from tunesmith.web.local_server import serving

TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def patient(seconds: float) -> type[asyncio.Protocol]:
    """A protocol that hangs up on whoever takes longer than `seconds` for a request line with its headers."""

    class Patient(H11Protocol):
        _alarm: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # a request has begun
                self._disarm()
            elif self._alarm is None and self.conn.trailing_data[0]:
                self._arm()

        def _arm(self) -> None:
            self._alarm = self.loop.call_later(seconds, self._late)

        def _disarm(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

        def _late(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(TOO_SLOW)
                self.transport.close()

    return Patient


@contextlib.contextmanager
def answering(app: ASGIApp, own: socket, limits: Limits) -> Iterator[threading.Thread]:
    """Inside the block `app` answers on the socket, within the limits. Raises ResourceError when it does not start."""
    http = patient(limits.header_seconds)
    with serving(app, own, http=http, limit_concurrency=limits.connections, timeout_keep_alive=15) as thread:
        yield thread
