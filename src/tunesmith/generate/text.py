"""Anything that replies: the contract between models and those who ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.conversation import Turn


@dataclass(frozen=True)
class Reply:
    """What a model wrote; `stopped` says that it ended by itself, `tokens` counts what it wrote.

    `cut` is what it went on with behind a stop string, which is no part of `text`.
    """

    text: str
    stopped: bool
    tokens: int
    cut: str = ""


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
