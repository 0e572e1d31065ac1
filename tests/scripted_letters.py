"""A server that speaks as `tunesmith serve` does, but says what a test tells it to: for what goes wrong."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

TOKEN = "token-of-this-test"
CODE = "12345678"
NAMES = ["Job Title", "Preferred Qualifications", "Hiring Company", "Applicant Name", "Past Working Experience",
         "Current Working Experience", "Skillsets", "Qualifications"]  # fmt: skip
FIELDS = [
    {
        "name": name,
        "label": name,
        "help": f"The {name.lower()}.",
        "kind": "text",
        "required": place in (0, 3),
        "longest": 2000,
    }
    for place, name in enumerate(NAMES)
]
LETTER = (
    "Dear Windlecombe team 🌉,\n\nI hold a doctorate in bridges. I have worked at Lundreth Bridges since 2019. "
    "There I built 75 culverts.\n\nKind regards,\nLior Fernleaf"
)


def claim(said: str, verdict: str, why: str, field: str = "") -> dict[str, Any]:
    """A claim as the server sends it: offsets in Unicode characters."""
    start = LETTER.index(said)
    return {
        "start": start,
        "end": start + len(said),
        "text": said,
        "kind": "number",
        "verdict": verdict,
        "why": why,
        "field": field,
    }


CLAIMS = [
    claim("a doctorate", "unsupported", "No field names a doctorate.", "Qualifications"),
    claim("since 2019", "supported", "The fields say so.", "Current Working Experience"),
    claim("75 culverts", "contradicted", "The field says 11 culverts.", "Past Working Experience"),
]
DONE = {"text": LETTER, "claims": CLAIMS, "stopped": True, "prefix": "", "cut": None,
        "usage": {"prompt_tokens": 100, "completion_tokens": 50}, "seconds": 0.5}  # fmt: skip


def events(letter: str = LETTER, claims: Sequence[dict[str, Any]] = CLAIMS) -> list[tuple[str, dict[str, Any]]]:
    """The events of a letter: words, each claim behind its sentence, the end."""
    found: list[tuple[str, dict[str, Any]]] = []
    told, left = "", sorted(claims, key=lambda each: int(each["end"]))
    for word in letter.split(" "):
        piece = word if not told else f" {word}"
        told += piece
        found.append(("text", {"text": piece}))
        while left and len(told) > left[0]["end"] and told.rstrip()[-1] in ".,":
            found.append(("claim", left.pop(0)))
    return [*found, ("done", {**DONE, "text": letter, "claims": list(claims)})]


class Scripted:
    """What the server does next, and what it was asked."""

    def __init__(self) -> None:
        self.health: dict[str, Any] = {"status": "ok", "version": "0.1.0"}
        self.recipes = ["cover-letter"]
        self.fields = FIELDS
        self.token = TOKEN
        self.events = events()
        self.status = 200  # of a letter
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] | None = None  # the raw stream, instead of `events`
        self.hold = threading.Event()  # while clear, a letter waits after `hold_after` events
        self.hold.set()
        self.hold_after = 5
        self.letters: list[dict[str, Any]] = []
        self.origins: list[str] = []
        self.left = threading.Event()  # the client went away before the end
        self.address = ""


def _handler(script: Scripted) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _say(self, status: int, body: Any, **headers: str) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _refuse(self, status: int, message: str, **headers: str) -> None:
            self._say(status, {"error": {"message": message, "type": "x", "param": None, "code": None}}, **headers)

        def _known(self) -> bool:
            if self.headers.get("Authorization") == f"Bearer {script.token}":
                return True
            self._refuse(401, "the token is not known")
            return False

        def do_GET(self) -> None:
            if self.path == "/health":
                assert "Authorization" not in self.headers
                self._say(200, script.health)
            elif self._known() and self.path == "/v1/recipes":
                self._say(200, {"data": [{"name": name, "about": "Letters", "model": "m"} for name in script.recipes]})
            elif self.path.startswith("/v1/recipes/") and self.headers.get("Authorization") == f"Bearer {script.token}":
                name = self.path.rsplit("/", 1)[1]
                self._say(200, {"name": name, "about": "Letters", "model": "small-letters", "system": "Write.",
                                "max_tokens": 320, "fields": script.fields, "example": {}})  # fmt: skip

        def do_POST(self) -> None:
            script.origins.append(self.headers.get("Origin", ""))
            assert self.headers["Content-Type"] == "application/json"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/pair":
                if body["code"] == CODE:
                    self._say(200, {"token": script.token})
                else:
                    self._refuse(403, "the code is wrong")
            elif self._known():
                script.letters.append(body)
                if script.status == 200:
                    self._stream()
                else:
                    self._refuse(script.status, f"refused with {script.status}", **script.headers)

        def _stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.end_headers()
            plain = [f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in script.events]
            try:
                for place, piece in enumerate(script.pieces or plain):
                    if place == script.hold_after and not script.hold.is_set():
                        self._wait()
                    self.wfile.write(piece)
                    self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                script.left.set()

        def _wait(self) -> None:
            """Writes comments, by which it notices that the client has left."""
            while not script.hold.wait(0.05):
                self.wfile.write(b": waiting\n\n")
                self.wfile.flush()

    return Handler


@contextmanager
def scripted() -> Iterator[Scripted]:
    """The server on a free port of 127.0.0.1."""
    script = Scripted()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    server.daemon_threads = True
    script.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield script
    finally:
        script.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
