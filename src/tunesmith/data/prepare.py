"""Rows checked, split and drawn, with an account of what became of every one."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.config.recipe import CHECKS, Data, Named, Sample
from tunesmith.config.registry import attribute
from tunesmith.data.conversation import Conversation
from tunesmith.data.decisions import Ledger
from tunesmith.data.finding import Context, Finding
from tunesmith.data.load import Loaded
from tunesmith.data.overlap import overlap
from tunesmith.data.profile import profile
from tunesmith.data.run_checks import look
from tunesmith.data.split import PARTS, split
from tunesmith.data.table import Table
from tunesmith.errors import DataError

Sink = Callable[[Finding], None]
ALWAYS = (Named("bad_answer", {}), Named("unlearnable", {}))


class NoRowsLeft(DataError):
    """The checks leave no row; `audit` is the account of what they found, as `audit` gives it."""

    def __init__(self, what: str, *, where: str = "", next: str = "", audit: dict[str, Any] | None = None) -> None:
        """See TunesmithError."""
        super().__init__(what, where=where, next=next)
        self.audit = audit or {}


@dataclass(frozen=True)
class Prepared:
    """Checked, split rows, those set aside, and what was found on the way."""

    parts: Mapping[str, Table]
    quarantined: Table
    audit: dict[str, Any]


def audit(
    loaded: Loaded, checks: Sequence[Named], context: Context, *, sink: Sink | None = None, processes: int = 1
) -> tuple[Ledger, dict[str, Any]]:
    """Looks at the rows without splitting or dropping any: the ledger, and plain values for the page."""
    ledger = Ledger([check.name for check in checks if _scope(check) != "split"], sink)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as beside:  # the profile is counted in this process while others look
        shape = beside.submit(profile, _Stoppable(loaded.rows, stop), context.count_tokens)
        try:
            ledger.enter(look(loaded.rows, _always(checks), context, scopes=("row", "table"), processes=processes))
        except BaseException:  # Ctrl-C too: the profile is no longer wanted
            stop.set()
            raise
    return ledger, {**_read(loaded, ledger), "profile": shape.result()}


def _read(loaded: Loaded, ledger: Ledger) -> dict[str, Any]:
    """How many rows were read and would be kept, and what was found."""
    return {
        "read": loaded.count,
        "unread": len(loaded.broken),
        "kept": sum(ledger.fate(row.id) in ("keep", "repair") for row in loaded.rows),
        **_told(ledger, loaded),
    }


def checked(
    loaded: Loaded, checks: Sequence[Named], context: Context, *, sink: Sink | None = None, processes: int = 1
) -> Ledger:
    """What the checks of rows and of the whole table find. Rows that cannot be learned are found in any case."""
    ledger = Ledger([check.name for check in checks], sink)
    scopes = ("row", "table")
    ledger.enter(look(loaded.rows, _always(checks), context, scopes=scopes, processes=processes))
    return ledger


def _always(checks: Sequence[Named]) -> list[Named]:
    """The checks, with those that run in any case."""
    names = {check.name for check in checks}
    return [*checks, *(check for check in ALWAYS if check.name not in names)]


def left_out_by(ledger: Ledger) -> str:
    """The checks that leave rows out, with the number of their rows, the largest first."""
    reasons = ledger.counts("drop") | {f"{name} (set aside)": n for name, n in ledger.counts("quarantine").items()}
    return ", ".join(f"{name} {count}" for name, count in sorted(reasons.items(), key=lambda each: -each[1]))


def prepare(
    loaded: Loaded, data: Data, seed: int, context: Context, *, sink: Sink | None = None, processes: int = 1
) -> Prepared:
    """Checks the rows, drops and sets aside what the checks propose, splits the rest, and accounts for every row."""
    rows = loaded.rows
    ledger = checked(loaded, data.checks, context, sink=sink, processes=processes)
    kept = _keep(rows, ledger)
    if not len(kept):
        raise NoRowsLeft(
            f"the checks leave no row of {loaded.count}: {left_out_by(ledger)}",
            next="Read audit.html, or ask for fewer checks in data.checks",
            audit={**_read(loaded, ledger), "profile": profile(rows, context.count_tokens)},
        )
    parts = split(kept, seed=seed, **data.split.model_dump())
    ledger.enter(look(kept, data.checks, replace(context, parts=parts), scopes=("split",)))
    kept = _keep(kept, ledger)
    names = [parts[row.id] for row in kept]
    by_part = {part: kept.take(place for place, name in enumerate(names) if name == part) for part in PARTS}
    if not len(by_part["train"]):
        raise DataError("every training row leaks into the test", next="Split by group, or remove repeated prompts")
    drawn = {part: _draw(members, data.sample, part, seed) for part, members in by_part.items()}
    aside = rows.take(place for place, row in enumerate(rows) if ledger.fate(row.id) == "quarantine")
    account = _account(loaded, kept, drawn, aside, ledger)
    account |= {
        "leaks": overlap(drawn, together=data.split.together),
        "profile": profile(_all(drawn, rows), context.count_tokens),
    }
    return Prepared(drawn, aside, account)


class _Stoppable(Sequence[Conversation]):
    """Rows that end where they are when `stop` is set."""

    def __init__(self, rows: Table, stop: threading.Event) -> None:
        self._rows, self._stop = rows, stop

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place]

    def __iter__(self) -> Iterator[Conversation]:
        return itertools.takewhile(lambda _: not self._stop.is_set(), self._rows)


def _scope(check: Named) -> str:
    return str(attribute(CHECKS, check.name, "SCOPE"))


def _keep(rows: Table, ledger: Ledger) -> Table:
    return rows.take(place for place, row in enumerate(rows) if ledger.fate(row.id) in ("keep", "repair"))


def _all(parts: Mapping[str, Table], rows: Table) -> Table:
    """The rows of all parts as one table."""
    return Table(rows.path, np.sort(np.concatenate([members.places for members in parts.values()])))


def _draw(rows: Table, sample: Sample, part: str, seed: int) -> Table:
    """As many rows as the recipe asks for, drawn by seed and content, in the order they came."""
    wanted: int | None = getattr(sample, part)
    if wanted is None:
        return rows
    if len(rows) < wanted:
        raise DataError(
            f"data.sample.{part} asks for {wanted} rows, and the split gives {len(rows)}",
            next="Ask for fewer, or change data.split",
        )
    order = [hashlib.sha256(f"{seed}/sample/{row.id}".encode()).digest() for row in rows]
    return rows.take(sorted(sorted(range(len(rows)), key=order.__getitem__)[:wanted]))


def _account(loaded: Loaded, kept: Table, parts: Mapping[str, Table], aside: Table, ledger: Ledger) -> dict[str, Any]:
    dropped = ledger.counts("drop")
    read = loaded.count
    if len(kept) + len(aside) + sum(dropped.values()) != read:
        raise AssertionError(f"{read} rows came in: {len(kept)} kept, {len(aside)} set aside, {dropped} dropped")
    return {
        "read": read,
        **_told(ledger, loaded),
        "not_drawn": len(kept) - sum(map(len, parts.values())),
        "parts": {part: len(members) for part, members in parts.items()},
        "groups": {part: sorted({row.group for row in members}) for part, members in parts.items()},
    }


def _told(ledger: Ledger, loaded: Loaded) -> dict[str, Any]:
    """What was found, what it leads to, what was mended, and where the rows came from."""
    repairs = loaded.repairs
    mended = {"rows": repairs.rows, "stand_ins": repairs.stand_ins, "kinds": dict(repairs.kinds)}
    return {
        "dropped": ledger.counts("drop"),
        "quarantined": ledger.counts("quarantine"),
        "mended": {**mended, "examples": repairs.examples},
        "checks": ledger.describe(),
        "sources": loaded.sources,
        **loaded.account(),
    }
