"""Anything that writes for the server: the contract between models and the event loop that asks them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from tunesmith.data.conversation import Turn

Finish = Literal["stop", "length"]
State = Literal["ok", "loading", "down"]


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. Temperature 0 always takes the likeliest token; `seed` None draws anew each time.

    First the temperature is applied, then all but the likeliest tokens that together reach `top_p` are left out. A
    reply ends before the first text of `stop`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Writing(Protocol):
    """One reply on its way: its pieces, each at least one character; the rest is known when they have ended."""

    @property
    def finish(self) -> Finish:
        """`stop`: it ended by itself or before a stop text; `length`: there was no room for more."""
        ...

    @property
    def reasoning(self) -> str:
        """The thought that came before the reply; '' where none did, or none is known."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that were written."""
        ...

    def __aiter__(self) -> AsyncIterator[str]:
        """The pieces; joined they are the reply. Raises Broken when the runtime fails, Refused for what it refuses."""
        ...


class Backend(Protocol):
    """A model that writes for several at once."""

    @property
    def name(self) -> str:
        """What clients call it."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens for prompt and reply together; None where that is not known."""
        ...

    @property
    def slots(self) -> int:
        """How many it writes for at once."""
        ...

    @property
    def state(self) -> State:
        """Whether it can be asked now."""
        ...

    def writing(
        self, prompt: Sequence[Turn] | str, sampling: Sampling
    ) -> AbstractAsyncContextManager[Writing, bool | None]:
        """Begins a reply to a conversation, or goes on with a text. Leaving the block ends it in the runtime.

        Raises Refused for a prompt that does not fit or that the template refuses, Broken when the runtime fails.
        """
        ...

    def close(self) -> None:
        """Ends the model; from any thread."""
        ...
