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
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tunesmith.errors import ModelError
from tunesmith.generation.subprocess_model import (
    EXIT_SECONDS,
    STDERR_CHARS,
    STDERR_LINES,
    describe_exit,
    stderr_tail,
    wait_or_kill,
)

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


class LlamaProcess:
    """One process with one model. `GgufModel` starts a new one if it ends."""

    def __init__(self, settings: LlamaSettings, patience: float) -> None:
        """Returns when the model is loaded. `patience`: seconds without output until the process counts as hung.

        Raises ModelError if the model cannot be loaded.
        """
        self.where, self.patience = settings.model, patience
        self.folder = Path(tempfile.mkdtemp(prefix="tunesmith-"))  # mode 0700
        self._key, self._lock = secrets.token_hex(32), threading.Lock()
        self._failure: str | None = None
        self._stderr_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self.process = subprocess.Popen(  # noqa: S603 (our own file, no shell)
            [sys.executable, "-P", str(_CHILD_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # otherwise an abort starts a debugger and takes long
            start_new_session=True,  # Ctrl+C is for the parent; has no effect outside POSIX
        )
        self._stderr_thread = threading.Thread(target=self._read_stderr, daemon=True)
        self._stderr_thread.start()
        try:
            settings_line = json.dumps({**asdict(settings), "host": _listen_address(self.folder), "key": self._key})
            self.address, self.seconds = self._wait_until_loaded(settings_line)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process accepts requests."""
        return self._failure is None and self.process.poll() is None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request, including the key."""
        return {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}

    @property
    def memory(self) -> int:
        """Resident bytes of the process, including the mapped file."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer to one request. Raises ModelError if the server refuses it or ends."""
        connection = self._connect()
        try:
            return json.loads(self._send(connection, path, body).read())
        except CONNECTION_ERRORS as error:
            raise self.exit_error(error) from None
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> CompletionStream:
        """Return the answer to one request in pieces."""
        return CompletionStream(self, path, body)

    def close(self) -> None:
        """End the process; requests in progress fail."""
        with self._lock:
            if self._failure is None:
                self._failure = (
                    "it was closed" if self.process.poll() is None else describe_exit(self.process.returncode)
                )
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        self._wait()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()  # type: ignore[union-attr]
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_stderr(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed while reading
            for line in self.process.stderr:  # type: ignore[union-attr]
                if text := _LOG_PREFIX.sub("", line.decode("utf-8", "replace").strip()):
                    self._stderr_lines.append(text[:STDERR_CHARS])

    def _wait_until_loaded(self, settings_line: str) -> tuple[str, float]:
        pool = ThreadPoolExecutor(1)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended; the empty line below reports it
                self.process.stdin.write(f"{settings_line}\n".encode())  # type: ignore[union-attr]
                self.process.stdin.flush()  # type: ignore[union-attr]
            line = pool.submit(self.process.stdout.readline).result(self.patience)  # type: ignore[union-attr]
        except TimeoutError:
            self._wait(0.0)
            message = f"llama.cpp did not load the file within {self.patience:g} s{stderr_tail(self._stderr_lines)}"
            raise ModelError(message, where=self.where, next="Increase patience, or choose a smaller file") from None
        finally:
            pool.shutdown(wait=False)
        if not line:
            self._wait()
            reason = f"{describe_exit(self.process.returncode)}{stderr_tail(self._stderr_lines)}"
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

    def exit_error(self, error: Exception) -> ModelError:
        """Return the error for a process that ended or hangs; every caller gets the first cause that was noticed."""
        with self._lock:
            if self._failure is None:
                silent = isinstance(error, TimeoutError)
                if self._wait(0.0 if silent else EXIT_SECONDS):
                    self._failure = describe_exit(self.process.returncode)
                else:
                    self._failure = f"no output for {self.patience:g} s" if silent else "it left an answer unfinished"
        message = f"llama.cpp failed: {self._failure}{stderr_tail(self._stderr_lines)}"
        advice = "Try again: the process is restarted. If it fails again, use fewer slots, less context or another file"
        return ModelError(message, where=self.where, next=advice)

    def _wait(self, seconds: float = EXIT_SECONDS) -> bool:
        """Return whether the process ended by itself within `seconds`; otherwise kill it.

        Its stderr has been read to the end afterwards.
        """
        try:
            return wait_or_kill(self.process, seconds)
        finally:
            self._stderr_thread.join(EXIT_SECONDS)


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
                raise child.exit_error(error) from None
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
