"""A defect: a place in a text and why it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Defect:
    """A place in a text, why it is wrong, and what belongs there; `fix` is None where the text alone cannot say.

    An error spoils the row, a warning is worth a look, a note is only counted.
    """

    kind: str
    start: int
    end: int
    text: str
    why: str
    severity: Severity = "warning"
    fix: str | None = None


def at(
    kind: str, text: str, start: int, end: int, why: str, severity: Severity = "warning", fix: str | None = None
) -> Defect:
    return Defect(kind, start, end, text[start:end], why, severity, fix)
