"""The journal of a plan: every generated text, accepted or rejected, flushed to disk line by line."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.synthesis.plan import RowPlan
from tunesmith.errors import RunError
from tunesmith.runs.run import hash_file, translate_disk_errors, write_atomic


@dataclass
class Journal:
    """The texts generated so far: a header, a line for each text, and a line for each finished file."""

    path: Path
    header: Mapping[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)  # SHA-256 of each finished file

    @classmethod
    def open(cls, out: Path, plan: RowPlan, *, again: bool, say: Callable[[str], None]) -> Journal:
        """Opens or creates the journal beside `out`. Raises RunError if it is another plan's or damaged."""
        path = out.with_name(f"{out.name}.journal")
        header = {"kind": "plan", "name": plan.name, "plan": plan.fingerprint()}
        if not path.exists() and out.exists() and not again:
            advice = "Set another `out`, or use --again, which renames the file"
            raise RunError("exists, but was not written by this plan", where=str(out), next=advice)
        if path.exists() and not again:
            stored_header, entries, finished = _read(path)
            if stored_header["plan"] != header["plan"]:
                advice = "Undo the change, set another `out`, or use --again to start over and keep the old files"
                raise RunError("was written with another plan", where=str(path), next=advice)
            if out.exists() and hash_file(out) not in finished:
                advice = "Move it, or use --again to start over and keep the old files"
                raise RunError("was edited after it was written", where=str(out), next=advice)
            return cls(path, stored_header, entries, finished)
        for old_path in (path, out):
            if old_path.exists():
                new_path = old_path.with_name(f"{old_path.name}.{time.strftime('%Y%m%d-%H%M%S')}.old")
                old_path.rename(new_path)
                say(f"synthesize: renamed {old_path.name} to {new_path}")
        if plan.topics:  # rows from templates have no date, so that they are always the same
            header["made"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_atomic(path, line(header))
        return cls(path, header)

    def add(self, entry: dict[str, Any]) -> None:
        """Adds a text and flushes it to disk."""
        self.entries.append(entry)
        self._append(entry)

    def replace(self, entries: list[dict[str, Any]]) -> None:
        """Replaces all texts at once, for those of templates, which are cheap to generate again."""
        self.entries = entries
        write_atomic(self.path, "".join(map(line, [self.header, *entries, *map(_finished, self.finished)])))

    def finish(self, digest: str) -> None:
        """Records the SHA-256 of the rows that are about to be written, to detect later edits by hand."""
        if digest not in self.finished:
            self.finished.append(digest)
            self._append(_finished(digest))

    def _append(self, entry: Mapping[str, Any]) -> None:
        with translate_disk_errors(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line(entry))
            file.flush()
            os.fsync(file.fileno())


def line(entry: Mapping[str, Any]) -> str:
    """A line of the journal, in ASCII, because a model's text may have a lone surrogate."""
    return json.dumps(entry) + "\n"


def _finished(digest: str) -> dict[str, Any]:
    return {"kind": "written", "sha256": digest}


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Header, texts, and hashes of finished files; an incomplete last line, left by a kill, is cut off."""
    data = path.read_bytes()
    complete_length = data.rfind(b"\n") + 1
    if complete_length < len(data):
        with path.open("r+b") as file:
            file.truncate(complete_length)
    plain = []
    for number, text in enumerate(data[:complete_length].split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(text)
            required_keys = {"plan": {"plan"}, "written": {"sha256"}}.get(entry["kind"], {"topic", "text", "why"})
            if not required_keys <= entry.keys() or (entry["kind"] == "plan") != (number == 1):
                raise ValueError("lacks a part")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "Undo your change to the line, or use --again to start over and keep the old files"
            raise RunError("the journal is damaged", where=f"{path} line {number}", next=advice) from error
        plain.append(entry)
    if not plain:
        raise RunError("the journal is empty", where=str(path), next="Remove it")
    finished = [entry["sha256"] for entry in plain if entry["kind"] == "written"]
    return plain[0], [entry for entry in plain[1:] if entry["kind"] != "written"], finished


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Locks the rows against a second process. Raises RunError if another one is writing them."""
    from filelock import FileLock, Timeout

    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        advice = "Wait for it to end, or stop it"
        raise RunError("another process is writing these rows", where=str(out), next=advice) from error
    try:
        yield
    finally:
        lock.release()
