"""Original letters with errors planted on purpose, and the figures of a detector on them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from tunesmith.claims.claim import Checked
from tunesmith.claims.match import check

TODAY = date(2026, 1, 15)  # 'since 2019' must not age with the tests
ROWS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("letters.yaml").read_text(encoding="utf-8"))
HELD_OUT = ROWS[2::3]
DEVELOPMENT = [row for row in ROWS if row not in HELD_OUT]


@dataclass
class Figures:
    """Counts of one run over letters: planted errors and those found by kind, false alarms, clean claims."""

    planted: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    false_alarms: list[str] = field(default_factory=list)
    clean: int = 0
    clean_supported: int = 0

    @property
    def recall(self) -> float:
        return sum(self.found.values()) / sum(self.planted.values())

    @property
    def precision(self) -> float:
        return sum(self.found.values()) / (sum(self.found.values()) + len(self.false_alarms))

    def table(self) -> str:
        lines = [f"{kind:12} {self.found.get(kind, 0):3} of {many:3}" for kind, many in sorted(self.planted.items())]
        total = f"recall {self.recall:.3f}, precision {self.precision:.3f}"
        return "\n".join([*lines, f"{total}, clean claims supported {self.clean_supported} of {self.clean}"])


def fields_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in {**row["fields"], **row.get("extra", {})}.items()}


def look(text: str, row: Mapping[str, Any]) -> list[Checked]:
    return check(text, fields_of(row), today=TODAY)


def errors(row: Mapping[str, Any]) -> Iterator[tuple[str, str, int, int]]:
    """The letter with one error each: kind, text, the planted characters (marked by [[ ]], else the changed words)."""
    for kind, old, new in row["wrong"]:
        at = row["letter"].index(old)
        plain = new.replace("[[", "").replace("]]", "")
        text = row["letter"].replace(old, plain)
        if marked := re.search(r"\[\[(.*?)\]\]", new):
            yield kind, text, at + marked.start(), at + marked.start() + len(marked[1])
            continue
        before, after = old.split(" "), plain.split(" ")
        same = next(i for i, (a, b) in enumerate(zip([*before, ""], [*after, "."], strict=False)) if a != b)
        tail = next(i for i, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b)
        start = at + len(" ".join(after[:same])) + (same > 0)
        yield kind, text, start, at + len(" ".join(after[: len(after) - tail]))


def measure(rows: list[dict[str, Any]]) -> Figures:
    figures = Figures()
    for row in rows:
        clean = look(row["letter"], row)
        figures.clean += len(clean)
        figures.clean_supported += sum(each.verdict == "supported" for each in clean)
        for kind, text, start, end in errors(row):
            wrong = [each for each in look(text, row) if each.verdict != "supported"]
            hits = [each for each in wrong if each.claim.start < end and start < each.claim.end]
            figures.planted[kind] = figures.planted.get(kind, 0) + 1
            figures.found[kind] = figures.found.get(kind, 0) + bool(hits)
            figures.false_alarms += [f"{kind}: {each.claim.text}" for each in wrong if each not in hits]
    return figures
