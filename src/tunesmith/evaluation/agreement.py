"""Shares with their intervals, and how far judges agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 95 % score interval of a share, each end from 0 to 1 (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    Raises ValueError unless 0 <= count <= of and of > 0.
    """
    if not 0 <= count <= of or of < 1:
        raise ValueError(f"{count} of {of} is no share")
    z = NormalDist().inv_cdf(0.975)
    share = count / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    low = 0.0 if count == 0 else (middle - half) / scale  # exact at the ends, where rounding leaves 1e-17
    return low, 1.0 if count == of else (middle + half) / scale


def cohen(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Kappa of two reviewers' answers to the same items (Cohen 1960, doi:10.1177/001316446002000104).

    (p - e) / (1 - e): p is the share of equal answers, e the one expected from how often each gives each answer. None
    where e is 1, both having given one and the same answer throughout. Raises ValueError for no or unequal lists.
    """
    if len(first) != len(second) or not first:
        raise ValueError("kappa needs equal, non-empty lists")
    found = sum(a == b for a, b in zip(first, second, strict=True))
    one, two = Counter(first), Counter(second)
    # in whole numbers, n² times each share, so that e = 1 is met exactly
    squared, chance = len(first) ** 2, sum(one[answer] * two[answer] for answer in one)
    return (found * len(first) - chance) / (squared - chance) if chance < squared else None


def fleiss(items: Sequence[Sequence[str]]) -> tuple[float, float | None]:
    """Mean agreement and kappa of several reviewers, each item with one answer of each.

    An item's agreement is the share of pairs of reviewers with equal answers; the agreement expected is the sum of the
    squared shares of all answers (Fleiss 1971, doi:10.1037/h0031619). No kappa where that is 1. Raises ValueError for
    no items, or unequal or single ones.
    """
    raters = len(items[0]) if items else 0
    if raters < 2 or any(len(item) != raters for item in items):
        raise ValueError("kappa needs items with the same number of answers, at least two")
    counts = [Counter(item) for item in items]
    equal = sum(n * (n - 1) for count in counts for n in count.values()) / (len(items) * raters * (raters - 1))
    totals = Counter(answer for item in items for answer in item)
    if len(totals) == 1:
        return equal, None
    chance = sum((n / (len(items) * raters)) ** 2 for n in totals.values())
    return equal, (equal - chance) / (1 - chance)
