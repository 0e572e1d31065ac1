"""An HTTP server on a listening socket, in a thread; it closes connections of clients that are too slow."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.errors import ResourceError
from tunesmith.web.errors import Limits

LOOPBACK = "127.0.0.1"
START_SECONDS = 20.0  # enough even on a CPU that is busy with training


@contextlib.contextmanager
def listen(port: int = 0, host: str = LOOPBACK) -> Iterator[socket.socket]:
    """Open a listening socket on the loopback address, or on another address of this machine; port 0 is any free port.

    Raises ResourceError if the port is in use or the address is not of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows a port that was closed just now
        try:
            listener.bind((host, port))
            listener.listen()
        except (OSError, OverflowError) as error:
            advice = "Choose another with --port"
            in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            message = f"port {port} is already in use" if in_use else f"cannot listen on port {port} ({error})"
            raise ResourceError(message, where=host, next=advice) from error
        yield listener


@contextlib.contextmanager
def serve_in_thread(app: ASGIApp, listener: socket.socket, **settings: Any) -> Iterator[threading.Thread]:
    """Serve `app` on the socket inside the block; yields the thread, which is alive as long as the server runs.

    `settings` override the defaults for uvicorn. Raises ResourceError if the server does not start.
    """
    defaults: dict[str, Any] = {
        "http": "h11",
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        "log_level": "critical",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": 2,
    }
    server = uvicorn.Server(uvicorn.Config(app, **{**defaults, **settings}))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="serving", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ResourceError("the server does not start", where=LOOPBACK, next="Run the command again")
            time.sleep(0.01)
        yield thread
    finally:
        server.should_exit = True
        thread.join()


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
def serve_with_limits(app: ASGIApp, listener: socket.socket, limits: Limits) -> Iterator[threading.Thread]:
    """Serve `app` on the socket inside the block, within `limits`. Raises ResourceError if it does not start."""
    http = header_timeout_protocol(limits.header_seconds)
    with serve_in_thread(
        app, listener, http=http, limit_concurrency=limits.connections, timeout_keep_alive=15
    ) as thread:
        yield thread
