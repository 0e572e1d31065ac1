"""An HTTP server that closes connections of clients that are too slow."""

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
from tunesmith.web.local_server import serve_in_thread

TIMEOUT_RESPONSE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def header_timeout_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return a protocol that closes connections whose request line and headers take longer than `seconds`."""

    class HeaderTimeoutProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:  # a request has begun
                self._stop_timer()
            elif self._timer is None and self.conn.trailing_data[0]:
                self._start_timer()

        def _start_timer(self) -> None:
            self._timer = self.loop.call_later(seconds, self._time_out)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _time_out(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(TIMEOUT_RESPONSE)
                self.transport.close()

    return HeaderTimeoutProtocol


@contextlib.contextmanager
def serve_with_limits(app: ASGIApp, listener: socket, limits: Limits) -> Iterator[threading.Thread]:
    """Serve `app` on the socket inside the block, within `limits`. Raises ResourceError if it does not start."""
    http = header_timeout_protocol(limits.header_seconds)
    with serve_in_thread(
        app, listener, http=http, limit_concurrency=limits.connections, timeout_keep_alive=15
    ) as thread:
        yield thread
