"""Files in, conversations out: read, parsed, mended where that is asked for, and laid down as a table."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Named
from tunesmith.config.registry import find
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.data.finding import Finding, hidden
from tunesmith.data.labels import AnswerLabels
from tunesmith.data.messages import Notes, message_list
from tunesmith.data.open_sources import Opened
from tunesmith.data.repair_rows import Change, Mend, kinds
from tunesmith.data.rows import BadRow, Row
from tunesmith.data.table import Table
from tunesmith.errors import DataError, Several, TunesmithError

SHOWN_ERRORS = 20  # more hide the first
SHOWN_CHANGES = 40
SHOWN_REASONS = 5


@dataclass
class Repairs:
    """What was mended on the way in."""

    rows: int = 0
    stand_ins: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, row: Row, changes: Sequence[Change], stand_ins: int) -> None:
        """Counts a row's changes, and keeps the first ones of each kind to show; none of a row that got stand-ins."""
        self.rows += 1
        self.stand_ins += stand_ins
        for change in changes if not stand_ins else ():  # what was personal stands in the text before
            for edit in change.edits:
                if self.kinds[edit.kind] < SHOWN_CHANGES:
                    column = ".".join(map(str, change.path))
                    shown = {"before": hidden(edit.before)[:300], "after": hidden(edit.after)[:300], "kind": edit.kind}
                    self.examples.append({"where": str(row.origin), "column": column, **shown})
        self.kinds.update(kinds(changes))


@dataclass(frozen=True)
class Loaded:
    """The rows of the sources: those that are conversations, a finding for each that is not, and what was mended.

    Every row of the sources stands in `rows`, in `broken` (it cannot be read) or in `left_out` (its label says that the
    answer is a bad one). `notes` counts what the conversations do not use, and turns that were left out or joined.
    """

    rows: Table
    broken: list[Finding]
    repairs: Repairs
    sources: list[dict[str, Any]]  # facts about each file: encoding, bytes, rows
    left_out: list[Finding] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    @property
    def count(self) -> int:
        """All rows of the sources."""
        return len(self.rows) + len(self.broken) + len(self.left_out)

    def account(self) -> dict[str, Any]:
        """What was not used, joined, kept as context or left out, as plain values for audit.json."""
        return {
            "unused": dict(self.notes.unused),
            "turns": dict(self.notes.turns),
            "left_out": reasons(found.message for found in self.left_out),
            "unread_because": reasons(found.message for found in self.broken),
        }


Sink = Callable[[Row, Sequence[Change]], None]


def load(
    sources: Sequence[Opened],
    wanted: Named,
    system: str | None,
    *,
    into: Path,
    drop_broken: bool = False,
    mend: Mend | None = None,
    changed: Sink | None = None,
) -> Loaded:
    """Every row of `sources` as a conversation, in a table at `into`. `changed` is told of each row that was mended.

    Raises Several with each row that does not fit (alike ones once, at most 20), naming file and line; with
    `drop_broken` such rows are findings, as long as others fit.
    """
    labels = AnswerLabels(wanted.name, wanted.options)
    reader = _Reader(
        find("tunesmith.data.formats", wanted.name), wanted.options, system, mend or Mend(), changed, labels
    )
    table = Table.write(into, reader.conversations(sources))
    broken = reader.broken
    if reader.fatal or (broken and not (drop_broken and len(table))):
        advice = "Mend them, or add broken to data.checks: such rows are then dropped and counted"
        told = DataError(f"{len(broken)} of {len(broken) + len(table)} rows do not fit", next=advice)
        raise Several([*reader.fatal, *_shorten(reader.wrong), *([told] if broken and len(table) else [])])
    if not len(table):
        raise DataError(
            "there are no rows", where=", ".join(source.name for source in sources), next="Check data.source"
        )
    bad = frozenset(labels.bad())
    left_out = [_left_out(table[place].origin, labels.column) for place in sorted(bad)]
    if len(left_out) == len(table):
        raise no_good_answer(len(table), labels.column, where=", ".join(source.name for source in sources))
    if bad:
        table = table.take(place for place in range(len(table)) if place not in bad)
        del reader.notes.unused[labels.column]
    return Loaded(table, broken, reader.repairs, reader.facts, left_out, reader.notes)


class _Reader:
    """Turns rows into conversations and remembers what could not be turned."""

    def __init__(
        self,
        parse: Callable[..., Any],
        options: Mapping[str, Any],
        system: str | None,
        mend: Mend,
        changed: Sink | None,
        labels: AnswerLabels,
    ) -> None:
        self._parse, self._options, self._system = parse, options, system
        self._mend, self._changed, self._labels = mend, changed, labels
        self._read = 0
        self.notes = Notes()
        self._seen: Counter[str] = Counter()
        self.fatal: list[TunesmithError] = []
        self.wrong: list[TunesmithError] = []
        self.broken: list[Finding] = []
        self.repairs = Repairs()
        self.facts: list[dict[str, Any]] = []

    def conversations(self, sources: Iterable[Opened]) -> Iterator[Conversation]:
        for source in sources:
            self.facts.append(facts := source.facts())
            facts["rows"] = 0
            try:
                for item in source.rows():
                    facts["rows"] += 1
                    if made := self._conversation_or_none(item):
                        yield made
            except DataError as error:  # what ends a file; the other files are looked at all the same
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

    def _conversation(self, row: Row) -> Conversation:
        turns, group = parsed = self._parse(row.values, **self._options)
        values = row.values
        if self._mend:
            mended = self._mend.row(values, turns)
            if mended.changes or mended.stand_ins:
                self.repairs.enter(row, mended.changes, mended.stand_ins)
                values = mended.values
                turns, group = self._parse(values, **self._options)
                if self._changed:
                    self._changed(row, mended.changes)
        self.notes.enter(parsed.notes)
        self._labels.enter(self._read, row.values)
        self._read += 1
        name = self._id(turns)
        return Conversation(name, turns, row.origin, group, _plain(values)).with_system(self._system)

    def _refuse(self, item: Row | BadRow, error: DataError) -> None:
        place = item.origin
        if (
            len(self.wrong) < 10_000
        ):  # they are told by kind: a file of another kind altogether must not fill the memory
            self.wrong.append(error)
        self.broken.append(Finding("broken", str(place), place.file, place.line, place.unit, error.what, "drop"))

    def _id(self, turns: Sequence[Turn]) -> str:
        text = "\x1f".join(f"{turn.role}\x1e{turn.text}{_beside(turn)}" for turn in turns)
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}-{self._seen[name]}"


def _shorten(wrong: list[TunesmithError]) -> list[TunesmithError]:
    """One error for rows that are wrong in the same way, and at most 20 of them."""
    alike: dict[tuple[str, str], list[TunesmithError]] = {}
    for error in wrong:
        alike.setdefault((error.what, error.next), []).append(error)
    shown: list[TunesmithError] = []
    for same in alike.values():
        others = f" (and {len(same) - 1} more rows)" if len(same) > 2 else ""
        told = same[:1] if others else same
        shown += [DataError(error.what, where=f"{error.where}{others}", next=error.next) for error in told]
    more = len(shown) - SHOWN_ERRORS
    rest = [DataError(f"rows are wrong in {more} more ways", where=wrong[0].where)] if more > 0 else []
    return [*shown[:SHOWN_ERRORS], *rest]


def _beside(turn: Turn) -> str:
    """What tells two turns with the same text apart: the reasoning, and whether it carries loss."""
    return (f"\x1d{turn.reasoning}" if turn.reasoning else "") + ("" if turn.learn else "\x1d\x1d")


def _left_out(origin: Origin, column: str) -> Finding:
    return Finding("bad_answer", str(origin), origin.file, origin.line, origin.unit, bad_answer(column), "drop")


def no_good_answer(rows: int, column: str, where: str = "") -> DataError:
    """The refusal of rows of which each one's label marks its answer as a bad one."""
    return DataError(
        f"no answer is left to learn: in all {rows} rows {column} marks a bad answer",
        where=where,
        next=f"Give rows with good answers, or rename the column {column} if it means something else",
    )


def reasons(messages: Iterable[str]) -> dict[str, int]:
    """How many rows each reason concerns, the most frequent first; the number of a message makes no difference."""
    return dict(Counter(re.sub(r"^message \d+", "a message", each) for each in messages).most_common())


def remarks(notes: Notes, left_out: Mapping[str, int], refused: Mapping[str, int], total: int) -> list[str]:
    """What to know of `total` rows as they were read, a line for each kind; empty where every value became a turn.

    `left_out` and `refused` are reason -> rows.
    """
    keys = {key: count for key, count in notes.unused.most_common() if "[]." in key}
    columns = [key for key in notes.unused if key not in keys]
    unused = [f"{key.partition('[].')[2]} in {count} message{'s' * (count > 1)}" for key, count in keys.items()]
    unused += [f"the column{'s' * (len(columns) > 1)} {', '.join(columns)}"] if columns else []
    turns = [f"{count} {_singular(what) if count == 1 else what}" for what, count in notes.turns.most_common()]
    return [
        *([f"not used: {', '.join(unused)}"] if unused else []),
        *([f"in the conversations: {'; '.join(turns)}"] if turns else []),
        *_share("left out as preference data", left_out, total),
        *_share("dropped, no conversations", refused, total),
    ]


def _singular(what: str) -> str:
    return re.sub(r"(answer|turn)s\b", r"\1", what, count=1)


def _share(what: str, why: Mapping[str, int], total: int) -> list[str]:
    if not why:
        return []
    shown = [f"{count} × {reason}" if len(why) > 1 else reason for reason, count in list(why.items())[:SHOWN_REASONS]]
    rest = len(why) - SHOWN_REASONS
    more = [f"{rest} more reason{'s' * (rest > 1)}"] if rest > 0 else []
    return [f"{what}: {sum(why.values())} of {total} rows ({'; '.join([*shown, *more])})"]


def bad_answer(column: str) -> str:
    """The reason why a row is left out whose label in `column` is false."""
    return f"{column} marks its answer as a bad one"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are one text or number; cells that hold the conversation as text are no fields of it."""
    plain = {str(key): value for key, value in values.items() if isinstance(value, str | int | float | bool)}
    return {key: value for key, value in plain.items() if message_list(value) is None}
