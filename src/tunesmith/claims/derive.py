"""Finds figures that fields imply: a margin between two subjects, a score, a sum."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations, permutations

from tunesmith.claims.claim import Claim, Quantity
from tunesmith.claims.fields import Fact

_BY = re.compile(r"\bby\s+(?:an?\s+)?(?:\w+\s)?$", re.IGNORECASE)
_MARGIN = re.compile(
    r"^[\s-]*(?:[a-z]+[\s-]+){0,3}?(?:win|victory|loss|defeat|margin|lead|advantage|edge|deficit|difference|gap|game)\b",
    re.IGNORECASE,
)
_TOGETHER = re.compile(
    r"\b(?:combin\w+|together|total(?:l?ed|l?ing)?|in all|between them|duo|trio|pair)\b", re.IGNORECASE
)


def is_difference(before: str, after: str) -> bool:
    """Return whether a number is stated as a difference ('by 16', 'a 30-point win'), from the text around it."""
    return bool(_BY.search(before) or _MARGIN.match(after))


def is_sum(before: str) -> bool:
    """Return whether a number is stated as a sum: 'they combined for 48'."""
    return bool(_TOGETHER.search(before))


def score_fact(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """Return the first of two subjects' facts about the same noun that form the claimed score, such as '113-107'."""
    value = claim.value
    for (fact, a), (_, b) in _amount_pairs(value, facts, names):
        if isinstance(value, Quantity) and math.isclose(a, value.amount) and math.isclose(b, value.upper):
            return fact
    return None


def difference_fact(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """Return the fact that exceeds another subject's, about the same noun, by the claimed amount."""
    value = claim.value
    for (fact, a), (_, b) in _amount_pairs(value, facts, names):
        if isinstance(value, Quantity) and math.isclose(a - b, value.amount):
            return fact
    return None


def sum_fact(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """Return the first of two or three subjects' facts about the same noun that add up to the claimed amount."""
    value = claim.value
    amounts = _amounts(value, facts, names)
    for size in (2, 3):
        for group in combinations(amounts, size):
            distinct = len({fact.field for fact, _ in group}) == size
            same_nouns = len({fact_nouns(fact) for fact, _ in group}) == 1
            if (
                distinct
                and same_nouns
                and isinstance(value, Quantity)
                and math.isclose(sum(v for _, v in group), value.amount)
            ):
                return group[0][0]
    return None


def _amount_pairs(value: object, facts: Sequence[Fact], names: Sequence[str]) -> list[tuple[tuple[Fact, float], ...]]:
    amounts = _amounts(value, facts, names)
    return [
        (first, second)
        for first, second in permutations(amounts, 2)
        if first[0].field != second[0].field and fact_nouns(first[0]) == fact_nouns(second[0])
    ]


def _amounts(value: object, facts: Sequence[Fact], names: Sequence[str]) -> list[tuple[Fact, float]]:
    """Return the single amounts of the named subjects that count the claim's nouns best; all if it has no nouns."""
    single = [
        (fact, fact.claim.value.amount)
        for fact in facts
        if fact.field in names and isinstance(fact.claim.value, Quantity) and not fact.claim.value.pair
        and fact.claim.value.nouns
    ]  # fmt: skip
    if not isinstance(value, Quantity) or not value.nouns:
        return single
    best = max((jaccard(value.nouns, fact_nouns(fact)) for fact, _ in single), default=0.0)
    return [entry for entry in single if best and jaccard(value.nouns, fact_nouns(entry[0])) == best]


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return shared words over all words (Jaccard index), 0 to 1."""
    return len(left & right) / len(left | right) if left | right else 0.0


def fact_nouns(fact: Fact) -> frozenset[str]:
    """Return the stems of what a fact counts."""
    return fact.claim.value.nouns if isinstance(fact.claim.value, Quantity) else frozenset()
