"""Verdicts on the numbers of a report: each belongs to the thing that it is said of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.claims import agree, derive
from tunesmith.claims.claim import Checked, Claim, Quantity
from tunesmith.claims.counts import RANK
from tunesmith.claims.evidence import Evidence, against, supported, unknown
from tunesmith.claims.fields import Fact
from tunesmith.claims.measured import FEW
from tunesmith.claims.numbers import is_group

_MEAN = re.compile(r"\b(?:averag\w*|mean|per|last|past|previous|total|season|career)\b", re.IGNORECASE)
_MEAN_BEFORE = re.compile(r"\baverag(?:es?|ing|ed)\b[^.;,]*$", re.IGNORECASE)
_SPAN = re.compile(
    r"[^.;,]*\b(?:(?:over|in|during|across|on)\s+(?:his|her|their|its|the)\s+(?:last|past|previous|final|year|season)|"
    r"per\s+(?:game|match|day|week|month|year|season))\b", re.IGNORECASE)  # fmt: skip
RELATED = 0.5  # Jaccard: 'two quarters' has nothing to do with '31 first quarter points'
_WINDOW = re.compile(r"\b(?:last|past|next|previous|first|final)\s*$", re.IGNORECASE)


def reported(given: Evidence, claim: Claim, subject: str, sentence: tuple[int, int]) -> Checked | None:
    """The verdict on a number said of `subject`; None where it states nothing, as in 'their last five games'."""
    said = claim.value
    if not isinstance(said, Quantity):
        return None
    before, after = given.text[sentence[0] : claim.start], given.text[claim.end : sentence[1]]
    subject, close = _whose(given, claim, subject)
    own = _comparable(given, claim, subject)
    names = given.subjects.near(*sentence)
    if said.pair and before.endswith("("):
        close = close or [each for each in own if not _nouns(each)]  # '(31-12)' is the pair that has no noun there
    longer = spanning(before, after)
    if longer:
        close = [each for each in close if _MEAN.search(each.piece)]
        own = close
    loose = said.pair or not said.nouns  # a score in running text rarely has a noun
    if fact := _equal(said, close or (own if loose else [])):
        return supported(claim, fact.field)
    if said.unit == RANK:
        return _ranked(given, claim, subject, close)
    if not longer and (fact := _implied(claim, given.known.facts, names, before, after)):
        return supported(claim, fact.field)
    small = claim.text.replace(" ", "").isalpha() and said.amount <= FEW
    if close and not (small and derive.likeness(said.nouns, _nouns(close[0])) < RELATED):
        return against(claim, close[0])
    if small or is_group(claim.text) or _WINDOW.search(before):
        return None
    return unknown(claim, f"{subject} states no such {claim.kind}")


def spanning(before: str, after: str) -> bool:
    """Whether a number is a mean or a sum over a longer time: 'averaging 13', '37 over his last two games'.

    Only a piece of a field that says so too can bear it out.
    """
    return bool(_MEAN_BEFORE.search(before) or _SPAN.match(after))


def _ranked(given: Evidence, claim: Claim, subject: str, close: Sequence[Fact]) -> Checked | None:
    """The verdict on a rank that no fact bears out: 'his second steal' is one where his field counts steals."""
    if close:
        return against(claim, close[0])
    said = claim.value.nouns if isinstance(claim.value, Quantity) else frozenset()
    values = [each.claim.value for each in given.known.facts if each.field == subject]
    counted = any(isinstance(value, Quantity) and value.nouns == said for value in values)
    return unknown(claim, f"{subject} ranks nothing so") if counted else None


def _comparable(given: Evidence, claim: Claim, subject: str) -> list[Fact]:
    """The subject's facts of the claim's kind: both are ranks, or neither, and both pairs, or neither."""
    same = [each for each in given.by_field.get(subject, ()) if each.claim.kind == claim.kind]
    return [each for each in same if _form(each.claim) == _form(claim)]


def _form(claim: Claim) -> tuple[bool, bool]:
    value = claim.value
    return (value.unit == RANK, value.pair) if isinstance(value, Quantity) else (False, False)


def _whose(given: Evidence, claim: Claim, subject: str) -> tuple[str, list[Fact]]:
    """The subject, or the one named before it in the sentence that counts the claim's nouns, and its facts that do."""
    for name in (subject, *given.subjects.earlier(given.text, claim.start)):
        if close := nearest(claim, _comparable(given, claim, name)):
            return name, close
    return subject, []


def nearest(claim: Claim, facts: Sequence[Fact]) -> list[Fact]:
    """The facts that count the same as the claim, those with fewest other words."""
    said = claim.value.nouns if isinstance(claim.value, Quantity) else frozenset()
    scored = [
        (derive.likeness(said, each.claim.value.nouns), each)
        for each in facts
        if isinstance(each.claim.value, Quantity)
    ]
    best = max((score for score, _ in scored), default=0.0)
    return [each for score, each in scored if best and score == best]


def _nouns(fact: Fact) -> frozenset[str]:
    return fact.claim.value.nouns if isinstance(fact.claim.value, Quantity) else frozenset()


def _equal(said: Quantity, facts: Sequence[Fact]) -> Fact | None:
    held = ((each, each.claim.value) for each in facts)
    return next((fact for fact, value in held if isinstance(value, Quantity) and agree.quantity(said, value)), None)


def _implied(claim: Claim, facts: Sequence[Fact], names: Sequence[str], before: str, after: str) -> Fact | None:
    """A fact that bears out the claim together with another: a score, a margin, a sum."""
    if isinstance(claim.value, Quantity) and claim.value.pair:
        return None if before.endswith("(") else derive.pair(claim, facts, names)
    if derive.margin(before, after):
        return derive.difference(claim, facts, names)
    return derive.total(claim, facts, names) if derive.together(before) else None
