"""Reads the rows of a recipe's data section for a command, with repairs, and logs what was found in the sources."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.commands.shared import Reporter
from tunesmith.config.recipe import Data, NamedSetting, source_list
from tunesmith.data.conversation import Conversation
from tunesmith.data.load import LoadedRows, Sink, load_rows, summarize_notes
from tunesmith.data.mix_in import mark
from tunesmith.data.privacy import PseudonymMap, check_kinds
from tunesmith.data.repair_rows import RowRepair
from tunesmith.data.repair_rows import changes_to_dicts as changes_to_plain
from tunesmith.data.rows import Row
from tunesmith.data.sources import open_sources
from tunesmith.errors import DataError, MultipleErrors, TunesmithError


@contextlib.contextmanager
def row_loader(
    data: Data,
    base: Path,
    system: str | None,
    on_repair: Sink | None = None,
    *,
    mark: Callable[[Conversation], Conversation] | None = None,
) -> Iterator[Callable[[], LoadedRows]]:
    """Yields a function that reads the rows into a table on disk, which exists until the block ends.

    `mark` changes each row before it is stored.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        pseudonym_map, mend = repair_settings(data, base)

        def read_them() -> LoadedRows:
            sources = open_sources(data.source, base, data.encoding)
            drop = any(check.name == "broken" for check in data.checks)
            table = Path(folder) / "rows.table"
            loaded = load_rows(
                sources,
                data.format,
                system,
                into=table,
                drop_broken=drop,
                repair=mend,
                on_change=on_repair
                if pseudonym_map is None
                else None,  # personal data must not get into the run's folder
                mark=mark,
            )
            if data.split.column:  # used by the split
                del loaded.notes.unused[data.split.column]
            save_pseudonyms(pseudonym_map, data, base)
            return loaded

        yield read_them


@contextlib.contextmanager
def mixed_row_loader(data: Data, base: Path) -> Iterator[Callable[[], LoadedRows]]:
    """Yields a function that reads the rows of data.mix_in; rows that cannot be read are findings.

    They get no system message and no repairs, but pseudonyms if `data.pseudonyms` is set. Errors name data.mix_in.
    """
    options = [check for check in data.checks if check.name == "personal"]
    changes = {
        "source": source_list(data.mix_in.source),
        "format": data.mix_in.format,
        "checks": [*options, NamedSetting("broken", {})],
        "repair": False,
        "encoding": None,
    }
    with _mix_in_named(), row_loader(data.model_copy(update=changes), base, None, mark=mark) as read_them:
        yield read_them


@contextlib.contextmanager
def _mix_in_named() -> Iterator[None]:
    """Makes the errors of the block name the settings of data.mix_in instead of those of data."""

    def renamed(error: TunesmithError) -> TunesmithError:
        advice = re.sub(r"\bdata\.(source|format)\b", r"data.mix_in.\1", error.next)
        return type(error)(error.what, where=error.where, next=advice)

    try:
        yield
    except MultipleErrors as error:
        raise MultipleErrors([renamed(inner) for inner in error.errors]) from error
    except DataError as error:
        raise renamed(error) from error


def mixed_row_fingerprints(data: Data, base: Path) -> list[str]:
    """Returns the hashes of the sources of data.mix_in. Raises DataError if one cannot be read."""
    with _mix_in_named():
        return [source.fingerprint() for source in open_sources(source_list(data.mix_in.source), base)]


def repair_settings(data: Data, base: Path) -> tuple[PseudonymMap | None, RowRepair]:
    """Returns the pseudonym map of `data.pseudonyms`, if set, and the repairs that `data` asks for."""
    pseudonym_map: PseudonymMap | None = None
    if data.pseudonyms:
        path = base / Path(data.pseudonyms).expanduser()
        pseudonym_map = PseudonymMap.load(path) if path.exists() else PseudonymMap()
    check_options = next((check.options for check in data.checks if check.name == "personal"), {})
    options = {name: check_options[name] for name in ("kinds", "names", "ner") if check_options.get(name)}
    check_kinds(options.get("kinds", ()))
    return pseudonym_map, RowRepair(data.repair, pseudonym_map, **options)


def save_pseudonyms(pseudonym_map: PseudonymMap | None, data: Data, base: Path) -> None:
    """Writes the pseudonym map, if there is one, to the file `data.pseudonyms`."""
    if pseudonym_map is not None and data.pseudonyms:
        pseudonym_map.save(base / Path(data.pseudonyms).expanduser())


def repair_writer(write: Callable[[Any], None]) -> Sink:
    """Returns a sink that writes each repaired row's place and its changes, which can be undone."""
    return lambda row, changes: write({"where": str(row.origin), "changes": changes_to_plain(changes)})


def log_sources(loaded: LoadedRows, log: Reporter) -> None:
    """Logs what was detected in the files, and what was repaired, unused, changed or dropped, one line each."""
    for facts in loaded.sources:
        for note in facts.get("notes", ()):
            log(f"{facts['file']}: {note}")
    if loaded.repairs.rows:
        kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in loaded.repairs.kinds.most_common())
        pseudonym_note = (
            [f"{loaded.repairs.pseudonym_count} pseudonyms for personal data"] if loaded.repairs.pseudonym_count else []
        )
        log(f"repaired: {loaded.repairs.rows} rows ({'; '.join([*([kinds] if kinds else []), *pseudonym_note])})")
    summary = loaded.account()
    for line in summarize_notes(loaded.notes, summary["left_out"], summary["unread_because"], loaded.count):
        log(line)


def row_values(source: str | list[str], base: Path, encoding: str | None) -> Iterator[Mapping[str, Any]]:
    """Yields the values of the rows that can be read."""
    for source_file in open_sources(source, base, encoding):
        yield from (item.values for item in source_file.rows() if isinstance(item, Row))


def cached_count(count: Callable[[Conversation], int]) -> Callable[[Conversation], int]:
    """Returns `count` with a cache, so that each row is counted once."""
    count_of: dict[str, int] = {}

    def counted(row: Conversation) -> int:
        if row.id not in count_of:
            count_of[row.id] = count(row)
        return count_of[row.id]

    return counted


def cpu_count() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
