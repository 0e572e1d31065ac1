"""The frozen types of this package, claims, their values and verdicts, and when two values agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from rapidfuzz import fuzz

from tunesmith.claims.words import Words

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


SUBJECT_SIMILARITY = 85.0  # rapidfuzz token_set_ratio: 'computer science' and 'computing science' give 86
ABOUT_TOLERANCE = 0.15  # 'about 100' may be 85 to 115
MAX_RANGE_RATIO = 2.0  # upper over lower end of the widest range that supports a number inside it
NEARLY_RATIO = 0.8  # 'nearly 5' is 4 to 5
MAX_JOBS = 6  # durations added up in all combinations: 2^6 sums


def quantities_agree(claimed: Quantity, field_value: Quantity) -> bool:
    """Return whether a field's amount supports the text's: 5 or more supports 'over 5', 4 to 5 'nearly 5', 5+ '5'."""
    if claimed.unit and field_value.unit and claimed.unit != field_value.unit:
        return False
    low, high = field_value.amount, field_value.upper
    if _is_close(claimed.amount, low) and _is_close(claimed.upper, high):
        return not (claimed.bound == "over" and field_value.bound in {"under", "nearly"})
    if claimed.pair and field_value.pair:
        return False  # as ranges, 9 to 16 would support 8 to 16; as pairs, 9 of 16 does not support 8 of 16
    if claimed.bound == "over":
        return high >= claimed.amount and field_value.bound != "under"  # 2018 to 2023 may be more than five years
    if claimed.bound == "under":
        return high <= claimed.upper and field_value.bound != "over"
    if claimed.bound == "nearly":
        return NEARLY_RATIO * claimed.upper <= high <= claimed.upper
    if claimed.bound == "about" or field_value.bound == "about":
        return abs(claimed.amount - low) <= ABOUT_TOLERANCE * low
    if claimed.upper == claimed.amount:
        return (
            low <= claimed.amount <= high <= MAX_RANGE_RATIO * low
        )  # '3-5 people' supports 4; a score of 2-31 is no range
    return claimed.amount <= low <= high <= claimed.upper


def _is_close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-6)


def periods_agree(claimed: Period, field_value: Period) -> bool:
    """Return whether a field's date supports the text's, at the coarser precision; a date may lie in a range."""
    if claimed.until:
        return (
            bool(field_value.until)
            and _periods_overlap(claimed, field_value)
            and _spans_overlap(claimed.until, field_value.until or (0, 0))
        )
    if claimed.since:
        return _periods_overlap(claimed, field_value) and (field_value.since or not field_value.until)
    if field_value.until:
        return field_value.first <= claimed.last and claimed.first <= field_value.until[1]
    return claimed.first >= field_value.first if field_value.since else _periods_overlap(claimed, field_value)


def _periods_overlap(left: Period, right: Period) -> bool:
    return _spans_overlap((left.first, left.last), (right.first, right.last))


def _spans_overlap(left: tuple[int, int], right: tuple[int, int]) -> bool:
    return left[0] <= right[1] and right[0] <= left[1]


def period_duration(period: Period, month: int) -> Quantity | None:
    """Return the length of a range of dates in months: 2018 to 2021 is 25 to 48; an open range ends with `month`."""
    end = period.until or ((month, month) if period.since else None)
    return Quantity(max(end[0] - period.last, 0), end[1] - period.first + 1) if end else None


def is_sum_of(claimed: Quantity, durations: Sequence[Quantity]) -> bool:
    """Return whether several durations (of different jobs) add up to the stated one."""
    for size in range(2, min(len(durations), MAX_JOBS) + 1):
        for subset in combinations(durations[:MAX_JOBS], size):
            if quantities_agree(
                claimed,
                Quantity(sum(duration.amount for duration in subset), sum(duration.upper for duration in subset)),
            ):
                return True
    return False


def degrees_agree(claimed: Degree, field_value: Degree) -> bool:
    """Return whether two degrees have the same level, and the same subject if both state one."""
    return claimed.level == field_value.level and subjects_agree(claimed.subject, field_value.subject)


def subjects_agree(left: Words, right: Words) -> bool:
    """Return whether two fields of study match apart from typing errors and additions; an empty one matches all."""
    return not left or not right or fuzz.token_set_ratio(" ".join(left), " ".join(right)) >= SUBJECT_SIMILARITY


def counts_same_noun(claim: Claim, fact: Claim) -> bool:
    """Return whether two quantities count the same noun."""
    value, fact_value = claim.value, fact.value
    return isinstance(value, Quantity) and isinstance(fact_value, Quantity) and bool(value.nouns & fact_value.nouns)
