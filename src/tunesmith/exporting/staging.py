"""A target's new files while they are written: beside the former ones, whose place they take in the end."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.runs.run import Run, hash_file, hash_path, sync_folder, translate_disk_errors, write_atomic

MARK = ".UNVERIFIED.txt"  # beside a file that did not pass


def files_in(path: Path) -> Iterator[Path]:
    """The file itself, or every file below a folder."""
    yield from (each for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


class Staged:
    """The files of one target on their way to `folder`/`target`.

    `place` is where they are written. `standing` are former files, by their path in the target's folder, that are what
    would be written now; there are such only where the target has options that `select` files. Killed at any moment,
    another call with the same `made_from` resumes.
    """

    def __init__(self, run: Run, folder: Path, target: str, made_from: dict[str, str], select: frozenset[str]) -> None:
        """Reads what an earlier export left; changes nothing."""
        self.run, self.made_from, self.product = run, made_from, f"export-{target}"
        self.home, self.place = folder / target, folder / ".new" / target
        self.work = self.place.with_name(f".{target}.work")
        self.note = self.place.with_name(f"{target}.json")
        seal = run.read_fingerprints(self.product) or {"made_from": {}, "files": {}}
        former = {key: value for key, value in seal["made_from"].items() if key not in select}
        self.same_inputs = former == {key: value for key, value in made_from.items() if key not in select}
        known = {**seal["files"], **seal.get("left", {})} if self.same_inputs and select else {}
        self.standing = frozenset(self._inside(name) for name, digest in known.items() if self._is(run / name, digest))
        self.stood = {name: digest for name, digest in known.items() if self._inside(name) in self.standing}

    def _inside(self, name: str) -> str:
        return (self.run / name).relative_to(self.home).as_posix()

    @staticmethod
    def _is(path: Path, digest: str) -> bool:
        return path.is_file() and hash_path(path) == digest

    def begin(self) -> None:
        """Clears what was staged for something else; takes back what a stopped swap had put in place."""
        noted: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            noted = json.loads(self.note.read_text(encoding="utf-8"))
        if noted.get("made_from") != self.made_from:
            self.clear()
            write_atomic(self.note, json.dumps({"made_from": self.made_from}))
        for name, digest in noted.get("files", {}).items() if noted.get("made_from") == self.made_from else ():
            if not (self.place / name).exists() and self._is(self.home / name, digest):
                _move(self.home / name, self.place / name)

    def there(self, file: Any) -> Any:
        """A file by where it is now: staged, or in its place since it stands."""
        if file.path.exists() or not file.path.is_relative_to(self.place):
            return file
        return replace(file, path=self.home / file.path.relative_to(self.place))

    def finish(self) -> None:
        """Notes that all files are written, and which they are."""
        files = {each.relative_to(self.place).as_posix(): hash_file(each) for each in files_in(self.place)}
        write_atomic(self.note, json.dumps({"made_from": self.made_from, "files": files}))

    def swap(self, aside: Path) -> Path | None:
        """Puts the files in their places; returns where the former ones went below `aside`, None if none went.

        Former files of other inputs all go. One of the same bytes stays as it is.
        """
        moved = aside / self.home.relative_to(self.run.path)
        staged = {each.relative_to(self.place).as_posix(): each for each in files_in(self.place)}
        went = False
        for each in list(files_in(self.home)):
            name = each.relative_to(self.home).as_posix()
            if name in staged and _same(each, staged[name]):
                staged.pop(name).unlink()
            elif name in staged or (not self.same_inputs and name not in self.standing):
                _move(each, moved / name)
                went = True
        if went and (self.run / "export.json").is_file():
            shutil.copyfile(self.run / "export.json", aside / "export.json")
        for name, each in staged.items():
            _move(each, self.home / name)
        return moved if went else None

    def write_fingerprints(self, files: Sequence[Path], **notes: Any) -> None:
        """Seals the target's product: its `files`, and what else is in its folder; nothing is staged then."""
        inside = [each for each in files_in(self.home) if not each.name.startswith(".")]
        own = [each for each in inside if not each.name.endswith(MARK)]
        left = {name: digest for name, digest in self.stood.items() if self.run / name not in files}
        named = {self._name(each) for each in [*own, *files] if self._name(each) not in left}
        self.run.write_fingerprints(self.product, self.made_from, sorted(named), left=left, **notes)
        self.clear()

    def _name(self, path: Path) -> str:
        return path.resolve().relative_to(self.run.path.resolve()).as_posix()

    def clear(self) -> None:
        """Removes what is staged."""
        for folder in (self.place, self.work):
            shutil.rmtree(folder, ignore_errors=True)
        self.note.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.note.parent.rmdir()


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and hash_file(one) == hash_file(other)


def _move(source: Path, target: Path) -> None:
    with translate_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        sync_folder(target.parent)
