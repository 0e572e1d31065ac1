"""A Gradio page run as a process on a loopback port, and asked."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

PATIENCE = 300.0  # seconds until the page is up, and between two pieces of an answer


class Page:
    """The page of app.py in a folder, run by this Python. It cannot reach the hub and knows no token."""

    def __init__(self, folder: Path, *, patience: float = PATIENCE) -> None:
        """Returns when the page is up; `patience` in seconds. Raises ModelError when it does not start."""
        self.folder, self.patience = folder, patience
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(self.port), "NO_PROXY": "*"}
        own |= {"GRADIO_TEMP_DIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}
        shared = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        self.log = (folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "app.py"],
            cwd=folder, env=shared | own, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True,
        )  # fmt: skip
        try:
            with self._told():
                self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and all that it started."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        self.log.close()

    def ask(self, question: str) -> str:
        """The answer, by Gradio's own protocol: the question is posted, then the answer's events are read.

        Raises ModelError when there is none.
        """
        with self._told():
            status, body = self._request("POST", "/gradio_api/call/chat", {"data": [question]})
            if status != 200:
                raise ValueError(f"status {status}: {body[:200]!r}")
            status, body = self._request("GET", f"/gradio_api/call/chat/{json.loads(body)['event_id']}")
            events = re.findall(r"^event: (\w+)\ndata: (.*)$", body.decode(), re.MULTILINE)
            if not events or events[-1][0] != "complete":
                raise ValueError(f"status {status}, last event {events[-1:]}")
            return str(json.loads(events[-1][1])[0])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            what = f"the page does not answer: {error}{self._last_words()}"
            advice = "Run python app.py there, and see what it says"
            raise ModelError(what, where=str(self.folder), next=advice) from error

    def _wait(self) -> None:
        end = time.monotonic() + self.patience
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                if self._request("GET", "/")[0] == 200:
                    return
            if self.process.poll() is not None:
                raise ConnectionError(f"it ended with exit code {self.process.returncode}")
            if time.monotonic() > end:
                raise TimeoutError(f"it did not start within {self.patience:g} s")
            time.sleep(0.1)

    def _request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.patience)
        try:
            content = None if body is None else json.dumps(body)
            wire.request(method, path, content, {"Content-Type": "application/json"})
            answer = wire.getresponse()
            return answer.status, answer.read()
        finally:
            wire.close()

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").split("\n")
        words = [line.strip()[:200] for line in lines if line.strip()][-4:]
        return f". Its last words: {' | '.join(words)}" if words else ""
