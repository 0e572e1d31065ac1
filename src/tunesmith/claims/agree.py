"""Whether a stated value and a field's value say the same, kind by kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from rapidfuzz import fuzz

from tunesmith.claims.claim import Claim, Degree, Period, Quantity
from tunesmith.claims.fold import Words

SAME_SUBJECT = 85.0  # rapidfuzz token_set_ratio: 'computer science' and 'computing science' give 86
ROUGH = 0.15  # 'about 100' may be 85 to 115
WIDE = 2.0  # the most that a range may span to bear out a number inside it
NEARLY = 0.8  # 'nearly 5' is 4 to 5
MOST_JOBS = 6  # durations that are added up in every combination: 2 to the power of 6 sums


def quantity(said: Quantity, known: Quantity) -> bool:
    """Whether a field's amount bears out the text's: 'over 5' by 5 and more, 'nearly 5' by 4 to 5, 5 by 5 or 5+."""
    if said.unit and known.unit and said.unit != known.unit:
        return False
    low, high = known.amount, known.upper
    if _same(said.amount, low) and _same(said.upper, high):
        return not (said.bound == "over" and known.bound in {"under", "nearly"})
    if said.pair and known.pair:
        return False  # 8 of 16 is not borne out by 9 of 16, as a range of 8 to 16 would be
    if said.bound == "over":
        return high >= said.amount and known.bound != "under"  # 2018 to 2023 may be more than five years
    if said.bound == "under":
        return high <= said.upper and known.bound != "over"
    if said.bound == "nearly":
        return NEARLY * said.upper <= high <= said.upper
    if said.bound == "about" or known.bound == "about":
        return abs(said.amount - low) <= ROUGH * low
    if said.upper == said.amount:
        return low <= said.amount <= high <= WIDE * low  # '3-5 people' bears out 4; a score of 2-31 is no range
    return said.amount <= low <= high <= said.upper


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6)


def period(said: Period, known: Period) -> bool:
    """Whether a field's date bears out the text's, at the coarser of both precisions; a date may lie in a range."""
    if said.until:
        return bool(known.until) and _meet(said, known) and _overlap(said.until, known.until or (0, 0))
    if said.since:
        return _meet(said, known) and (known.since or not known.until)
    if known.until:
        return known.first <= said.last and said.first <= known.until[1]
    return said.first >= known.first if known.since else _meet(said, known)


def _meet(one: Period, other: Period) -> bool:
    return _overlap((one.first, one.last), (other.first, other.last))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def lasted(known: Period, month: int) -> Quantity | None:
    """How long a range of dates lasted, in months: 2018 to 2021 is 25 to 48; an open one lasts to `month`."""
    end = known.until or ((month, month) if known.since else None)
    return Quantity(max(end[0] - known.last, 0), end[1] - known.first + 1) if end else None


def total(said: Quantity, known: Sequence[Quantity]) -> bool:
    """Whether several durations (of different jobs) add up to the one that the text states."""
    for size in range(2, min(len(known), MOST_JOBS) + 1):
        for some in combinations(known[:MOST_JOBS], size):
            if quantity(said, Quantity(sum(each.amount for each in some), sum(each.upper for each in some))):
                return True
    return False


def degree(said: Degree, known: Degree) -> bool:
    """Same level, and the same subject where both state one."""
    return said.level == known.level and subject(said.subject, known.subject)


def subject(one: Words, other: Words) -> bool:
    """Whether two fields of study are one, typing errors and additions apart; nothing stated fits everything."""
    return not one or not other or fuzz.token_set_ratio(" ".join(one), " ".join(other)) >= SAME_SUBJECT


def related(said: Claim, known: Claim) -> bool:
    """Whether two quantities count the same noun."""
    one, other = said.value, known.value
    return isinstance(one, Quantity) and isinstance(other, Quantity) and bool(one.nouns & other.nouns)
