"""Decides verdicts on amounts in letters: numbers, durations, money and percentages."""

from __future__ import annotations

import re

from tunesmith.claims.agree import counts_same_noun, is_sum_of, period_duration, quantities_agree
from tunesmith.claims.claim import QUANTITIES, CheckedClaim, Claim, Period, Quantity, Side
from tunesmith.claims.evidence import Evidence, applies_to, contradicted, only_demanded, supported, unsupported
from tunesmith.claims.fields import Fact
from tunesmith.claims.idle import is_general_remark
from tunesmith.claims.numbers import is_group

SMALL_NUMBER = 3  # 'two schools', 'three reasons': a claim only if a field counts the same noun


def check_quantity(evidence: Evidence, claim: Claim, side: Side, start: int, end: int) -> CheckedClaim | None:
    """Return the verdict on an amount in a letter; None if it states nothing, like a rhetorical 'two'."""
    facts = evidence.facts("both", *_comparable(claim))
    own_facts = [fact for fact in facts if applies_to(fact.side, side)]
    related_facts = evidence.facts_nearby(own_facts, claim, start, end) if claim.kind == "duration" else []
    related_facts = related_facts or [fact for fact in own_facts if counts_same_noun(claim, fact.claim)]
    if not related_facts and is_group(claim.text):
        return None
    if fact := _equal(evidence, claim, related_facts or own_facts):
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
    demanded = _equal(evidence, claim, other_facts)
    if demanded and side == "writer":
        return only_demanded(claim, demanded.field)
    return unsupported(claim, f"no field states this {claim.kind}")


def _comparable(claim: Claim) -> tuple[str, ...]:
    if claim.kind == "duration":
        return ("duration", "date")
    elliptic = isinstance(claim.value, Quantity) and not claim.value.nouns  # 'two years here and eight there'
    return ("number", "duration") if claim.kind == "number" and elliptic else (claim.kind,)


def _equal(evidence: Evidence, claim: Claim, facts: list[Fact]) -> Fact | None:
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
