"""The interface between the export command and export targets.

A target is a module in `targets/` that defines

    write(job, *, its options) -> list[File]     writes missing files (`job.must_write`) to `job.out`; resumes
    opened(job, file) -> Runtime                 if the file can reply: its runtime, in a separate process
    check(job, file) -> list[str]                if it cannot: problems of the file, as sentences for users

with either `opened` or `check`. A file that `write` leaves under its final name is complete. `write` is called again
when all files are in place, and then only describes them. Optional:

    validate(request, *, its options) -> Iterator[TunesmithError]    errors that are known before training
    warnings(request, *, its options) -> Iterator[str]    known problems of files that can be written
    wrong_options(its options) -> Iterator[(option, problem, advice)]   values that are invalid for every model
    needs(its options) -> str                    the target whose files this one uses
    SELECT = {names of options}                  options that only select files; other files stay when they change
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

MergeBase = Literal["quantized", "original"]


@dataclass(frozen=True)
class Job:
    """The model to export. `bits` and `precision` are the base's in training; `limit` and `context` are in tokens."""

    name: str
    folder: Path
    weights: Weights
    adapter: Path
    template: Template
    stop: tuple[str, ...]
    merge_into: MergeBase
    bits: int
    precision: str
    limit: int  # of a reply
    context: int  # of a prompt and its reply together
    seed: int
    card: Callable[[], str]  # the model card, without the results of verification
    say: Callable[[str], None] = lambda text: None
    system: str | None = None  # the recipe's system message, for conversations without one
    place: Path | None = None  # output folder of the current target; None: its folder below `folder`
    standing: frozenset[str] = frozenset()  # the target's files, by path in its folder, that are up to date

    def out(self, target: str) -> Path:
        """Returns the output folder of `target`."""
        return self.place or self.folder / target

    @property
    def work(self) -> Path:
        """The folder for intermediate files; it is removed when the target is finished."""
        return self.place.with_name(f".{self.place.name}.work") if self.place else self.folder / ".work"

    def must_write(self, path: Path, target: str) -> bool:
        """Returns whether a file in the folder of `target` must be written."""
        return path.relative_to(self.out(target)).as_posix() not in self.standing and not path.exists()


@dataclass(frozen=True)
class Request:
    """The input of `validate` and `warnings`: the recipe, the job, and the targets that are written earlier.

    `types` are those of the GGUF files that will exist when the target is written.
    """

    recipe: Recipe
    job: Job
    before: tuple[NamedSetting, ...] = ()
    types: frozenset[str] = frozenset()

    def follows(self, target: str) -> bool:
        """Returns whether `target` is written before this one."""
        return any(earlier.name == target for earlier in self.before)


@dataclass(frozen=True)
class File:
    """An exported file or folder. `exact` files are only rounded, so stricter thresholds apply.

    `commands` show how to run it, by runtime; `notes` are facts for the report.
    """

    name: str
    path: Path
    exact: bool = False
    commands: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """A TextModel in a separate process that can also render a conversation and score a text."""

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """See TextModel."""
        ...

    def render(self, turns: Sequence[Turn]) -> str:
        """Renders a conversation with the file's own template, up to the start of the assistant's reply."""
        ...

    def tokens(self, text: str) -> list[int]:
        """Tokenizes a rendered text as the runtime does."""
        ...

    def scores(self, tokens: Sequence[int], *, start: int, top: int = 1) -> Iterator[TokenScore]:
        """Scores each given token from position `start` (at least 1) on."""
        ...

    @property
    def facts(self) -> RuntimeStats:
        """Speed and memory of the runtime."""
        ...

    def close(self) -> None:
        """Ends the process."""
        ...
