"""Rows read for a verb: the sources opened, mended where that is asked for, and what is said about them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.commands.shared import Say
from tunesmith.config.recipe import Data
from tunesmith.data.conversation import Conversation
from tunesmith.data.load import Loaded, Sink, load, remarks
from tunesmith.data.open_sources import open_sources
from tunesmith.data.privacy import Pseudonyms, check_kinds
from tunesmith.data.repair_rows import Mend
from tunesmith.data.repair_rows import to_plain as changes_to_plain
from tunesmith.data.rows import Row


@contextlib.contextmanager
def loading(data: Data, base: Path, system: str | None, changed: Sink | None = None) -> Iterator[Callable[[], Loaded]]:
    """A function that reads the rows into a table, which lasts as long as the block. The book is saved afterwards."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        book, mend = mending(data, base)

        def read_them() -> Loaded:
            sources = open_sources(data.source, base, data.encoding)
            drop = any(check.name == "broken" for check in data.checks)
            table = Path(folder) / "rows.arrow"
            found = load(
                sources,
                data.format,
                system,
                into=table,
                drop_broken=drop,
                mend=mend,
                changed=changed if book is None else None,  # what was personal must not stand in a run's folder
            )
            if data.split.column:  # used by the split
                del found.notes.unused[data.split.column]
            save(book, data, base)
            return found

        yield read_them


def mending(data: Data, base: Path) -> tuple[Pseudonyms | None, Mend]:
    """What `data` wants to be mended, and the book of stand-ins, as its file left it."""
    book: Pseudonyms | None = None
    if data.pseudonyms:
        path = base / Path(data.pseudonyms).expanduser()
        book = Pseudonyms.load(path) if path.exists() else Pseudonyms()
    options = next((check.options for check in data.checks if check.name == "personal"), {})
    given = {name: options[name] for name in ("kinds", "names", "ner") if options.get(name)}
    check_kinds(given.get("kinds", ()))
    return book, Mend(data.repair, book, **given)


def save(book: Pseudonyms | None, data: Data, base: Path) -> None:
    """Writes the book, if there is one, to the file that `data` names."""
    if book is not None and data.pseudonyms:
        book.save(base / Path(data.pseudonyms).expanduser())


def telling(write: Callable[[Any], None]) -> Sink:
    """Each mended row as a line: where it stands and its changes, which undo it."""
    return lambda row, changes: write({"where": str(row.origin), "changes": changes_to_plain(changes)})


def say_sources(loaded: Loaded, say: Say) -> None:
    """What was recognised in the files, and what was mended, not used, changed, left out or dropped: a line each."""
    for facts in loaded.sources:
        for note in facts.get("notes", ()):
            say(f"{facts['file']}: {note}")
    if loaded.repairs.rows:
        kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in loaded.repairs.kinds.most_common())
        more = [f"{loaded.repairs.stand_ins} stand-ins for personal data"] if loaded.repairs.stand_ins else []
        say(f"mended: {loaded.repairs.rows} rows ({'; '.join([*([kinds] if kinds else []), *more])})")
    told = loaded.account()
    for line in remarks(loaded.notes, told["left_out"], told["unread_because"], loaded.count):
        say(line)


def values(source: str | list[str], base: Path, encoding: str | None) -> Iterator[Mapping[str, Any]]:
    """The values of the rows that can be read."""
    for each in open_sources(source, base, encoding):
        yield from (item.values for item in each.rows() if isinstance(item, Row))


def counter(count: Callable[[Conversation], int]) -> Callable[[Conversation], int]:
    """`count`, each row once."""
    known: dict[str, int] = {}

    def counted(row: Conversation) -> int:
        if row.id not in known:
            known[row.id] = count(row)
        return known[row.id]

    return counted


def cpu_count() -> int:
    """Processes for checks of single rows: one for each core."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
