"""Anything that replies: the contract between models and those who ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.conversation import Turn


@dataclass(frozen=True)
class Reply:
    """What a model wrote; `stopped` says that it ended by itself, `tokens` counts what it wrote.

    `cut` is what it went on with behind a stop string, which is no part of `text`; neither is `reasoning`, the thought
    that came before it.
    """

    text: str
    stopped: bool
    tokens: int
    cut: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class Facts:
    """What running the file takes: seconds to load, bytes on disk and in memory, tokens of context a slot.

    `tokens` were written within `seconds` in which at least one reply was under way, reading of prompts included.
    """

    load_seconds: float
    file_bytes: int
    memory_bytes: int
    slots: int
    context: int
    threads: int
    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second; 0 before the first."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Scored:
    """A token that was given, in nats: -ln of its probability; `top` are the likeliest ids there, with ln p."""

    token: int
    nats: float
    top: tuple[tuple[int, float], ...]


class TextModel(Protocol):
    """A model that answers conversations."""

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """The reply to each prompt with its place in `prompts`, in any order, greedily decoded."""
        ...

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """The reply to one prompt in pieces, as it is written."""
        ...
