"""Checks a text against the fields it was written from: every claim with a verdict and a reason."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from tunesmith.claims import agree, stance
from tunesmith.claims.claim import QUANTITIES, Checked, Claim, Degree, Period, Quantity, Side
from tunesmith.claims.extract import extract
from tunesmith.claims.fields import Fact, Known, Source, read
from tunesmith.claims.fold import Words, alike, bare, holds, words
from tunesmith.claims.subject import Subjects

About = Literal["sentence", "writer", "reader", "both"]
FEW = 3  # 'two schools', 'three reasons': so small a number in words is a claim only where a field counts the same noun


def check(
    text: str,
    fields: Mapping[str, str],
    *,
    about: About = "sentence",
    sides: Mapping[str, Side] | None = None,
    skills: Iterable[str] = (),
    subjects: Collection[str] = (),
    today: date | None = None,
) -> list[Checked]:
    """Every claim of a text with the fields' verdict on it, in the text's order.

    `about` says whose facts the text states: 'sentence' judges each statement by its words ('I have', 'your team'),
    'both' lets any field support anything. `sides` maps a field to whose facts it holds; the others are guessed by
    `fields.guess_side`. `skills` are phrases to know beside the built-in list. `subjects` are fields whose names are
    things that the text speaks of (a player, a product): a number behind such a name is looked up in that field only.
    `today` (default: the clock's) is the end of 'since 2019'.
    """
    known = read(fields, sides or {}, frozenset(skills))
    claims = extract(text, known.skills, known.organisations)
    judge = _Judge(text, known, claims, Subjects(text, subjects), stance.stops(text), today or date.today())
    return [checked for claim in claims if (checked := judge.verdict(claim, about))]


@dataclass(frozen=True)
class _Judge:
    text: str
    known: Known
    claims: list[Claim]
    subjects: Subjects
    stops: tuple[list[int], list[int]]
    today: date

    def verdict(self, claim: Claim, about: About) -> Checked | None:
        """The verdict on a claim; None where the text does not state it (a denial, a wish, a rhetorical 'two')."""
        start, end = stance.sentence(self.text, claim, self.stops)
        before, after = self.text[start : claim.start], self.text[claim.end : end]
        if not stance.states(before, after):
            return None
        side = stance.about(claim, before, after) if about == "sentence" else about
        if claim.kind == "skill":
            return self._skill(claim, side)
        if claim.kind == "name":
            return self._name(claim)
        if claim.kind == "title":
            return self._title(claim, side, start, end)
        if claim.kind in {"employer", "organisation"}:
            return self._employer(claim, side, start, end)
        if isinstance(claim.value, Degree):
            return self._degree(claim, claim.value, side)
        if isinstance(claim.value, Period):
            return self._date(claim, claim.value, side, start, end)
        return self._quantity(claim, side, start, end)

    # --- what may speak for a claim ------------------------------------------------------------------------

    def _sources(self, side: Side) -> list[Source]:
        return [each for each in self.known.sources if _may(each.side, side)]

    def _facts(self, side: Side, *kinds: str) -> list[Fact]:
        return [each for each in self.known.facts if each.claim.kind in kinds and _may(each.side, side)]

    def _near(self, claim: Claim, start: int, end: int, *kinds: str) -> list[Claim]:
        """Claims of the kinds that go with this one: behind it up to a comma or 'and', else before it.

        'two years as a Cook at X and three years as a Chef at Y': each duration has its own employer.
        """
        there = [each for each in self.claims if start <= each.start and each.end <= end and each is not claim]
        same = [each for each in there if each.kind == claim.kind]
        until = min([each.start for each in same if each.start >= claim.end], default=end)
        for mark in (",", " and ", " but "):
            cut = self.text.find(mark, claim.end, until)
            until = cut if cut >= 0 else until
        found = [each for each in there if each.kind in kinds and claim.end <= each.start < until]
        since = max([each.end for each in same if each.end <= claim.start], default=start)
        return found or [each for each in there if each.kind in kinds and since <= each.start < claim.start]

    def _anchored(self, facts: list[Fact], claim: Claim, start: int, end: int) -> list[Fact]:
        """The facts whose piece names the employer, else the title, else the skill that goes with the claim."""
        for kind in ("employer", "title", "skill"):
            for near in self._near(claim, start, end, kind):
                some = [each for each in facts if holds(bare(words(each.piece)), bare(_words(near)))]
                if some:
                    return some
        return []

    # --- the kinds -----------------------------------------------------------------------------------------

    def _skill(self, claim: Claim, side: Side) -> Checked:
        wanted = _words(claim)
        for source in self._sources("both" if side == "reader" else side):
            if holds(source.words, wanted):
                return _supported(claim, source.name)
        return self._elsewhere(claim, wanted, side) or _unknown(claim, f"no field names {claim.text}")

    def _name(self, claim: Claim) -> Checked:
        wanted = set(_words(claim))
        facts = self._facts("both", "name")
        for fact in facts:
            have = set(_words(fact.claim))
            if wanted <= have or have <= wanted:
                return _supported(claim, fact.field)
        for source in self.known.sources:
            if holds(source.words, _words(claim)):
                return _supported(claim, source.name)
        signed = next((fact for fact in facts if fact.side != "reader"), None)
        if signed and claim.start > len(self.text) // 2:
            return _against(claim, signed)
        return _unknown(claim, "no field gives this name")

    def _title(self, claim: Claim, side: Side, start: int, end: int) -> Checked:
        wanted = _words(claim)
        for source in self._sources(side):
            if holds(source.words, wanted):
                return _supported(claim, source.name)
        for fact in self._facts(side, "title"):
            if set(wanted) <= set(_words(fact.claim)) or alike(wanted, _words(fact.claim)):
                return _supported(claim, fact.field)
        facts = self._facts(side, "title")
        if side == "reader":
            own = [fact for fact in facts if fact.side == "reader" and fact.claim.text == fact.piece]
            return _against(claim, own[0]) if own else _unknown(claim, "the advert's fields do not name this title")
        if anchored := self._anchored(facts, claim, start, end):
            return _against(claim, anchored[0])
        return self._elsewhere(claim, wanted, side) or _unknown(claim, "no field names this title")

    def _employer(self, claim: Claim, side: Side, start: int, end: int) -> Checked:
        wanted = bare(_words(claim))
        for source in self._sources(side):
            if holds(bare(source.words), wanted):
                return _supported(claim, source.name)
        facts = self._facts(side, "employer", "organisation")
        for fact in facts:
            if alike(wanted, bare(_words(fact.claim))):
                return _supported(claim, fact.field)
        if side == "reader":
            own = [fact for fact in facts if fact.side == "reader" and fact.claim.text == fact.piece]
            return _against(claim, own[0]) if own else _unknown(claim, "the advert's fields do not name this employer")
        for near in self._near(claim, start, end, "title"):
            if same := [each for each in facts if holds(words(each.piece), _words(near))]:
                return _against(claim, same[0])
        return self._elsewhere(claim, wanted, side) or _unknown(claim, "no field names this organisation")

    def _degree(self, claim: Claim, said: Degree, side: Side) -> Checked:
        facts = [each for each in self._facts(side, "degree") if isinstance(each.claim.value, Degree)]
        for fact in facts:
            if isinstance(fact.claim.value, Degree) and agree.degree(said, fact.claim.value):
                return _supported(claim, fact.field)
        for source in self._sources(side):
            if holds(source.words, words(claim.text)):
                return _supported(claim, source.name)
        if facts:
            return _against(claim, facts[0])
        for fact in self._facts("both", "degree"):
            if isinstance(fact.claim.value, Degree) and agree.degree(said, fact.claim.value):
                return _demand(claim, fact.field)
        return _unknown(claim, "no field states this degree")

    def _date(self, claim: Claim, said: Period, side: Side, start: int, end: int) -> Checked:
        facts = self._facts(side, "date")
        anchored = self._anchored(facts, claim, start, end)
        for fact in anchored or facts:
            if isinstance(fact.claim.value, Period) and agree.period(said, fact.claim.value):
                return _supported(claim, fact.field)
        return _against(claim, anchored[0]) if anchored else _unknown(claim, "no field states this date")

    def _quantity(self, claim: Claim, side: Side, start: int, end: int) -> Checked | None:
        subject = self.subjects.before(claim.start)
        facts = self._facts("both", *self._comparable(claim))
        if subject:
            facts = [each for each in facts if each.field == subject]
        mine = facts if subject else [each for each in facts if _may(each.side, side)]
        close = self._anchored(mine, claim, start, end) if claim.kind == "duration" else []
        close = close or [each for each in mine if agree.related(claim, each.claim)]
        if fact := self._equal(claim, close or mine, one=bool(subject)):
            return _supported(claim, fact.field)
        named = re.match(r"\s*(?:as|at|with)\b", self.text[claim.end :])
        if close and not named and (fact := self._sum(claim, mine)):
            return _supported(claim, fact.field)  # 'in ten years I was a Cook at X for two': ten is all jobs together
        if close:
            return _against(claim, close[0])
        if not subject and claim.kind == "number" and claim.text.isalpha() and _amount(claim) <= FEW:
            return None
        theirs = [each for each in facts if each not in mine]
        if claim.kind == "number":
            theirs = [each for each in theirs if agree.related(claim, each.claim)]
        other = self._equal(claim, theirs)
        if other and side == "writer":
            return _demand(claim, other.field)
        return _unknown(claim, f"{subject or 'no field'} states {'no such' if subject else 'this'} {claim.kind}")

    def _comparable(self, claim: Claim) -> tuple[str, ...]:
        if claim.kind == "duration":
            return ("duration", "date")
        elliptic = isinstance(claim.value, Quantity) and not claim.value.nouns  # 'two years here and eight there'
        return ("number", "duration") if claim.kind == "number" and elliptic else (claim.kind,)

    def _equal(self, claim: Claim, facts: list[Fact], one: bool = False) -> Fact | None:
        """The first fact that bears out a quantity, or the first of several that add up to it."""
        said = claim.value
        if not isinstance(said, Quantity):
            return None
        if claim.kind == "number" and any(each.claim.kind == "duration" for each in facts):
            yearly = Quantity(said.amount * 12, said.upper * 12, said.bound)
        else:
            yearly = said
        held = [(each, value) for each in facts if (value := self._value(each.claim))]
        for fact, value in held:
            if agree.quantity(yearly if fact.claim.kind == "duration" else said, value):
                return fact
        return None if one else self._sum(claim, facts)

    def _sum(self, claim: Claim, facts: list[Fact]) -> Fact | None:
        """The first of several jobs whose durations add up to the claim's; years of two skills do not."""
        jobs = {(each.field, each.piece) for each in self.known.facts if each.claim.kind in {"employer", "title"}}
        some = [each for each in facts if each.side != "reader" and (each.field, each.piece) in jobs]
        own = [(each, value) for each in some if (value := self._value(each.claim))]
        said = claim.value
        if claim.kind == "duration" and isinstance(said, Quantity) and agree.total(said, [value for _, value in own]):
            return own[0][0]
        return None

    def _value(self, known: Claim) -> Quantity | None:
        if isinstance(known.value, Period):
            return agree.lasted(known.value, self.today.year * 12 + self.today.month - 1)
        return known.value if isinstance(known.value, Quantity) and known.kind in QUANTITIES else None

    def _elsewhere(self, claim: Claim, wanted: Words, side: Side) -> Checked | None:
        """The verdict on what only the other side's fields say."""
        for source in self.known.sources:
            if side == "writer" and source.side == "reader" and holds(bare(source.words), bare(wanted)):
                return _demand(claim, source.name)
        return None


def _may(field: Side, side: Side) -> bool:
    return "both" in {field, side} or field == side


def _words(claim: Claim) -> Words:
    return claim.value if isinstance(claim.value, tuple) else words(claim.text)


def _amount(claim: Claim) -> float:
    return claim.value.amount if isinstance(claim.value, Quantity) else 0.0


def _supported(claim: Claim, field: str) -> Checked:
    return Checked(claim, "supported", field, f"{field} states it")


def _against(claim: Claim, fact: Fact) -> Checked:
    return Checked(claim, "contradicted", fact.field, f"{fact.field} says {fact.claim.text!r}")


def _demand(claim: Claim, field: str) -> Checked:
    return Checked(claim, "unsupported", field, f"only {field} names it: the advert's demand, not the applicant's fact")


def _unknown(claim: Claim, reason: str) -> Checked:
    return Checked(claim, "unsupported", None, reason)
