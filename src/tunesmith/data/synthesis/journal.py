"""The journal of a plan's texts: every one that was written, taken or rejected, flushed to the disk line by line."""

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
from tunesmith.runs.run import disk, hash_file, write_atomic


@dataclass
class Journal:
    """What was written and judged so far: a header, a line for each text, and a line for each finished file."""

    path: Path
    header: Mapping[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)  # SHA-256 of each finished file

    @classmethod
    def open(cls, out: Path, plan: RowPlan, *, again: bool, say: Callable[[str], None]) -> Journal:
        """The journal beside `out`, begun if there is none. Raises RunError for another plan's and for damage."""
        path = out.with_name(f"{out.name}.journal")
        header = {"kind": "plan", "name": plan.name, "plan": plan.fingerprint()}
        if not path.exists() and out.exists() and not again:
            advice = "Name another `out`, or give --again to put the file aside"
            raise RunError("the file is there and was not made by this plan", where=str(out), next=advice)
        if path.exists() and not again:
            begun, entries, written = _read(path)
            if begun["plan"] != header["plan"]:
                advice = "Undo the change, name another `out`, or give --again to begin anew, the old kept aside"
                raise RunError("the rows were begun with another plan", where=str(path), next=advice)
            if out.exists() and hash_file(out) not in written:
                advice = "Move it, or give --again to begin anew, the old kept aside"
                raise RunError("the rows were changed by hand since they were written", where=str(out), next=advice)
            return cls(path, begun, entries, written)
        for old in (path, out):
            if old.exists():
                aside = old.with_name(f"{old.name}.{time.strftime('%Y%m%d-%H%M%S')}.old")
                old.rename(aside)
                say(f"synthesize: what was there is now {aside}")
        if plan.topics:  # rows from templates bear no date: they are the same whenever they are made
            header["made"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_atomic(path, line(header))
        return cls(path, header)

    def add(self, entry: dict[str, Any]) -> None:
        """One more text, on the disk when this returns."""
        self.entries.append(entry)
        self._append(entry)

    def replace(self, entries: list[dict[str, Any]]) -> None:
        """All texts at once: those of templates cost nothing to make again."""
        self.entries = entries
        write_atomic(self.path, "".join(map(line, [self.header, *entries, *map(_finished, self.written)])))

    def finish(self, digest: str) -> None:
        """Remembers the SHA-256 of the rows that are about to be written: rows with another were changed by hand."""
        if digest not in self.written:
            self.written.append(digest)
            self._append(_finished(digest))

    def _append(self, entry: Mapping[str, Any]) -> None:
        with disk(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line(entry))
            file.flush()
            os.fsync(file.fileno())


def line(entry: Mapping[str, Any]) -> str:
    """A line of the journal, in ASCII: what a model writes may hold half a surrogate pair."""
    return json.dumps(entry) + "\n"


def _finished(digest: str) -> dict[str, Any]:
    return {"kind": "written", "sha256": digest}


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Header, texts, and hashes of finished files; a last line without its end, which a kill leaves, is cut off."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    plain = []
    for number, text in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(text)
            wanted = {"plan": {"plan"}, "written": {"sha256"}}.get(entry["kind"], {"topic", "text", "why"})
            if not wanted <= entry.keys() or (entry["kind"] == "plan") != (number == 1):
                raise ValueError("lacks a part")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "Remove the line if you changed it, or give --again to begin anew, the old kept aside"
            raise RunError("the journal is damaged", where=f"{path} line {number}", next=advice) from error
        plain.append(entry)
    if not plain:
        raise RunError("the journal is empty", where=str(path), next="Remove it")
    written = [entry["sha256"] for entry in plain if entry["kind"] == "written"]
    return plain[0], [entry for entry in plain[1:] if entry["kind"] != "written"], written


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps a second process from writing the same rows. Raises RunError while another does."""
    from filelock import FileLock, Timeout

    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        advice = "Wait for it to end, or stop it"
        raise RunError("another process writes these rows", where=str(out), next=advice) from error
    try:
        yield
    finally:
        lock.release()
