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

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from tunesmith.config.recipe import NamedSetting, Recipe
from tunesmith.data.conversation import Turn
from tunesmith.generation.text_model import Reply, RuntimeStats, TokenScore
from tunesmith.models.weights import Weights
from tunesmith.prompt.template import Template
from tunesmith.runs.run import Run, hash_file, hash_path, sync_folder, translate_disk_errors, write_atomic

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


MARK = ".UNVERIFIED.txt"  # suffix of the note beside a file that failed verification


def files_in(path: Path) -> Iterator[Path]:
    """Yields the file itself, or every file below a folder."""
    yield from (file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


class Staged:
    """The new files of one target, written to `place` and then moved to `folder`/`target`.

    `standing` are existing files, by their path in the target's folder, that are up to date; only targets with options
    that `select` files have them. After an interruption, another call with the same `inputs` resumes.
    """

    def __init__(self, run: Run, folder: Path, target: str, inputs: dict[str, str], select: frozenset[str]) -> None:
        """Reads the state that an earlier export left; changes nothing."""
        self.run, self.inputs, self.product = run, inputs, f"export-{target}"
        self.home, self.place = folder / target, folder / ".new" / target
        self.work = self.place.with_name(f".{target}.work")
        self.note = self.place.with_name(f"{target}.json")
        record = run.read_fingerprints(self.product) or {"inputs": {}, "files": {}}
        former_inputs = {key: value for key, value in record["inputs"].items() if key not in select}
        self.same_inputs = former_inputs == {key: value for key, value in inputs.items() if key not in select}
        hashes = {**record["files"], **record.get("left", {})} if self.same_inputs and select else {}
        self.standing = frozenset(
            self._inside(name) for name, digest in hashes.items() if self._has_hash(run / name, digest)
        )
        self.kept_hashes = {name: digest for name, digest in hashes.items() if self._inside(name) in self.standing}

    def _inside(self, name: str) -> str:
        return (self.run / name).relative_to(self.home).as_posix()

    @staticmethod
    def _has_hash(path: Path, digest: str) -> bool:
        return path.is_file() and hash_path(path) == digest

    def begin(self) -> None:
        """Removes files staged for other inputs; moves back the files that an interrupted swap had moved."""
        staged: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            staged = json.loads(self.note.read_text(encoding="utf-8"))
        if staged.get("inputs") != self.inputs:
            self.clear()
            write_atomic(self.note, json.dumps({"inputs": self.inputs}))
        for name, digest in staged.get("files", {}).items() if staged.get("inputs") == self.inputs else ():
            if not (self.place / name).exists() and self._has_hash(self.home / name, digest):
                _move(self.home / name, self.place / name)

    def there(self, file: Any) -> Any:
        """Returns the file with its current path: staged, or in the target's folder if it is up to date."""
        if file.path.exists() or not file.path.is_relative_to(self.place):
            return file
        return replace(file, path=self.home / file.path.relative_to(self.place))

    def finish(self) -> None:
        """Records that all files are written, with their hashes."""
        files = {file.relative_to(self.place).as_posix(): hash_file(file) for file in files_in(self.place)}
        write_atomic(self.note, json.dumps({"inputs": self.inputs, "files": files}))

    def swap(self, aside: Path) -> Path | None:
        """Moves the files to the target's folder; returns the folder below `aside` with replaced files, None for none.

        All files of other inputs are replaced. A file with the same bytes stays.
        """
        target = aside / self.home.relative_to(self.run.path)
        staged = {file.relative_to(self.place).as_posix(): file for file in files_in(self.place)}
        any_moved = False
        for file in list(files_in(self.home)):
            name = file.relative_to(self.home).as_posix()
            if name in staged and _same_content(file, staged[name]):
                staged.pop(name).unlink()
            elif name in staged or (not self.same_inputs and name not in self.standing):
                _move(file, target / name)
                any_moved = True
        if any_moved and (self.run / "export.json").is_file():
            shutil.copyfile(self.run / "export.json", aside / "export.json")
        for name, file in staged.items():
            _move(file, self.home / name)
        return target if any_moved else None

    def write_fingerprints(self, files: Sequence[Path], **notes: Any) -> None:
        """Writes the fingerprint of the target's `files` and other files in its folder; removes the staging folder."""
        existing = [file for file in files_in(self.home) if not file.name.startswith(".")]
        target_files = [file for file in existing if not file.name.endswith(MARK)]
        unselected = {name: digest for name, digest in self.kept_hashes.items() if self.run / name not in files}
        names = {self.run.relative(file) for file in [*target_files, *files]} - unselected.keys()
        self.run.write_fingerprints(self.product, self.inputs, sorted(names), left=unselected, **notes)
        self.clear()

    def clear(self) -> None:
        """Removes the staged files."""
        for folder in (self.place, self.work):
            shutil.rmtree(folder, ignore_errors=True)
        self.note.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.note.parent.rmdir()


def _same_content(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and hash_file(first) == hash_file(second)


def _move(source: Path, target: Path) -> None:
    with translate_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        sync_folder(target.parent)
