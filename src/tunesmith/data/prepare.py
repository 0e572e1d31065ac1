"""Rows in, conversations out: read, parse, check, split, and count what became of every row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.checks import AFTER_SPLIT, Context, Finding
from tunesmith.data.conversation import Conversation
from tunesmith.data.profile import profile
from tunesmith.data.sources import locate, read
from tunesmith.data.split import PARTS, split
from tunesmith.errors import DataError, Several, TunesmithError
from tunesmith.find import find
from tunesmith.recipe import Data, Named, Sample

SHOWN_ERRORS = 20  # more hide the first


@dataclass(frozen=True)
class Prepared:
    """Checked, split rows and what was found on the way."""

    parts: Mapping[str, list[Conversation]]
    findings: Sequence[Finding]
    audit: dict[str, Any]


def source_files(sources: str | list[str], folder: Path) -> list[Path]:
    """The files that a recipe's data.source names."""
    return [path for source in ([sources] if isinstance(sources, str) else sources) for path in locate(source, folder)]


@dataclass(frozen=True)
class Loaded:
    """The rows of the files: those that are conversations, and a finding for each that is not."""

    rows: list[Conversation]
    broken: list[Finding]


def load(files: Sequence[Path], wanted: Named, system: str | None, *, drop_broken: bool = False) -> Loaded:
    """Every row of `files` as a conversation.

    Raises Several with each row that does not fit (alike ones once, at most 20), naming file and line; with
    `drop_broken` such rows are findings, as long as others fit.
    """
    parse = find("tunesmith.data.formats", wanted.name)
    rows: list[Conversation] = []
    wrong: list[TunesmithError] = []
    broken: list[Finding] = []
    seen: Counter[str] = Counter()
    for row in _rows(files, wrong):
        try:
            turns, group = parse(row.values, **wanted.options)
        except DataError as error:
            wrong.append(DataError(error.what, where=str(row.origin), next=error.next))
            place = row.origin
            broken.append(Finding("broken", str(place), place.file, place.line, place.unit, error.what, "drop"))
            continue
        name = _id(turns, seen)
        rows.append(Conversation(name, turns, row.origin, group, _plain(row.values)).with_system(system))
    if len(wrong) > len(broken) or (broken and not (drop_broken and rows)):
        advice = "Mend them, or add broken to data.checks: such rows are then dropped and counted"
        told = DataError(f"{len(broken)} of {len(broken) + len(rows)} rows do not fit", next=advice)
        raise Several([*_shorten(wrong), *([told] if broken and rows else [])])
    if not rows:
        raise DataError("there are no rows", where=", ".join(map(str, files)), next="Check data.source")
    return Loaded(rows, broken)


def prepare(rows: Sequence[Conversation], data: Data, seed: int, context: Context) -> Prepared:
    """Checks the rows, drops what the checks propose to drop, splits the rest, and accounts for every row."""
    before = [check for check in data.checks if check.name not in AFTER_SPLIT]
    after = [check for check in data.checks if check.name in AFTER_SPLIT]
    findings = list(_look(rows, before, context))
    kept = _keep(rows, findings)
    if not kept:
        raise DataError("the checks leave no row", next="Read audit.html, or ask for fewer checks in data.checks")
    options = data.split.model_dump()
    parts = split(kept, seed=seed, **options)
    leaks = list(_look(kept, after, replace(context, parts=parts)))
    findings += leaks
    kept = _keep(kept, leaks)
    by_part = {part: [row for row in kept if parts[row.id] == part] for part in PARTS}
    if not by_part["train"]:
        raise DataError("every training row leaks into the test", next="Split by group, or remove repeated prompts")
    drawn = {part: _draw(members, data.sample, part, seed) for part, members in by_part.items()}
    return Prepared(drawn, findings, _account(rows, drawn, findings, context, sum(map(len, by_part.values()))))


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


def _rows(files: Sequence[Path], wrong: list[TunesmithError]) -> Iterator[Any]:
    for file in files:
        try:
            yield from read(file)
        except DataError as error:
            wrong.append(error)


def _id(turns: Sequence[Any], seen: Counter[str]) -> str:
    text = "\x1f".join(f"{turn.role}\x1e{turn.text}" for turn in turns)
    name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items() if isinstance(value, str | int | float | bool)}


def _look(rows: Sequence[Conversation], checks: Sequence[Named], context: Context) -> Iterator[Finding]:
    for check in checks:
        yield from find("tunesmith.data.checks", check.name)(rows, context, **check.options)


def _keep(rows: Sequence[Conversation], findings: Sequence[Finding]) -> list[Conversation]:
    dropped = {finding.row for finding in findings if finding.proposal == "drop"}
    return [row for row in rows if row.id not in dropped]


def _draw(rows: list[Conversation], sample: Sample, part: str, seed: int) -> list[Conversation]:
    """As many rows as the recipe asks for, drawn by seed and content, in the order they came."""
    wanted: int | None = getattr(sample, part)
    if wanted is None:
        return rows
    if len(rows) < wanted:
        raise DataError(
            f"data.sample.{part} asks for {wanted} rows, and the split gives {len(rows)}",
            next="Ask for fewer, or change data.split",
        )
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}/sample/{row.id}".encode()).digest())
    chosen = {row.id for row in order[:wanted]}
    return [row for row in rows if row.id in chosen]


def _account(
    rows: Sequence[Conversation],
    parts: Mapping[str, list[Conversation]],
    findings: Sequence[Finding],
    context: Context,
    kept: int,
) -> dict[str, Any]:
    reasons: dict[str, str] = {}
    for finding in findings:
        if finding.proposal == "drop":
            reasons.setdefault(finding.row, finding.check)  # a row is counted under the first check that drops it
    read = len(rows) + sum(finding.check == "broken" for finding in findings)
    if kept + len(reasons) != read:
        raise AssertionError(f"{read} rows came in, {kept} were kept, {len(reasons)} were dropped")
    return {
        "read": read,
        "dropped": dict(Counter(reasons.values())),
        "not_drawn": kept - sum(map(len, parts.values())),
        "parts": {part: len(members) for part, members in parts.items()},
        "groups": {part: sorted({row.group for row in members}) for part, members in parts.items()},
        "findings": [asdict(finding) for finding in findings],
        "profile": profile([row for members in parts.values() for row in members], context.count_tokens),
    }
