"""The project's own server with the letters recipe, in this process, on a free port."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Turn
from tunesmith.serve.app import create_app
from tunesmith.serve.backend import Backend, Finish, RequestQueue, Sampling, ServedModel, State
from tunesmith.serve.pairing import Pairing
from tunesmith.web.errors import Limits
from tunesmith.web.server import listen, serve_with_limits


@dataclass(frozen=True)
class LetterServer:
    url: str
    pairing: Pairing


@contextmanager
def letter_server(backend: Backend, folder: Path) -> Iterator[LetterServer]:
    """Serves the backend with the recipe cover-letter; pairs are kept in `folder`."""
    limits, pairing = Limits(), Pairing(folder / "pairs.json")
    with listen() as own:
        host = f"127.0.0.1:{own.getsockname()[1]}"
        desk = RequestQueue(backend, limits.waiting, seconds=limits.reply_seconds)
        served = [ServedModel(backend.name, desk, read_recipe("cover-letter", small=True))]
        with serve_with_limits(
            create_app(served, token="the-owner's", hosts=[host], limits=limits, pairing=pairing), own, limits
        ):
            yield LetterServer(f"http://{host}", pairing)


class _Said:
    finish: Finish = "stop"
    prompt_tokens = 1
    tokens = 1

    def __init__(self, text: str) -> None:
        self._pieces = re.findall(r"\S+\s*", text)

    async def __aiter__(self) -> AsyncIterator[str]:
        for piece in self._pieces:
            yield piece


class Says:
    """A model that says what a function makes of the prompt's fields, word by word."""

    name = "says"
    context: int | None = None
    slots = 2
    state: State = "ok"

    def __init__(self, reply: Callable[[dict[str, str]], str]) -> None:
        self._reply = reply
        self.prompts: list[Sequence[Turn]] = []

    @asynccontextmanager
    async def writing(self, prompt: Sequence[Turn] | str, sampling: Sampling) -> AsyncIterator[Any]:
        assert not isinstance(prompt, str)
        self.prompts.append(prompt)
        pairs = (line.split(": ", 1) for line in prompt[-1].text.splitlines() if ": " in line)
        yield _Said(self._reply(dict(pairs)))

    def close(self) -> None:
        pass
