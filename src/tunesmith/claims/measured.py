"""Verdicts on amounts: numbers, durations, money and percentages."""

from __future__ import annotations

import re

from tunesmith.claims import agree
from tunesmith.claims.claim import QUANTITIES, Checked, Claim, Period, Quantity, Side
from tunesmith.claims.evidence import Evidence, against, demand, may, supported, unknown
from tunesmith.claims.fields import Fact
from tunesmith.claims.idle import remark
from tunesmith.claims.numbers import is_group

FEW = 3  # 'two schools', 'three reasons': so small a number in words is a claim only where a field counts the same noun


def quantity(given: Evidence, claim: Claim, side: Side, start: int, end: int) -> Checked | None:
    """The verdict on an amount of a letter; None for a rhetorical 'two'."""
    facts = given.facts("both", *_comparable(claim))
    mine = [each for each in facts if may(each.side, side)]
    close = given.anchored(mine, claim, start, end) if claim.kind == "duration" else []
    close = close or [each for each in mine if agree.related(claim, each.claim)]
    if not close and is_group(claim.text):
        return None
    if fact := _equal(given, claim, close or mine):
        return supported(claim, fact.field)
    named = re.match(r"\s*(?:as|at|with)\b", given.text[claim.end :])
    if close and not named and (fact := _sum(given, claim, mine)):
        return supported(claim, fact.field)  # 'in ten years I was a Cook at X for two': ten is all jobs together
    if close:
        return against(claim, close[0])
    if claim.kind == "number" and claim.text.replace(" ", "").isalpha() and _amount(claim) <= FEW:
        return None
    if side == "reader" and not mine:
        return None  # 'your 40 branches': no field counts anything of the reader's
    if given.letter and not close and remark(given.text, claim.start):
        return None
    theirs = [each for each in facts if each not in mine]
    if claim.kind == "number":
        theirs = [each for each in theirs if agree.related(claim, each.claim)]
    other = _equal(given, claim, theirs)
    if other and side == "writer":
        return demand(claim, other.field)
    return unknown(claim, f"no field states this {claim.kind}")


def _comparable(claim: Claim) -> tuple[str, ...]:
    if claim.kind == "duration":
        return ("duration", "date")
    elliptic = isinstance(claim.value, Quantity) and not claim.value.nouns  # 'two years here and eight there'
    return ("number", "duration") if claim.kind == "number" and elliptic else (claim.kind,)


def _equal(given: Evidence, claim: Claim, facts: list[Fact]) -> Fact | None:
    """The first fact that bears out a quantity, or the first of several that add up to it."""
    said = claim.value
    if not isinstance(said, Quantity):
        return None
    if claim.kind == "number" and any(each.claim.kind == "duration" for each in facts):
        yearly = Quantity(said.amount * 12, said.upper * 12, said.bound)
    else:
        yearly = said
    held = [(each, value) for each in facts if (value := _value(given, each.claim))]
    for fact, value in held:
        if agree.quantity(yearly if fact.claim.kind == "duration" else said, value):
            return fact
    return _sum(given, claim, facts)


def _sum(given: Evidence, claim: Claim, facts: list[Fact]) -> Fact | None:
    """The first of several jobs whose durations add up to the claim's; years of two skills do not."""
    jobs = {(each.field, each.piece) for each in given.known.facts if each.claim.kind in {"employer", "title"}}
    some = [each for each in facts if each.side != "reader" and (each.field, each.piece) in jobs]
    own = [(each, value) for each in some if (value := _value(given, each.claim))]
    said = claim.value
    if claim.kind == "duration" and isinstance(said, Quantity) and agree.total(said, [value for _, value in own]):
        return own[0][0]
    return None


def _value(given: Evidence, known: Claim) -> Quantity | None:
    if isinstance(known.value, Period):
        return agree.lasted(known.value, given.today.year * 12 + given.today.month - 1)
    return known.value if isinstance(known.value, Quantity) and known.kind in QUANTITIES else None


def _amount(claim: Claim) -> float:
    return claim.value.amount if isinstance(claim.value, Quantity) else 0.0
