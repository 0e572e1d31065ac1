"""Original letters with planted errors, and precision and recall of the checks on them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from tunesmith.claims.claim import CheckedClaim
from tunesmith.claims.match import check_claims

TODAY = date(2026, 1, 15)  # fixed end of 'since 2019'
ROWS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("letters.yaml").read_text(encoding="utf-8"))
HELD_OUT = ROWS[2::3]
DEVELOPMENT = [row for row in ROWS if row not in HELD_OUT]


@dataclass
class Figures:
    """Counts over letters: planted and found errors by kind, false alarms, clean claims."""

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
        lines = [f"{kind:12} {self.found.get(kind, 0):3} of {count:3}" for kind, count in sorted(self.planted.items())]
        total = f"recall {self.recall:.3f}, precision {self.precision:.3f}"
        return "\n".join([*lines, f"{total}, clean claims supported {self.clean_supported} of {self.clean}"])


def fields_of(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in {**row["fields"], **row.get("extra", {})}.items()}


def check_row(text: str, row: Mapping[str, Any]) -> list[CheckedClaim]:
    return check_claims(text, fields_of(row), today=TODAY)


def errors(row: Mapping[str, Any]) -> Iterator[tuple[str, str, int, int]]:
    """Yield the letter with each error: kind, text and planted span (marked by [[ ]], else the changed words)."""
    for kind, old, new in row["wrong"]:
        start_of_phrase = row["letter"].index(old)
        plain = new.replace("[[", "").replace("]]", "")
        text = row["letter"].replace(old, plain)
        if marked := re.search(r"\[\[(.*?)\]\]", new):
            yield kind, text, start_of_phrase + marked.start(), start_of_phrase + marked.start() + len(marked[1])
            continue
        before, after = old.split(" "), plain.split(" ")
        changed = next(i for i, (a, b) in enumerate(zip([*before, ""], [*after, "."], strict=False)) if a != b)
        tail = next(i for i, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b)
        start = start_of_phrase + len(" ".join(after[:changed])) + (changed > 0)
        yield kind, text, start, start_of_phrase + len(" ".join(after[: len(after) - tail]))


def measure(rows: list[dict[str, Any]]) -> Figures:
    figures = Figures()
    for row in rows:
        clean = check_row(row["letter"], row)
        figures.clean += len(clean)
        figures.clean_supported += sum(result.verdict == "supported" for result in clean)
        for kind, text, start, end in errors(row):
            doubted = [result for result in check_row(text, row) if result.verdict != "supported"]
            hits = [result for result in doubted if result.claim.start < end and start < result.claim.end]
            figures.planted[kind] = figures.planted.get(kind, 0) + 1
            figures.found[kind] = figures.found.get(kind, 0) + bool(hits)
            figures.false_alarms += [f"{kind}: {result.claim.text}" for result in doubted if result not in hits]
    return figures
