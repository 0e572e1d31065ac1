"""What an exporter is given and what it hands over.

A target is a file in `targets/` that defines

    write(job, *, its options) -> list[File]     writes what `job.lacks`, in `job.out`; goes on where it was stopped
    opened(job, file) -> Runtime                 for what can answer: the runtime that will serve it, in a process apart
    check(job, file) -> list[str]                for what cannot: what is wrong with it, for people

with `opened` or `check`, not both. What `write` leaves under a file's own name is whole. It is called a second time
when all files are in place, and then only describes them. Optional are

    validate(request, *, its options) -> Iterator[TunesmithError]    why it cannot work, before anything is trained
    warnings(request, *, its options) -> Iterator[str]    what is known to go wrong though it can be written
    wrong_options(its options) -> Iterator[(option, what, advice)]   values that no model can have
    needs(its options) -> str                    the target whose files this one is made of
    SELECT = {names of options}                  options that only select files: the other files stay when they change
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from tunesmith.config.recipe import NamedSetting, Recipe
from tunesmith.data.conversation import Turn
from tunesmith.generation.text_model import Reply, RuntimeStats, TokenScore
from tunesmith.models.weights import Weights
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
    place: Path | None = None  # where the target that writes now puts its files; None: below `folder`
    standing: frozenset[str] = frozenset()  # files of that target, by their path in its folder, that stay as they are

    def out(self, target: str) -> Path:
        """The folder that `target` writes into."""
        return self.place or self.folder / target

    @property
    def work(self) -> Path:
        """The folder for intermediate files; it goes when the target is finished."""
        return self.place.with_name(f".{self.place.name}.work") if self.place else self.folder / ".work"

    def lacks(self, path: Path, target: str) -> bool:
        """Whether a file in the folder of `target` must be written."""
        return path.relative_to(self.out(target)).as_posix() not in self.standing and not path.exists()


@dataclass(frozen=True)
class Request:
    """What a target is asked for before there is an adapter: the recipe, the job, and the targets before this one.

    `types` are those of the GGUF files that will be there when the target is written.
    """

    recipe: Recipe
    job: Job
    before: tuple[NamedSetting, ...] = ()
    types: frozenset[str] = frozenset()

    def follows(self, target: str) -> bool:
        """Whether `target` is written before this one."""
        return any(named.name == target for named in self.before)


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

    def scores(self, tokens: Sequence[int], *, start: int, top: int = 1) -> Iterator[TokenScore]:
        """What the model thinks of each given token from place `start` (at least 1) on."""
        ...

    @property
    def facts(self) -> RuntimeStats:
        """What running it takes."""
        ...

    def close(self) -> None:
        """Ends the process."""
        ...
