"""Opens the sources of a recipe, files and Hub data sets, and detects what each one is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.folders import select_tables
from tunesmith.data.hub import fingerprint, parse_hub_source, read_hub
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.sources import describe, read_all
from tunesmith.runs.run import hash_file


@dataclass(frozen=True)
class Source:
    """One source: its display name, its file (None for a Hub data set), its encoding, and notes."""

    name: str
    file: Path | None
    encoding: str | None = None
    kind: str = ""
    size: int = 0
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[Row | BadRow]:
        """Yields the rows, and a BadRow for each that cannot be read. Raises DataError if reading cannot continue."""
        return read_hub(self.name) if self.file is None else read_all(self.file, self.encoding)

    def fingerprint(self) -> str:
        """A hash of the content."""
        return fingerprint(self.name) if self.file is None else hash_file(self.file)

    def facts(self) -> dict[str, Any]:
        """Facts about the source as plain values."""
        return {"file": self.name, "bytes": self.size, "encoding": self.encoding or "", "notes": list(self.notes)}

    @property
    def stem(self) -> str:
        """The stem for names of derived files."""
        if self.file is None:
            return parse_hub_source(self.name).owner_name.replace("/", "_")
        return self.file.name.removesuffix(".gz").removesuffix(self.kind)


def open_sources(names: str | Sequence[str], folder: Path, encoding: str | None = None) -> list[Source]:
    """Opens what data.source names, relative to `folder`; `encoding` overrides detection.

    Raises DataError if there is no source or one cannot be read.
    """
    opened: list[Source] = []
    for source in [names] if isinstance(names, str) else names:
        if source.startswith("hub:"):
            parse_hub_source(source)
            opened.append(Source(source, None, kind=".jsonl"))
        else:
            files, note = select_tables(source, folder)
            opened_files = [_open_file(path, encoding) for path in files]
            opened += (
                [replace(opened_files[0], notes=(*opened_files[0].notes, note)), *opened_files[1:]]
                if note
                else opened_files
            )
    return opened


def _open_file(path: Path, encoding: str | None) -> Source:
    facts = describe(path, encoding)
    detected = facts.encoding
    notes = [detected.why if detected else "", facts.delimiter_why]
    return Source(
        facts.file,
        path,
        detected.name if detected else None,
        facts.kind,
        facts.bytes,
        tuple(note for note in notes if note),
    )
