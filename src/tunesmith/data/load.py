"""Loads sources into a table of conversations: read, parsed, and repaired if requested."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import NamedSetting
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.data.finding import Finding, redacted
from tunesmith.data.formats import ParsedRow
from tunesmith.data.messages import AnswerLabels, ReadNotes, message_list
from tunesmith.data.repair_rows import Change, RowRepair, edit_kinds
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.sources import Source
from tunesmith.data.table import Table
from tunesmith.errors import DataError, ExtensionError, MultipleErrors, TunesmithError

SHOWN_ERRORS = 20  # more would hide the first
SHOWN_CHANGES = 40
SHOWN_REASONS = 5


@dataclass
class RepairCounts:
    """The repairs that were made while loading."""

    rows: int = 0
    pseudonym_count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: Row, changes: Sequence[Change], stand_ins: int) -> None:
        """Counts a row's changes and keeps the first of each kind as examples; none of a row with pseudonyms."""
        self.rows += 1
        self.pseudonym_count += stand_ins
        for change in changes if not stand_ins else ():  # the text before the change has the personal data
            for edit in change.edits:
                if self.kinds[edit.kind] < SHOWN_CHANGES:
                    column = ".".join(map(str, change.path))
                    example = {
                        "before": redacted(edit.before)[:300],
                        "after": redacted(edit.after)[:300],
                        "kind": edit.kind,
                    }
                    self.examples.append({"where": str(row.origin), "column": column, **example})
        self.kinds.update(edit_kinds(changes))


@dataclass(frozen=True)
class LoadedRows:
    """The conversations of the sources, a finding for each other row, and the repairs.

    Every row of the sources is in `rows`, in `broken` (it cannot be read) or in `left_out` (its label marks the answer
    as bad). `notes` counts unused columns and keys, and turns that were left out or joined.
    """

    rows: Table
    broken: list[Finding]
    repairs: RepairCounts
    sources: list[dict[str, Any]]  # facts about each file: encoding, bytes, rows
    left_out: list[Finding] = field(default_factory=list)
    notes: ReadNotes = field(default_factory=ReadNotes)

    @property
    def count(self) -> int:
        """The number of rows in the sources."""
        return len(self.rows) + len(self.broken) + len(self.left_out)

    def account(self) -> dict[str, Any]:
        """Counts of what was unused, changed, kept as context or left out, as plain values for audit.json."""
        return {
            "unused": dict(self.notes.unused),
            "turns": dict(self.notes.turns),
            "left_out": count_reasons(finding.message for finding in self.left_out),
            "unread_because": count_reasons(finding.message for finding in self.broken),
        }


Sink = Callable[[Row, Sequence[Change]], None]


def load_rows(
    sources: Sequence[Source],
    format: NamedSetting,
    system: str | None,
    *,
    into: Path,
    drop_broken: bool = False,
    repair: RowRepair | None = None,
    on_change: Sink | None = None,
    mark: Callable[[Conversation], Conversation] | None = None,
) -> LoadedRows:
    """Loads every row of `sources` as a conversation into a table at `into`; `on_change` is called for repaired rows.

    `mark` changes each conversation before it is stored.

    Raises MultipleErrors with the rows that do not fit, by file and line (equal errors once, at most 20); with
    `drop_broken` such rows are findings, as long as others fit.
    """
    labels = AnswerLabels(format.name, format.options)
    reader = _Reader(
        resolve("tunesmith.data.formats", format.name), format.options, system, repair or RowRepair(), on_change, labels
    )
    conversations = reader.conversations(sources)
    table = Table.write(into, map(mark, conversations) if mark else conversations)
    broken = reader.broken
    if reader.fatal or (broken and not (drop_broken and len(table))):
        advice = "Correct them, or add broken to data.checks: such rows are then dropped and counted"
        summary = DataError(f"{len(broken)} of {len(broken) + len(table)} rows do not fit", next=advice)
        raise MultipleErrors(
            [*reader.fatal, *_merge_errors(reader.wrong), *([summary] if broken and len(table) else [])]
        )
    if not len(table):
        raise DataError(
            "there are no rows", where=", ".join(source.name for source in sources), next="Check data.source"
        )
    bad = frozenset(labels.bad())
    left_out = [_left_out(table[index].origin, labels.column) for index in sorted(bad)]
    if len(left_out) == len(table):
        raise no_good_answer_error(len(table), labels.column, where=", ".join(source.name for source in sources))
    if bad:
        table = table.take(index for index in range(len(table)) if index not in bad)
        del reader.notes.unused[labels.column]
    return LoadedRows(table, broken, reader.repairs, reader.facts, left_out, reader.notes)


class _Reader:
    """Converts rows into conversations and collects those that do not fit."""

    def __init__(
        self,
        parse: Callable[..., Any],
        options: Mapping[str, Any],
        system: str | None,
        repair: RowRepair,
        on_change: Sink | None,
        labels: AnswerLabels,
    ) -> None:
        self._parse, self._options, self._system = parse, options, system
        self._repair, self._on_change, self._labels = repair, on_change, labels
        self._read = 0
        self.notes = ReadNotes()
        self._seen: Counter[str] = Counter()
        self.fatal: list[TunesmithError] = []
        self.wrong: list[TunesmithError] = []
        self.broken: list[Finding] = []
        self.repairs = RepairCounts()
        self.facts: list[dict[str, Any]] = []

    def conversations(self, sources: Iterable[Source]) -> Iterator[Conversation]:
        for source in sources:
            self.facts.append(facts := source.facts())
            facts["rows"] = 0
            try:
                for item in source.rows():
                    facts["rows"] += 1
                    if conversation := self._conversation_or_none(item):
                        yield conversation
            except DataError as error:  # it ends this file; the other files are still read
                self.fatal.append(error)

    def _conversation_or_none(self, item: Row | BadRow) -> Conversation | None:
        if isinstance(item, BadRow):
            self._refuse(item, item.error)
            return None
        try:
            return self._conversation(item)
        except DataError as error:
            self._refuse(item, DataError(error.what, where=str(item.origin), next=error.next))
            return None

    def _parsed(self, values: Mapping[str, Any]) -> ParsedRow:
        parsed = self._parse(values, **self._options)
        if not isinstance(parsed, ParsedRow):
            name = getattr(self._parse, "__name__", "")
            raise ExtensionError(f"the format '{name}' must return ParsedRow, not {type(parsed).__name__}")
        return parsed

    def _conversation(self, row: Row) -> Conversation:
        turns, group = parsed = self._parsed(row.values)
        values = row.values
        if self._repair:
            repaired = self._repair.row(values, turns)
            if repaired.changes or repaired.pseudonym_count:
                self.repairs.add(row, repaired.changes, repaired.pseudonym_count)
                values = repaired.values
                turns, group = self._parsed(values)
                if self._on_change:
                    self._on_change(row, repaired.changes)
        self.notes.add(parsed.notes)
        self._labels.add(self._read, row.values)
        self._read += 1
        name = self._id(turns)
        return Conversation(name, turns, row.origin, group, _plain(values)).with_system(self._system)

    def _refuse(self, item: Row | BadRow, error: DataError) -> None:
        source = item.origin
        if len(self.wrong) < 10_000:  # a file of a different kind must not fill the memory with errors
            self.wrong.append(error)
        self.broken.append(Finding("broken", str(source), source.file, source.line, source.unit, error.what, "drop"))

    def _id(self, turns: Sequence[Turn]) -> str:
        text = "\x1f".join(f"{turn.role}\x1e{turn.text}{_turn_suffix(turn)}" for turn in turns)
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}-{self._seen[name]}"


def _merge_errors(wrong: list[TunesmithError]) -> list[TunesmithError]:
    """Merges equal errors and returns at most 20."""
    by_message: dict[tuple[str, str], list[TunesmithError]] = {}
    for error in wrong:
        by_message.setdefault((error.what, error.next), []).append(error)
    merged: list[TunesmithError] = []
    for group in by_message.values():
        suffix = f" (and {len(group) - 1} more rows)" if len(group) > 2 else ""
        examples = group[:1] if suffix else group
        merged += [DataError(error.what, where=f"{error.where}{suffix}", next=error.next) for error in examples]
    hidden_count = len(merged) - SHOWN_ERRORS
    remainder = (
        [DataError(f"rows have {hidden_count} more kinds of errors", where=wrong[0].where)] if hidden_count > 0 else []
    )
    return [*merged[:SHOWN_ERRORS], *remainder]


def _turn_suffix(turn: Turn) -> str:
    """What distinguishes two turns with the same text: the reasoning, and whether the turn has loss."""
    return (f"\x1d{turn.reasoning}" if turn.reasoning else "") + ("" if turn.learn else "\x1d\x1d")


def _left_out(origin: Origin, column: str) -> Finding:
    return Finding("bad_answer", str(origin), origin.file, origin.line, origin.unit, bad_answer_reason(column), "drop")


def no_good_answer_error(rows: int, column: str, where: str = "") -> DataError:
    """The error for rows whose labels all mark a bad answer."""
    return DataError(
        f"no answer is left to train on: in all {rows} rows {column} marks a bad answer",
        where=where,
        next=f"Give rows with good answers, or rename the column {column} if it means something else",
    )


def count_reasons(messages: Iterable[str]) -> dict[str, int]:
    """The number of rows by reason, most frequent first; message numbers are ignored."""
    return dict(Counter(re.sub(r"^message \d+", "a message", message) for message in messages).most_common())


def summarize_notes(notes: ReadNotes, left_out: Mapping[str, int], refused: Mapping[str, int], total: int) -> list[str]:
    """One line for each kind of content of `total` rows that is unused, changed or left out; empty if there is none.

    `left_out` and `refused` map reasons to numbers of rows.
    """
    keys = {key: count for key, count in notes.unused.most_common() if "[]." in key}
    columns = [key for key in notes.unused if key not in keys]
    unused = [f"{key.partition('[].')[2]} in {count} message{'s' * (count > 1)}" for key, count in keys.items()]
    unused += [f"the column{'s' * (len(columns) > 1)} {', '.join(columns)}"] if columns else []
    turns = [f"{count} {_singular(kind) if count == 1 else kind}" for kind, count in notes.turns.most_common()]
    return [
        *([f"not used: {', '.join(unused)}"] if unused else []),
        *([f"in the conversations: {'; '.join(turns)}"] if turns else []),
        *_share("left out as preference data", left_out, total),
        *_share("dropped, not conversations", refused, total),
    ]


def _singular(kind: str) -> str:
    return re.sub(r"(answer|turn)s\b", r"\1", kind, count=1)


def _share(label: str, reason_counts: Mapping[str, int], total: int) -> list[str]:
    if not reason_counts:
        return []
    listed = [
        f"{count} × {reason}" if len(reason_counts) > 1 else reason
        for reason, count in list(reason_counts.items())[:SHOWN_REASONS]
    ]
    remaining = len(reason_counts) - SHOWN_REASONS
    more = [f"{remaining} more reason{'s' * (remaining > 1)}"] if remaining > 0 else []
    return [f"{label}: {sum(reason_counts.values())} of {total} rows ({'; '.join([*listed, *more])})"]


def bad_answer_reason(column: str) -> str:
    """The reason for leaving out a row whose label in `column` is false."""
    return f"{column} marks its answer as bad"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are a text or a number, except cells with the conversation as text."""
    plain = {str(key): value for key, value in values.items() if isinstance(value, str | int | float | bool)}
    return {key: value for key, value in plain.items() if message_list(value) is None}
