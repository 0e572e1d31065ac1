"""A defect: a span of a text and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Defect:
    """A span of a text, what is wrong with it, and its replacement `fix`, None if the text alone does not determine it.

    An error spoils the row, a warning should be read, a note is only counted.
    """

    kind: str
    start: int
    end: int
    text: str
    why: str
    severity: Severity = "warning"
    fix: str | None = None


def make_defect(
    kind: str, text: str, start: int, end: int, why: str, severity: Severity = "warning", fix: str | None = None
) -> Defect:
    """The defect at `start` to `end` of `text`."""
    return Defect(kind, start, end, text[start:end], why, severity, fix)
