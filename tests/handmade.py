"""Rows made by hand, and the short words that tests of the data room share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import CHECKS
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.data.finding import CheckContext, Finding
from tunesmith.data.load import LoadedRows, RepairCounts
from tunesmith.data.repair_rows import RowRepair
from tunesmith.data.sources import open_sources
from tunesmith.data.table import Table


def row(
    number: int, question: str, answer: str = "an answer", *, group: str = "", system: str = "", **fields: Any
) -> Conversation:
    turns = (Turn("system", system),) * bool(system) + (Turn("user", question), Turn("assistant", answer))
    return Conversation(f"r{number}", turns, Origin("rows.csv", number + 1), group, fields)


def talk(number: int, *texts: str) -> Conversation:
    """A row whose turns are the user's and the assistant's by turns."""
    turns = tuple(Turn("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))
    return Conversation(f"r{number}", turns, Origin("rows.csv", number + 1))


def many(groups: int = 6, each: int = 10) -> list[Conversation]:
    """Rows of several groups whose prompts differ in a number alone."""
    pairs = [(group, number) for group in range(groups) for number in range(each)]
    return [row(i, f"how {g} {n}", f"so {n}", group=f"g{g}") for i, (g, n) in enumerate(pairs)]


def words(each: Conversation) -> int:
    return sum(len(turn.text.split()) for turn in each.turns)


def context(parts: dict[str, str] | None = None, max_tokens: int = 8, **more: Any) -> CheckContext:
    return CheckContext(words, max_tokens, parts or {}, **more)


def defects_of(
    name: str, rows: Sequence[Conversation], given: CheckContext | None = None, **options: Any
) -> list[Finding]:
    """What one check finds."""
    return list(resolve(CHECKS, name, function="find_defects")(rows, given or context(), **options))


def spans(findings: Sequence[Finding], rows: Sequence[Conversation]) -> list[tuple[str, str]]:
    """(row, the words that prove the finding); the excerpt shows exactly these words, if any."""
    by_id = {each.id: each for each in rows}
    told = []
    for finding in findings:
        text = by_id[finding.row].turns[finding.turn].text
        assert 0 <= finding.start <= finding.end <= len(text)
        place = text[finding.start : finding.end]
        if finding.excerpt and len(place) <= 120:
            assert f"⟦{place}⟧" in finding.excerpt
        told.append((finding.row, place))
    return told


def loaded(rows: Sequence[Conversation], folder: Path, broken: Sequence[Finding] = ()) -> LoadedRows:
    """The rows as `load` would hand them on."""
    return LoadedRows(Table.write(folder / "rows.table", rows), list(broken), RepairCounts(), [])


def write(path: Path, rows: Sequence[Any]) -> Path:
    """JSON lines; a text is written as it stands."""
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return path


def opened(*files: Path) -> list[Any]:
    return open_sources([str(file) for file in files], Path())


def mended(values: dict[str, Any], answers: Sequence[str] = (), **options: Any) -> Any:
    """`values` repaired; `answers` are the texts that the format took as answers."""
    return RowRepair(**{"damage": True, **options}).row(values, [Turn("assistant", text) for text in answers])
