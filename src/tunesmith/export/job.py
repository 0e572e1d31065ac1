"""What an exporter is given and what it hands over.

A target is a file in `targets/` that defines

    write(job, *, its options) -> list[File]     writes below job.folder, goes on where it was stopped
    opened(job, file) -> Runtime                 for what can answer: the runtime that will serve it, in a process apart
    check(job, file) -> list[str]                for what cannot: what is wrong with it, for people

with `opened` or `check`, not both. What `write` leaves under a file's own name is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from tunesmith.data.conversation import Turn
from tunesmith.generate.text import Facts, Reply, Scored
from tunesmith.model.weights import Weights
from tunesmith.prompt.template import Template

Onto = Literal["quantised", "original"]


@dataclass(frozen=True)
class Job:
    """What is shipped. `bits` and `precision` say how training read the base; `limit` and `context` are tokens."""

    name: str
    folder: Path
    weights: Weights
    adapter: Path
    template: Template
    stop: tuple[str, ...]
    onto: Onto
    bits: int
    precision: str
    limit: int  # of a reply
    context: int  # of a prompt and its reply together
    seed: int
    card: Callable[[], str]  # the model card, without what the files' proofs add
    say: Callable[[str], None] = lambda text: None
    system: str | None = None  # the message that the recipe puts before a conversation without one


@dataclass(frozen=True)
class File:
    """A file or folder to ship. `exact`: only rounded, so it is held to the stricter thresholds.

    `commands` say how to talk to it, by runtime; `notes` are facts for the report.
    """

    name: str
    path: Path
    exact: bool = False
    commands: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """A TextModel in a process apart, which also shows how it reads a conversation and what it thinks of a text."""

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """See TextModel."""
        ...

    def render(self, turns: Sequence[Turn]) -> str:
        """The conversation by the file's own template, up to where the assistant begins."""
        ...

    def tokens(self, text: str) -> list[int]:
        """A rendered text as the runtime cuts it."""
        ...

    def scores(self, tokens: Sequence[int], *, start: int, top: int = 1) -> Iterator[Scored]:
        """What the model thinks of each given token from place `start` (at least 1) on."""
        ...

    @property
    def facts(self) -> Facts:
        """What running it takes."""
        ...

    def close(self) -> None:
        """Ends the process."""
        ...
