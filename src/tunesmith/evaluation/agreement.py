"""Confidence intervals of proportions, and agreement between reviewers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Returns the 95 % score interval of `count` / `total` as (low, high) (Wilson 1927).

    doi:10.1080/01621459.1927.10502953

    Raises ValueError unless 0 <= count <= total and total > 0.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"{count} of {total} is not a proportion")
    z = NormalDist().inv_cdf(0.975)
    share = count / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low = 0.0 if count == 0 else (middle - half) / scale  # exact at the ends, where rounding leaves 1e-17
    return low, 1.0 if count == total else (middle + half) / scale


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Cohen's kappa of two reviewers' answers to the same items (Cohen 1960, doi:10.1177/001316446002000104).

    kappa = (p - e) / (1 - e), where p is the share of equal answers and e the share expected from how often each
    reviewer gives each answer. None if e is 1, that is, if both gave the same single answer throughout. Raises
    ValueError if the lists are empty or differ in length.
    """
    if len(first) != len(second) or not first:
        raise ValueError("kappa needs equal, non-empty lists")
    equal = sum(a == b for a, b in zip(first, second, strict=True))
    first_counts, second_counts = Counter(first), Counter(second)
    # n² times each share, in integers, so that e = 1 is detected exactly
    squared, chance = len(first) ** 2, sum(first_counts[answer] * second_counts[answer] for answer in first_counts)
    return (equal * len(first) - chance) / (squared - chance) if chance < squared else None


def fleiss_kappa(items: Sequence[Sequence[str]]) -> tuple[float, float | None]:
    """Returns the mean agreement and Fleiss' kappa of several reviewers; each item holds one answer per reviewer.

    An item's agreement is the share of reviewer pairs with equal answers. The expected agreement is the sum of the
    squared shares of all answers (Fleiss 1971, doi:10.1037/h0031619); kappa is None if it is 1. Raises ValueError if
    there are no items, or if items do not all have the same number of answers, at least two.
    """
    raters = len(items[0]) if items else 0
    if raters < 2 or any(len(item) != raters for item in items):
        raise ValueError("kappa needs items with the same number of answers, at least two")
    counts = [Counter(item) for item in items]
    agreement = sum(n * (n - 1) for count in counts for n in count.values()) / (len(items) * raters * (raters - 1))
    totals = Counter(answer for item in items for answer in item)
    if len(totals) == 1:
        return agreement, None
    chance = sum((n / (len(items) * raters)) ** 2 for n in totals.values())
    return agreement, (agreement - chance) / (1 - chance)
