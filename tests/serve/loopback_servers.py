"""Test servers on loopback, with a scripted backend or a tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers import AutoModelForCausalLM

from gguf_models import sayable, write_model
from tiny import make_model, make_tokenizer
from tunesmith.config.recipe import Recipe
from tunesmith.data.conversation import Turn
from tunesmith.serve.app import create_app
from tunesmith.serve.backend import Finish, RequestQueue, Sampling, ServedModel
from tunesmith.web.errors import BackendFailed, Limits, RequestRefused
from tunesmith.web.server import listen, serve_with_limits

TOKEN = "a-token-of-the-tests-that-is-long-enough-0123"
FREE = Limits(rate=1e9, burst=1 << 30)  # where the rate is not what is tested


@dataclass
class Parrot:
    """A backend that repeats the last message word by word, one piece per `wait` seconds, with words that cause
    trouble:

    BREAK (the runtime fails there), REFUSE (the request is refused), HANG (the reply never ends).
    """

    name: str = "parrot"
    context: int | None = 4096
    slots: int = 2
    state: Any = "ok"
    wait: float = 0.0
    now: int = 0
    most: int = 0
    left: list[str] = field(default_factory=list)
    heard: list[tuple[Any, Sampling]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[Echo]:
        self.heard.append((prompt, sampling))
        text = prompt if isinstance(prompt, str) else prompt[-1].text
        if "REFUSE" in text:
            raise RequestRefused("it does not fit", param="messages", code="context_length_exceeded")
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield Echo(self, text, sampling.max_tokens)
        except asyncio.CancelledError:
            self.left.append(text)
            raise
        finally:
            self.now -= 1

    def close(self) -> None:
        pass


class Echo:
    """A reply of Parrot."""

    def __init__(self, parrot: Parrot, text: str, limit: int) -> None:
        self.parrot, self.text, self.limit = parrot, text, limit
        self.finish: Finish = "stop"
        self.prompt_tokens, self.tokens, self.reasoning = len(text.split()), 0, ""

    async def __aiter__(self) -> AsyncIterator[str]:
        for word in self.text.split(" "):
            if self.tokens == self.limit:
                self.finish = "length"
                return
            await asyncio.sleep(self.parrot.wait if word != "HANG" else 3600)
            if word == "BREAK":
                raise BackendFailed("the runtime failed")
            yield f" {word}" if self.tokens else word
            self.tokens += 1


@dataclass
class Running:
    """A running server; `client` sends the token."""

    url: str
    port: int
    client: httpx2.Client
    backends: list[Any]

    def chat(self, text: str, **more: Any) -> httpx2.Response:
        body = {"model": self.backends[0].name, "messages": [{"role": "user", "content": text}], **more}
        return self.client.post("/v1/chat/completions", json=body)


@contextlib.contextmanager
def running(
    *backends: Any,
    limits: Limits = FREE,
    recipe: Recipe | None = None,
    pairing: Any = None,
    waiting: int | None = None,
    allow: Sequence[str] = (),
) -> Iterator[Running]:
    """Run a real server on a free port."""
    room = limits.waiting if waiting is None else waiting
    models = [
        ServedModel(item.name, RequestQueue(item, room, seconds=limits.reply_seconds), recipe) for item in backends
    ]
    with listen() as listener:
        port = listener.getsockname()[1]
        hosts = [f"127.0.0.1:{port}", f"localhost:{port}", *allow]
        application = create_app(models, token=TOKEN, hosts=hosts, limits=limits, pairing=pairing)
        url = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with (
            serve_with_limits(application, listener, limits),
            httpx2.Client(base_url=url, headers=headers, timeout=20) as client,
        ):
            yield Running(url, port, client, list(backends))


def raw(port: int, *parts: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes unchanged; return the response until the server closes the connection or sends nothing more."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as wire:
        for part in parts:
            wire.sendall(part)
        result = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while data := wire.recv(65536):
                result += data
        return result


def events(text: str) -> list[Any]:
    """Return the data of server-sent events; [DONE] as it is."""
    result = [item.removeprefix("data: ") for item in text.split("\n\n") if item]
    return [item if item == "[DONE]" else json.loads(item) for item in result]


def make_speaker(folder: Path, **changes: Any) -> Any:
    """Write a random llama that generates only ASCII to `folder`, in transformers' format."""
    model_folder = make_model(folder, tie_word_embeddings=False, **changes)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    pieces = make_tokenizer().convert_ids_to_tokens(range(261))
    silent = [n for n, piece in enumerate(pieces) if n < 5 or not sayable(piece)]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0.0
    model.save_pretrained(model_folder)
    return model.eval()


def make_file(folder: Path, **changes: Any) -> Path:
    """Write the same model as a GGUF file."""
    return write_model(folder / "tiny.gguf", make_speaker(folder / "hf", **changes))
