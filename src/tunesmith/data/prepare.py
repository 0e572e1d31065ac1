"""Checks, splits and samples rows, and accounts for every one of them."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.config.recipe import CHECKS, Data, NamedSetting, Sample
from tunesmith.config.registry import entry_constant
from tunesmith.data.conversation import Conversation
from tunesmith.data.decisions import RowDecisions
from tunesmith.data.finding import CheckContext, Finding
from tunesmith.data.load import LoadedRows
from tunesmith.data.overlap import overlap
from tunesmith.data.profile import profile
from tunesmith.data.run_checks import run_checks
from tunesmith.data.split import PARTS, split
from tunesmith.data.table import Table
from tunesmith.errors import DataError

Sink = Callable[[Finding], None]
REQUIRED_CHECKS = (NamedSetting("bad_answer", {}), NamedSetting("unlearnable", {}))


class NoRowsLeft(DataError):
    """The checks leave no row; `audit` has their findings, as the function `audit` returns them."""

    def __init__(self, what: str, *, where: str = "", next: str = "", audit: dict[str, Any] | None = None) -> None:
        """See TunesmithError."""
        super().__init__(what, where=where, next=next)
        self.audit = audit or {}


@dataclass(frozen=True)
class Prepared:
    """The rows of each part of the split, the quarantined rows, and the account for audit.json."""

    parts: Mapping[str, Table]
    quarantined: Table
    audit: dict[str, Any]


def audit(
    loaded: LoadedRows,
    checks: Sequence[NamedSetting],
    context: CheckContext,
    *,
    sink: Sink | None = None,
    processes: int = 1,
) -> tuple[RowDecisions, dict[str, Any]]:
    """Checks the rows without splitting or dropping any; returns the decisions and plain values for the page."""
    ledger = RowDecisions([check.name for check in checks if _scope(check) != "split"], sink)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as executor:  # profiles in this process while others check
        profile_future = executor.submit(profile, _Stoppable(loaded.rows, stop), context.count_tokens)
        try:
            ledger.add(
                run_checks(loaded.rows, _with_required(checks), context, scopes=("row", "table"), processes=processes)
            )
        except BaseException:  # also Ctrl-C: stop the profile
            stop.set()
            raise
    return ledger, {**_audit_counts(loaded, ledger), "profile": profile_future.result()}


def _audit_counts(loaded: LoadedRows, ledger: RowDecisions) -> dict[str, Any]:
    """The numbers of rows read and kept, and the findings."""
    return {
        "read": loaded.count,
        "unread": len(loaded.broken),
        "kept": sum(ledger.decision(row.id) in ("keep", "repair") for row in loaded.rows),
        **_summary(ledger, loaded),
    }


def check_rows(
    loaded: LoadedRows,
    checks: Sequence[NamedSetting],
    context: CheckContext,
    *,
    sink: Sink | None = None,
    processes: int = 1,
) -> RowDecisions:
    """Runs the checks on rows and on the whole table. Rows that cannot be trained on are always found."""
    ledger = RowDecisions([check.name for check in checks], sink)
    scopes = ("row", "table")
    ledger.add(run_checks(loaded.rows, _with_required(checks), context, scopes=scopes, processes=processes))
    return ledger


def _with_required(checks: Sequence[NamedSetting]) -> list[NamedSetting]:
    """The checks and those that always run."""
    names = {check.name for check in checks}
    return [*checks, *(check for check in REQUIRED_CHECKS if check.name not in names)]


def drop_reasons(ledger: RowDecisions) -> str:
    """The checks that leave rows out and their numbers of rows, largest first."""
    reasons = ledger.counts("drop") | {f"{name} (quarantined)": n for name, n in ledger.counts("quarantine").items()}
    return ", ".join(f"{name} {count}" for name, count in sorted(reasons.items(), key=lambda item: -item[1]))


def prepare(
    loaded: LoadedRows, data: Data, seed: int, context: CheckContext, *, sink: Sink | None = None, processes: int = 1
) -> Prepared:
    """Checks the rows, drops or quarantines as proposed, splits the others, and accounts for every row."""
    rows = loaded.rows
    ledger = check_rows(loaded, data.checks, context, sink=sink, processes=processes)
    kept_rows = _kept_rows(rows, ledger)
    if not len(kept_rows):
        raise NoRowsLeft(
            f"the checks leave no row of {loaded.count}: {drop_reasons(ledger)}",
            next="Read audit.html, or ask for fewer checks in data.checks",
            audit={**_audit_counts(loaded, ledger), "profile": profile(rows, context.count_tokens)},
        )
    parts = split(kept_rows, seed=seed, **data.split.model_dump())
    ledger.add(run_checks(kept_rows, data.checks, replace(context, parts=parts), scopes=("split",)))
    kept_rows = _kept_rows(kept_rows, ledger)
    names = [parts[row.id] for row in kept_rows]
    by_part = {part: kept_rows.take(index for index, name in enumerate(names) if name == part) for part in PARTS}
    if not len(by_part["train"]):
        raise DataError("every training row leaks into the test", next="Split by group, or remove repeated prompts")
    sampled = {part: _sample(part_rows, data.sample, part, seed) for part, part_rows in by_part.items()}
    quarantined = rows.take(index for index, row in enumerate(rows) if ledger.decision(row.id) == "quarantine")
    account = _account(loaded, kept_rows, sampled, quarantined, ledger)
    account |= {
        "leaks": overlap(sampled, together=data.split.together),
        "profile": profile(_joined_parts(sampled, rows), context.count_tokens),
    }
    return Prepared(sampled, quarantined, account)


class _Stoppable(Sequence[Conversation]):
    """Rows whose iteration ends when `stop` is set."""

    def __init__(self, rows: Table, stop: threading.Event) -> None:
        self._rows, self._stop = rows, stop

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Conversation]:
        return itertools.takewhile(lambda _: not self._stop.is_set(), self._rows)


def _scope(check: NamedSetting) -> str:
    return str(entry_constant(CHECKS, check.name, "SCOPE"))


def _kept_rows(rows: Table, ledger: RowDecisions) -> Table:
    return rows.take(index for index, row in enumerate(rows) if ledger.decision(row.id) in ("keep", "repair"))


def _joined_parts(parts: Mapping[str, Table], rows: Table) -> Table:
    """The rows of all parts as one table."""
    return Table(rows.path, np.sort(np.concatenate([members.indices for members in parts.values()])))


def _sample(rows: Table, sample: Sample, part: str, seed: int) -> Table:
    """The number of rows that the recipe asks for, sampled by seed and content, in their original order."""
    count: int | None = getattr(sample, part)
    if count is None:
        return rows
    if len(rows) < count:
        raise DataError(
            f"data.sample.{part} asks for {count} rows, but the split has {len(rows)}",
            next="Ask for fewer, or change data.split",
        )
    order = [hashlib.sha256(f"{seed}/sample/{row.id}".encode()).digest() for row in rows]
    return rows.take(sorted(sorted(range(len(rows)), key=order.__getitem__)[:count]))


def _account(
    loaded: LoadedRows, kept_rows: Table, parts: Mapping[str, Table], quarantined: Table, ledger: RowDecisions
) -> dict[str, Any]:
    dropped = ledger.counts("drop")
    total = loaded.count
    if len(kept_rows) + len(quarantined) + sum(dropped.values()) != total:
        raise AssertionError(
            f"{total} rows came in: {len(kept_rows)} kept, {len(quarantined)} quarantined, {dropped} dropped"
        )
    return {
        "read": total,
        **_summary(ledger, loaded),
        "not_drawn": len(kept_rows) - sum(map(len, parts.values())),
        "parts": {part: len(members) for part, members in parts.items()},
        "groups": {part: sorted({row.group for row in members}) for part, members in parts.items()},
    }


def _summary(ledger: RowDecisions, loaded: LoadedRows) -> dict[str, Any]:
    """Findings, decisions, repairs and sources as plain values."""
    repairs = loaded.repairs
    repaired = {"rows": repairs.rows, "stand_ins": repairs.pseudonym_count, "kinds": dict(repairs.kinds)}
    return {
        "dropped": ledger.counts("drop"),
        "quarantined": ledger.counts("quarantine"),
        "repaired": {**repaired, "examples": repairs.examples},
        "checks": ledger.describe(),
        "sources": loaded.sources,
        **loaded.account(),
    }
