"""The sources that a recipe names, each recognised before it is read: files, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.folders import tables
from tunesmith.data.hub import fingerprint, parse, read_hub
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.sources import describe, read_all
from tunesmith.runs.run import hash_file


@dataclass(frozen=True)
class Opened:
    """One source: its name for people, its file (None: the hub's), the encoding to read it in, what is to be said."""

    name: str
    file: Path | None
    encoding: str | None = None
    kind: str = ""
    size: int = 0
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows, and a BadRow for each that cannot be read. Raises DataError for what ends the source."""
        return read_hub(self.name) if self.file is None else read_all(self.file, self.encoding)

    def fingerprint(self) -> str:
        """A hash of the content."""
        return fingerprint(self.name) if self.file is None else hash_file(self.file)

    def facts(self) -> dict[str, Any]:
        """Plain values, for the page."""
        return {"file": self.name, "bytes": self.size, "encoding": self.encoding or "", "notes": list(self.notes)}

    @property
    def stem(self) -> str:
        """A name for files made from it."""
        if self.file is None:
            return parse(self.name).owner_name.replace("/", "_")
        return self.file.name.removesuffix(".gz").removesuffix(self.kind)


def open_sources(wanted: str | Sequence[str], folder: Path, encoding: str | None = None) -> list[Opened]:
    """What data.source names, relative to `folder`; `encoding` overrules what the files say of themselves.

    Raises DataError when there is none, or one cannot be read.
    """
    found: list[Opened] = []
    for source in [wanted] if isinstance(wanted, str) else wanted:
        if source.startswith("hub:"):
            parse(source)
            found.append(Opened(source, None, kind=".jsonl"))
        else:
            files, note = tables(source, folder)
            read = [_recognised(path, encoding) for path in files]
            found += [replace(read[0], notes=(*read[0].notes, note)), *read[1:]] if note else read
    return found


def _recognised(path: Path, encoding: str | None) -> Opened:
    facts = describe(path, encoding)
    told = facts.encoding
    notes = [told.why if told else "", facts.delimiter_why]
    return Opened(
        facts.file,
        path,
        told.name if told else None,
        facts.kind,
        facts.bytes,
        tuple(note for note in notes if note),
    )
