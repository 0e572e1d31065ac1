"""The interface that everything which generates replies implements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.conversation import Turn


@dataclass(frozen=True)
class Reply:
    """The reply of a model, with the reason why it ended and its token count.

    `stopped` is true if the model ended the reply itself. `tokens` counts the generated tokens. `cut` is the output
    from the stop string on, which is not part of `text`. `reasoning` is the thought before the reply.
    """

    text: str
    stopped: bool
    tokens: int
    cut: str = ""
    reasoning: str = ""


@dataclass(frozen=True)
class RuntimeStats:
    """Resources that a runtime uses, and its throughput.

    Seconds to load, bytes on disk and in memory, and the context of each slot in tokens. `tokens` were generated within
    `seconds` of the time in which at least one reply was in progress, reading the prompts included.
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
        """Tokens per second; 0 before the first reply."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TokenScore:
    """The score of a given token: its negative log-probability in nats.

    `top` holds the likeliest token ids at its position with their log-probabilities.
    """

    token: int
    nats: float
    top: tuple[tuple[int, float], ...]


class TextModel(Protocol):
    """A model that replies to conversations."""

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the reply to each prompt with its index in `prompts`, in any order, decoded greedily."""
        ...

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """Yield the reply to one prompt in pieces, as it is generated."""
        ...
