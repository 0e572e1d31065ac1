"""A server for this machine alone, in a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from tunesmith.errors import ResourceError

LOOPBACK = "127.0.0.1"
START_SECONDS = 20.0  # one that has not started by then, on a processor busy with training, is stuck


@contextlib.contextmanager
def listening(port: int = 0, host: str = LOOPBACK) -> Iterator[socket.socket]:
    """A socket on the loopback address, or another of this machine's; 0 is any free port.

    Raises ResourceError when the port is taken or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given back is free
        try:
            made.bind((host, port))
            made.listen()
        except (OSError, OverflowError) as error:
            advice = "Name another, or none for a free one"
            raise ResourceError(f"port {port} cannot be had ({error})", where=host, next=advice) from error
        yield made


@contextlib.contextmanager
def serving(app: ASGIApp, own: socket.socket, **settings: Any) -> Iterator[threading.Thread]:
    """Inside the block `app` answers on the socket; the thread is alive as long as it does.

    `settings` are uvicorn's, over those here. Raises ResourceError when it does not start.
    """
    plain: dict[str, Any] = {
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
    server = uvicorn.Server(uvicorn.Config(app, **{**plain, **settings}))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, name="serving", daemon=True)
    thread.start()
    try:
        until = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise ResourceError("the server does not start", where=LOOPBACK, next="Give the command again")
            time.sleep(0.01)
        yield thread
    finally:
        server.should_exit = True
        thread.join()
