"""Figures that fields imply: the margin between two things, a score of one to the other, what two have together."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations, permutations

from tunesmith.claims.claim import Claim, Quantity
from tunesmith.claims.fields import Fact

_BY = re.compile(r"\bby\s+(?:an?\s+)?(?:\w+\s)?$", re.IGNORECASE)
MARGIN = re.compile(
    r"^[\s-]*(?:[a-z]+[\s-]+){0,3}?(?:win|victory|loss|defeat|margin|lead|advantage|edge|deficit|difference|gap|game)\b",
    re.IGNORECASE,
)
_TOGETHER = re.compile(
    r"\b(?:combin\w+|together|total(?:l?ed|l?ing)?|in all|between them|duo|trio|pair)\b", re.IGNORECASE
)


def margin(before: str, after: str) -> bool:
    """Whether a number is said to be a difference: 'by 16', 'a 30-point win', given the words on both sides."""
    return bool(_BY.search(before) or MARGIN.match(after))


def together(before: str) -> bool:
    """Whether a number is said to be a sum: 'they combined for 48'."""
    return bool(_TOGETHER.search(before))


def pair(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """The fact of one thing that, with a fact of another about the same noun, gives a score such as '113-107'."""
    said = claim.value
    for (one, a), (_, b) in _couples(said, facts, names):
        if isinstance(said, Quantity) and math.isclose(a, said.amount) and math.isclose(b, said.upper):
            return one
    return None


def difference(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """The fact of one thing that is larger than another's about the same noun by the claim's amount."""
    said = claim.value
    for (one, a), (_, b) in _couples(said, facts, names):
        if isinstance(said, Quantity) and math.isclose(a - b, said.amount):
            return one
    return None


def total(claim: Claim, facts: Sequence[Fact], names: Sequence[str]) -> Fact | None:
    """The first of two or three things' facts about the same noun that add up to the claim's amount."""
    said = claim.value
    held = _held(said, facts, names)
    for size in (2, 3):
        for some in combinations(held, size):
            apart = len({fact.field for fact, _ in some}) == size
            same = len({_nouns(fact) for fact, _ in some}) == 1
            if apart and same and isinstance(said, Quantity) and math.isclose(sum(v for _, v in some), said.amount):
                return some[0][0]
    return None


def _couples(said: object, facts: Sequence[Fact], names: Sequence[str]) -> list[tuple[tuple[Fact, float], ...]]:
    held = _held(said, facts, names)
    return [
        (one, other)
        for one, other in permutations(held, 2)
        if one[0].field != other[0].field and _nouns(one[0]) == _nouns(other[0])
    ]


def _held(said: object, facts: Sequence[Fact], names: Sequence[str]) -> list[tuple[Fact, float]]:
    """Single amounts of the named things; those that count the claim's nouns, if any do."""
    single = [
        (fact, fact.claim.value.amount)
        for fact in facts
        if fact.field in names and isinstance(fact.claim.value, Quantity) and not fact.claim.value.pair
        and fact.claim.value.nouns
    ]  # fmt: skip
    if not isinstance(said, Quantity) or not said.nouns:
        return single
    best = max((likeness(said.nouns, _nouns(fact)) for fact, _ in single), default=0.0)
    return [each for each in single if best and likeness(said.nouns, _nouns(each[0])) == best]


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared words over all words (Jaccard), 0 to 1."""
    return len(one & other) / len(one | other) if one | other else 0.0


def _nouns(fact: Fact) -> frozenset[str]:
    return fact.claim.value.nouns if isinstance(fact.claim.value, Quantity) else frozenset()
