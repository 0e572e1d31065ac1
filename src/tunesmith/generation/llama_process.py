"""Starts the process that runs llama.cpp, sends it requests over a private socket, and explains why it ended.

The server in the wheel speaks HTTP (https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md). It
listens on a Unix socket in a private folder, so no port is opened; where Python has no Unix sockets, on a free loopback
port. Every request carries a key that only this process and its child know.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunesmith.errors import ModelError
from tunesmith.generation.model_process import ModelProcess, ProcessEnded

# Errors of a connection, and of parsing what arrives on it.
CONNECTION_ERRORS = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError)
_MAX_SOCKET_PATH = 100  # bytes of a socket's path: sun_path holds 104 on macOS, 108 on Linux
_LOG_PREFIX = re.compile(r"^[\d.]+ [A-Z] ")  # time and level before each line of the runtime's log
_CHILD_SCRIPT = Path(__file__).with_name("llama_child.py")


@dataclass(frozen=True)
class LlamaSettings:
    """What the process loads. `context` is in tokens per slot; `special` writes special tokens out."""

    model: str
    lora: str
    slots: int
    context: int
    threads: int
    special: bool = False


class LlamaProcess(ModelProcess):
    """One process with one model. `GgufModel` starts a new one if it ends."""

    def __init__(self, settings: LlamaSettings, patience: float) -> None:
        """Returns when the model is loaded. `patience`: seconds without output until the process counts as hung.

        Raises ModelError if the model cannot be loaded.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="tunesmith-"))  # mode 0700
        self._key = secrets.token_hex(32)
        # without GGML_NO_BACKTRACE an abort starts a debugger and takes long
        super().__init__(_CHILD_SCRIPT, {"GGML_NO_BACKTRACE": "1"}, settings.model, patience)
        try:
            settings_line = json.dumps({**asdict(settings), "host": _listen_address(self.folder), "key": self._key})
            self.address, self.seconds = self._wait_until_loaded(settings_line)
        except BaseException:
            self.close()
            raise

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request, including the key."""
        return {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer to one request. Raises ModelError if the server refuses it or ends."""
        connection = self._connect()
        try:
            return json.loads(self._send(connection, path, body).read())
        except CONNECTION_ERRORS as error:
            raise self.connection_error(error) from None
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> CompletionStream:
        """Return the answer to one request in pieces."""
        return CompletionStream(self, path, body)

    def close(self) -> None:
        """End the process; requests in progress fail."""
        super().close()
        self.process.stdout.close()  # type: ignore[union-attr]
        shutil.rmtree(self.folder, ignore_errors=True)

    def connection_error(self, error: Exception) -> ProcessEnded:
        """Return the error for a connection that broke."""
        return self.exit_error(
            silent=isinstance(error, TimeoutError),
            unfinished="it left an answer unfinished",
            advice="If it fails again, use fewer slots, less context or another file",
        )

    @property
    def _library(self) -> str:
        return "llama.cpp"

    def _stop_input(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]

    def _stderr_text(self, line: str) -> str:
        return _LOG_PREFIX.sub("", line)

    def _wait_until_loaded(self, settings_line: str) -> tuple[str, float]:
        pool = ThreadPoolExecutor(1)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended; the empty line below reports it
                self.process.stdin.write(f"{settings_line}\n".encode())  # type: ignore[union-attr]
                self.process.stdin.flush()  # type: ignore[union-attr]
            line = pool.submit(self.process.stdout.readline).result(self.patience)  # type: ignore[union-attr]
        except TimeoutError:
            self._wait(0.0)
            message = f"llama.cpp did not load the file within {self.patience:g} s{self._stderr_tail()}"
            raise ModelError(message, where=self.where, next="Increase patience, or choose a smaller file") from None
        finally:
            pool.shutdown(wait=False)
        if not line:
            self._wait()
            reason = f"{self._exit_text()}{self._stderr_tail()}"
            message = f"llama.cpp cannot load the file: {reason}"
            raise ModelError(message, where=self.where, next="Export or download it again")
        ready = json.loads(line)
        return str(ready["address"]), float(ready["seconds"])

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, timeout=self.patience)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self.patience)

    def _send(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        connection.request(
            "GET" if body is None else "POST", path, None if body is None else json.dumps(body), self.headers
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise self.refusal(json.loads(answer.read()))
        return answer

    def refusal(self, answer: dict[str, Any]) -> ModelError:
        """Return the server's error message as an error."""
        message = f"llama.cpp refuses: {' '.join(answer['error']['message'].split())}"
        return ModelError(message, where=self.where, next="Change the request, or choose another file")


class CompletionStream:
    """The pieces of one answer, as JSON objects of the server."""

    def __init__(self, child: LlamaProcess, path: str, body: dict[str, Any]) -> None:
        self._child, self._path, self._body = child, path, {**body, "stream": True}
        self._socket: socket.socket | None = None
        self.stopped = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Ends after the last piece, or when stopped. Raises ModelError if the process refuses, ends or hangs."""
        child, connection = self._child, self._child._connect()
        try:
            connection.connect()
            self._socket = connection.sock
            if self.stopped:  # stopped before the socket was open
                return
            for line in child._send(connection, self._path, self._body):
                if line.startswith(b"data: {"):
                    piece = json.loads(line[6:])
                    if "error" in piece:
                        raise child.refusal(piece)
                    yield piece
                    if piece["stop"] or self.stopped:
                        return
            raise ConnectionError("no last piece")
        except CONNECTION_ERRORS as error:
            if not self.stopped:
                raise child.connection_error(error) from None
        finally:
            self.stop()
            connection.close()

    def stop(self) -> None:
        """Close the connection from any thread; the server notices and frees the slot."""
        self.stopped = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _listen_address(folder: Path) -> str:
    path = folder / "llama.sock"  # the server recognizes a Unix socket by the suffix
    fits = hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= _MAX_SOCKET_PATH
    return str(path) if fits else "127.0.0.1"
