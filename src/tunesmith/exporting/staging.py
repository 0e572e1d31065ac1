"""Writes a target's new files to a temporary folder, then replaces the existing ones."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.runs.run import Run, hash_file, hash_path, sync_folder, translate_disk_errors, write_atomic

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
        names = {self._name(file) for file in [*target_files, *files] if self._name(file) not in unselected}
        self.run.write_fingerprints(self.product, self.inputs, sorted(names), left=unselected, **notes)
        self.clear()

    def _name(self, path: Path) -> str:
        return path.resolve().relative_to(self.run.path.resolve()).as_posix()

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
