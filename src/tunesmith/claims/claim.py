"""The frozen types of this package: claims of a text, their values and the verdicts on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "number", "date", "duration", "money", "percentage",
    "employer", "organisation", "title", "degree", "skill", "name",
]  # fmt: skip
Verdict = Literal["supported", "contradicted", "unsupported"]
Side = Literal["writer", "reader", "both"]
Bound = Literal["exact", "over", "under", "nearly", "about"]

QUANTITIES: frozenset[Kind] = frozenset({"number", "duration", "money", "percentage"})


@dataclass(frozen=True)
class Quantity:
    """An amount: durations in months, percentages in percent, money in `unit` (an ISO 4217 code or '').

    `upper` is the other end of a range (2-3 years), else the amount itself. In a `pair` (a score of 31-12, 7 of 12
    shots) it is the second number. `nouns` are the stems of what is counted.
    """

    amount: float
    upper: float
    bound: Bound = "exact"
    unit: str = ""
    nouns: frozenset[str] = frozenset()
    pair: bool = False


@dataclass(frozen=True)
class Period:
    """A date as its first and last month, counted from year 0: 2019 is 24228 to 24239.

    For a range, `until` holds the first and last month of its end. `since` marks a range without an end.
    """

    first: int
    last: int
    until: tuple[int, int] | None = None
    since: bool = False


@dataclass(frozen=True)
class Degree:
    """A degree's level (bachelor, master, ...) and the folded words of its subject, if stated."""

    level: str
    subject: tuple[str, ...] = ()


Value = Quantity | Period | Degree | tuple[str, ...]  # words folded by `fold.words`


@dataclass(frozen=True)
class Claim:
    """One statement of a text: characters start to end (exclusive) and the normalized value."""

    kind: Kind
    start: int
    end: int
    text: str
    value: Value


@dataclass(frozen=True)
class CheckedClaim:
    """A claim with its verdict, the field that decided it, and a reason for readers."""

    claim: Claim
    verdict: Verdict
    field: str | None
    reason: str
