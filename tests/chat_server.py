"""A real chat-completions server on loopback whose model is a small function: the same request gives the same text."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = re.findall(
    r"\w+",
    "parcel blender refund coupon address courier invoice basket password account voucher receipt kettle lamp jacket "
    "sandal mirror ladder carpet pillow tomorrow yesterday morning evening window button screen phone laptop printer "
    "orange purple silver golden broken missing double strange heavy tiny sudden late early wrong right upper lower",
)


@dataclass
class Told:
    """What a request brought."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Once:
    """One answer other than the model's: a status, headers, a body; after a wait, in seconds."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    kind: str = "application/json"


class ChatServer:
    """`once` are the next answers; then `model(request body) -> text or (text, finish_reason)` answers."""

    def __init__(self, model: Callable[[dict[str, Any]], Any]) -> None:
        self.model, self.once, self.told, self.before = model, list[Once](), list[Told](), list[Callable[[], None]]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits 40 ms for its headers to be acknowledged

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.told.append(Told(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                for each in outer.before:
                    each()
                if outer.once:
                    self.answer(outer.once.pop(0))
                elif body.get("stream"):
                    self.stream(body)
                else:
                    self.answer(Once(body=json.dumps(completion(outer.model(body)))))

            def answer(self, once: Once) -> None:
                time.sleep(once.wait)
                data = once.body.encode()
                self.send_response(once.status)
                for name, value in {
                    "content-type": once.kind,
                    "content-length": str(len(data)),
                    **once.headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def stream(self, body: dict[str, Any]) -> None:
                text = outer.model(body)
                broken = text.strip().startswith("BREAK")
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                pieces = [text[n : n + 5] for n in range(0, len(text), 5)]
                for piece in pieces:
                    self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
                if not broken:
                    self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                    self.wfile.write(b"data: [DONE]\n\n")

            def event(self, chunk: dict[str, Any]) -> None:
                self.wfile.write(
                    f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', **chunk})}\n\n".encode()
                )

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:  # a client that was killed or lost patience
                pass

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


def completion(text: Any) -> dict[str, Any]:
    text, reason = text if isinstance(text, tuple) else (text, "stop")
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    count = len((text or "").split())
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": count}}


@contextmanager
def serve(model: Callable[[dict[str, Any]], Any]) -> Iterator[ChatServer]:
    server = ChatServer(model)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def writer(body: dict[str, Any]) -> Any:
    """A model that writes prompts and answers, some of them bad, drawn from the request's text and seed."""
    asked = body["messages"][-1]["content"]
    draw = random.Random(f"{asked}/{body.get('seed')}")
    if "Write the answer" in asked:
        return f"Sure, here are the steps:\n1. Open the {draw.choice(WORDS)} tab.\n2. Tap {draw.choice(WORDS).title()}."
    words = draw.sample(WORDS, 9)
    fate = draw.random()
    if fate < 0.1:
        return f"As an AI language model, I cannot {words[0]}."
    if fate < 0.15:
        return f"My {words[0]} {words[1]} is", "length"
    if fate < 0.2:
        return ""
    return f'1. "Why is my {" ".join(words[:6])} at the {words[6]} {words[7]} {words[8]}?"'
