"""Runs a Gradio page in a subprocess on a loopback port, and sends it questions."""

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

TIMEOUT = 300.0  # seconds until the page is up, and between two pieces of a reply


class Page:
    """The page of a folder's app.py, run by this Python interpreter without access to the Hub and without a token."""

    def __init__(self, folder: Path, *, timeout: float = TIMEOUT) -> None:
        """Returns when the page is up; `timeout` in seconds. Raises ModelError when it does not start."""
        self.folder, self.timeout = folder, timeout
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(self.port), "NO_PROXY": "*"}
        settings |= {"GRADIO_TEMP_DIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1"}
        environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        self.log = (folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "app.py"],
            cwd=folder, env=environment | settings, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True,
        )  # fmt: skip
        try:
            with self._errors_as_model_error():
                self._wait_until_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the process and its children."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        self.log.close()

    def ask(self, question: str) -> str:
        """Returns the reply, by Gradio's protocol: posts the question, then reads the events of the reply.

        Raises ModelError if there is no reply.
        """
        with self._errors_as_model_error():
            status, body = self._request("POST", "/gradio_api/call/chat", {"data": [question]})
            if status != 200:
                raise ValueError(f"status {status}: {body[:200]!r}")
            status, body = self._request("GET", f"/gradio_api/call/chat/{json.loads(body)['event_id']}")
            events = re.findall(r"^event: (\w+)\ndata: (.*)$", body.decode(), re.MULTILINE)
            if not events or events[-1][0] != "complete":
                raise ValueError(f"status {status}, last event {events[-1:]}")
            return str(json.loads(events[-1][1])[0])

    @contextlib.contextmanager
    def _errors_as_model_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            problem = f"the page does not answer: {error}{self._log_tail()}"
            advice = "Run python app.py in that folder to see its output"
            raise ModelError(problem, where=str(self.folder), next=advice) from error

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                if self._request("GET", "/")[0] == 200:
                    return
            if self.process.poll() is not None:
                raise ConnectionError(f"the process ended with exit code {self.process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"it did not start within {self.timeout:g} s")
            time.sleep(0.1)

    def _request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _log_tail(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").split("\n")
        last_lines = [line.strip()[:200] for line in lines if line.strip()][-4:]
        return f". Its last output: {' | '.join(last_lines)}" if last_lines else ""
