"""The interface between the server's event loop and the models that generate."""

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
    """Sampling settings. Temperature 0 takes the likeliest token; `seed` None draws a different reply each time.

    The temperature is applied first, then `top_p`. A reply ends before the first string in `stop`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class StreamedReply(Protocol):
    """One reply in progress: iterate over its pieces of at least one character. The counts are final after the last."""

    @property
    def finish(self) -> Finish:
        """`stop`: the model ended the reply, or a stop string was reached; `length`: the token limit was reached."""
        ...

    @property
    def reasoning(self) -> str:
        """The thought before the reply; '' if there is none."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens in the prompt."""
        ...

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        ...

    def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of the reply. Raises BackendFailed if the runtime fails, RequestRefused if it refuses."""
        ...


class Backend(Protocol):
    """A model that generates several replies at once."""

    @property
    def name(self) -> str:
        """The model's name in the API."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens for prompt and reply together; None if unknown."""
        ...

    @property
    def slots(self) -> int:
        """The number of replies that are generated at once."""
        ...

    @property
    def state(self) -> State:
        """Whether the model accepts requests now."""
        ...

    def writing(
        self, prompt: Sequence[Turn] | str, sampling: Sampling
    ) -> AbstractAsyncContextManager[StreamedReply, bool | None]:
        """Start the reply to a conversation, or the continuation of a text. Leaving the block ends generation.

        Raises RequestRefused for a prompt that does not fit or that the template refuses, BackendFailed if the runtime
        fails.
        """
        ...

    def close(self) -> None:
        """End the model; from any thread."""
        ...
