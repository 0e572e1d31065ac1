"""Decides verdicts on the numbers of a report: each is checked against the subject that it is stated of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.claims import fields
from tunesmith.claims.abilities import is_general_remark
from tunesmith.claims.amounts import RANK
from tunesmith.claims.claim import (
    QUANTITIES,
    CheckedClaim,
    Claim,
    Period,
    Quantity,
    Side,
    counts_same_noun,
    is_sum_of,
    period_duration,
    quantities_agree,
)
from tunesmith.claims.evidence import Evidence, applies_to, contradicted, only_demanded, supported, unsupported
from tunesmith.claims.fields import Fact
from tunesmith.claims.words import is_group

SMALL_NUMBER = 3  # 'two schools', 'three reasons': a claim only if a field counts the same noun


def check_quantity(evidence: Evidence, claim: Claim, side: Side, start: int, end: int) -> CheckedClaim | None:
    """Return the verdict on an amount in a letter; None if it states nothing, like a rhetorical 'two'."""
    facts = evidence.facts("both", *_comparable_units(claim))
    own_facts = [fact for fact in facts if applies_to(fact.side, side)]
    related_facts = evidence.facts_nearby(own_facts, claim, start, end) if claim.kind == "duration" else []
    related_facts = related_facts or [fact for fact in own_facts if counts_same_noun(claim, fact.claim)]
    if not related_facts and is_group(claim.text):
        return None
    if fact := _equal_measurement(evidence, claim, related_facts or own_facts):
        return supported(claim, fact.field)
    qualified = re.match(r"\s*(?:as|at|with)\b", evidence.text[claim.end :])
    if related_facts and not qualified and (fact := _sum(evidence, claim, own_facts)):
        return supported(claim, fact.field)  # 'in ten years I was a Cook at X for two': ten is all jobs together
    if related_facts:
        return contradicted(claim, related_facts[0])
    if claim.kind == "number" and claim.text.replace(" ", "").isalpha() and _amount(claim) <= SMALL_NUMBER:
        return None
    if side == "reader" and not own_facts:
        return None  # 'your 40 branches': the fields count nothing of the reader's
    if evidence.letter and not related_facts and is_general_remark(evidence.text, claim.start):
        return None
    other_facts = [fact for fact in facts if fact not in own_facts]
    if claim.kind == "number":
        other_facts = [fact for fact in other_facts if counts_same_noun(claim, fact.claim)]
    demanded = _equal_measurement(evidence, claim, other_facts)
    if demanded and side == "writer":
        return only_demanded(claim, demanded.field)
    return unsupported(claim, f"no field states this {claim.kind}")


def _comparable_units(claim: Claim) -> tuple[str, ...]:
    if claim.kind == "duration":
        return ("duration", "date")
    elliptic = isinstance(claim.value, Quantity) and not claim.value.nouns  # 'two years here and eight there'
    return ("number", "duration") if claim.kind == "number" and elliptic else (claim.kind,)


def _equal_measurement(evidence: Evidence, claim: Claim, facts: list[Fact]) -> Fact | None:
    """Return the first fact that supports a quantity, or the first of several that add up to it."""
    claimed = claim.value
    if not isinstance(claimed, Quantity):
        return None
    if claim.kind == "number" and any(fact.claim.kind == "duration" for fact in facts):
        in_months = Quantity(claimed.amount * 12, claimed.upper * 12, claimed.bound)
    else:
        in_months = claimed
    fact_values = [(fact, value) for fact in facts if (value := _value(evidence, fact.claim))]
    for fact, value in fact_values:
        if quantities_agree(in_months if fact.claim.kind == "duration" else claimed, value):
            return fact
    return _sum(evidence, claim, facts)


def _sum(evidence: Evidence, claim: Claim, facts: list[Fact]) -> Fact | None:
    """Return the first of several jobs whose durations add up to the claim's; years of two skills do not count."""
    jobs = {(fact.field, fact.piece) for fact in evidence.fields.facts if fact.claim.kind in {"employer", "title"}}
    job_facts = [fact for fact in facts if fact.side != "reader" and (fact.field, fact.piece) in jobs]
    fact_values = [(fact, value) for fact in job_facts if (value := _value(evidence, fact.claim))]
    claimed = claim.value
    if (
        claim.kind == "duration"
        and isinstance(claimed, Quantity)
        and is_sum_of(claimed, [value for _, value in fact_values])
    ):
        return fact_values[0][0]
    return None


def _value(evidence: Evidence, claim: Claim) -> Quantity | None:
    if isinstance(claim.value, Period):
        return period_duration(claim.value, evidence.today.year * 12 + evidence.today.month - 1)
    return claim.value if isinstance(claim.value, Quantity) and claim.kind in QUANTITIES else None


def _amount(claim: Claim) -> float:
    return claim.value.amount if isinstance(claim.value, Quantity) else 0.0


_MEAN = re.compile(r"\b(?:averag\w*|mean|per|last|past|previous|total|season|career)\b", re.IGNORECASE)
_MEAN_BEFORE = re.compile(r"\baverag(?:es?|ing|ed)\b[^.;,]*$", re.IGNORECASE)
_SPAN = re.compile(
    r"[^.;,]*\b(?:(?:over|in|during|across|on)\s+(?:his|her|their|its|the)\s+(?:last|past|previous|final|year|season)|"
    r"per\s+(?:game|match|day|week|month|year|season))\b", re.IGNORECASE)  # fmt: skip
MIN_RELATED = 0.5  # Jaccard: 'two quarters' has nothing to do with '31 first quarter points'
_WINDOW = re.compile(r"\b(?:last|past|next|previous|first|final)\s*$", re.IGNORECASE)


def check_reported(evidence: Evidence, claim: Claim, subject: str, sentence: tuple[int, int]) -> CheckedClaim | None:
    """Return the verdict on a number stated of `subject`; None if it states nothing: 'their last five games'."""
    claimed = claim.value
    if not isinstance(claimed, Quantity):
        return None
    before, after = evidence.text[sentence[0] : claim.start], evidence.text[claim.end : sentence[1]]
    subject, related = _find_subject(evidence, claim, subject)
    comparable = _comparable(evidence, claim, subject)
    names = evidence.subjects.around(*sentence)
    if claimed.pair and before.endswith("("):
        related = related or [
            fact for fact in comparable if not fields.fact_nouns(fact)
        ]  # '(31-12)' is a pair without a noun
    aggregated = is_aggregate(before, after)
    if aggregated:
        related = [fact for fact in related if _MEAN.search(fact.piece)]
        comparable = related
    noun_optional = claimed.pair or not claimed.nouns  # a score in running text rarely has a noun
    if fact := _equal(claimed, related or (comparable if noun_optional else [])):
        return supported(claim, fact.field)
    if claimed.unit == RANK:
        return _check_rank(evidence, claim, subject, related)
    if not aggregated and (fact := _implied(claim, evidence.fields.facts, names, before, after)):
        return supported(claim, fact.field)
    is_small = claim.text.replace(" ", "").isalpha() and claimed.amount <= SMALL_NUMBER
    if related and not (is_small and fields.jaccard(claimed.nouns, fields.fact_nouns(related[0])) < MIN_RELATED):
        return contradicted(claim, related[0])
    if is_small or is_group(claim.text) or _WINDOW.search(before):
        return None
    return unsupported(claim, f"{subject} states no such {claim.kind}")


def is_aggregate(before: str, after: str) -> bool:
    """Return whether a number is a mean or a sum over time: 'averaging 13', '37 over his last two games'.

    Only a piece of a field that is such an aggregate can support it.
    """
    return bool(_MEAN_BEFORE.search(before) or _SPAN.match(after))


def _check_rank(evidence: Evidence, claim: Claim, subject: str, related: Sequence[Fact]) -> CheckedClaim | None:
    """Return the verdict on a rank without an equal fact. 'his second steal' is one only if the field counts steals."""
    if related:
        return contradicted(claim, related[0])
    nouns = claim.value.nouns if isinstance(claim.value, Quantity) else frozenset()
    values = [fact.claim.value for fact in evidence.fields.facts if fact.field == subject]
    counted = any(isinstance(value, Quantity) and value.nouns == nouns for value in values)
    return unsupported(claim, f"{subject} states no such rank") if counted else None


def _comparable(evidence: Evidence, claim: Claim, subject: str) -> list[Fact]:
    """Return the subject's facts of the claim's kind that, like the claim, are ranks or not and pairs or not."""
    same_kind = [fact for fact in evidence.by_field.get(subject, ()) if fact.claim.kind == claim.kind]
    return [fact for fact in same_kind if _rank_and_pair(fact.claim) == _rank_and_pair(claim)]


def _rank_and_pair(claim: Claim) -> tuple[bool, bool]:
    value = claim.value
    return (value.unit == RANK, value.pair) if isinstance(value, Quantity) else (False, False)


def _find_subject(evidence: Evidence, claim: Claim, subject: str) -> tuple[str, list[Fact]]:
    """Return the subject, or one named earlier in the sentence, whose facts count the claim's nouns, with those."""
    for name in (subject, *evidence.subjects.earlier(evidence.text, claim.start)):
        if related := closest_facts(claim, _comparable(evidence, claim, name)):
            return name, related
    return subject, []


def closest_facts(claim: Claim, facts: Sequence[Fact]) -> list[Fact]:
    """Return the facts that count the same as the claim with the fewest other words."""
    nouns = claim.value.nouns if isinstance(claim.value, Quantity) else frozenset()
    scored = [
        (fields.jaccard(nouns, fact.claim.value.nouns), fact)
        for fact in facts
        if isinstance(fact.claim.value, Quantity)
    ]
    best = max((score for score, _ in scored), default=0.0)
    return [fact for score, fact in scored if best and score == best]


def _equal(claimed: Quantity, facts: Sequence[Fact]) -> Fact | None:
    fact_values = ((fact, fact.claim.value) for fact in facts)
    return next(
        (fact for fact, value in fact_values if isinstance(value, Quantity) and quantities_agree(claimed, value)), None
    )


def _implied(claim: Claim, facts: Sequence[Fact], names: Sequence[str], before: str, after: str) -> Fact | None:
    """Return a fact that supports the claim together with another one: as a score, a margin or a sum."""
    if isinstance(claim.value, Quantity) and claim.value.pair:
        return None if before.endswith("(") else fields.score_fact(claim, facts, names)
    if fields.is_difference(before, after):
        return fields.difference_fact(claim, facts, names)
    return fields.sum_fact(claim, facts, names) if fields.is_sum(before) else None
