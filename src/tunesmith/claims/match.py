"""Checks a text against the fields it was written from: every claim with a verdict and a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from tunesmith.claims import agree, stance
from tunesmith.claims import sides as whose
from tunesmith.claims.abilities import content, stem
from tunesmith.claims.attribution import reattributed
from tunesmith.claims.claim import Checked, Claim, Degree, Period, Quantity, Side
from tunesmith.claims.evidence import Evidence, against, demand, supported, unknown, worded
from tunesmith.claims.extract import FIRST_PERSON, extract
from tunesmith.claims.fields import Known, read
from tunesmith.claims.fold import alike, bare, holds, words
from tunesmith.claims.idle import acts
from tunesmith.claims.measured import quantity
from tunesmith.claims.phrases import Phrases, Report
from tunesmith.claims.relations import members, misplaced
from tunesmith.claims.reported import reported
from tunesmith.claims.skills import vocabulary
from tunesmith.claims.subject import Names, Subjects

About = Literal["sentence", "writer", "reader", "both"]


def check(
    text: str,
    fields: Mapping[str, str],
    *,
    about: About = "sentence",
    sides: Mapping[str, Side] | None = None,
    skills: Iterable[str] = (),
    subjects: Collection[str] = (),
    synonyms: Mapping[str, str] | None = None,
    proper: bool = False,
    today: date | None = None,
) -> list[Checked]:
    """Every claim of a text with the fields' verdict on it, in the text's order.

    `about` says whose facts the text states: 'sentence' judges each statement by its words ('I have', 'your team'),
    'both' lets any field support anything. `sides` maps a field to whose facts it holds; the others are guessed by
    `fields.guess_side`. `skills` are phrases to know beside the built-in list. `subjects` are fields whose names are
    things that the text speaks of (a player, a product): a number behind such a name is looked up in that field only.
    With subjects '31-12' is a score, 'a steal' is one where a field counts steals, and figures that the fields imply
    (a margin, a sum) count as stated. `synonyms` are phrases of the text and what they mean in the fields ('boards':
    'rebounds', 'from the field': 'field goals', a nickname: its subject). With `proper` every capitalised name of the
    text is a claim, and the name is wrong where the numbers said of it are all another subject's.
    `today` (default: the clock's) is the end of 'since 2019'.
    """
    nouns = {phrase: meaning for phrase, meaning in (synonyms or {}).items() if meaning not in subjects}
    report = Report(Phrases.of(nouns), scores=bool(subjects)) if subjects or nouns or proper else None
    known = read(fields, sides or {}, frozenset(skills), report)
    if report:
        report = replace(report, nouns=_counted(known) if subjects else frozenset(), names=proper)
    claims = extract(text, known.skills, known.organisations, report)
    things = Names(subjects, synonyms)
    strange = [each for each in claims if each.kind == "name" and not things.called(worded(each))] if subjects else []
    found = Subjects(text, things, strange)
    letter = report is None and bool(FIRST_PERSON.search(text))
    given = Evidence(text, known, claims, found, today or date.today(), letter)
    wrong = {one.start: why for one, why in misplaced(text, found, members(known, subjects))}
    judge = _Judge(given, stance.stops(text), wrong)
    checked = [each for claim in claims if (each := judge.verdict(claim, about))]
    if not subjects:
        return checked
    return reattributed(checked, text, found, tuple(subjects), judge.number)


def _counted(known: Known) -> frozenset[str]:
    """The nouns that fields count by themselves: 'steal', no 'field' of 'field goals'."""
    values = [fact.claim.value for fact in known.facts]
    return frozenset(
        next(iter(v.nouns)) for v in values if isinstance(v, Quantity) and len(v.nouns) == 1 and not v.unit
    )


@dataclass(frozen=True)
class _Judge:
    given: Evidence
    stops: tuple[list[int], list[int]]
    misplaced: Mapping[int, str]

    def verdict(self, claim: Claim, about: About) -> Checked | None:
        """The verdict on a claim; None where the text does not state it (a denial, a wish, a rhetorical 'two')."""
        start, end = stance.sentence(self.given.text, claim, self.stops)
        before, after = self.given.text[start : claim.start], self.given.text[claim.end : end]
        report = bool(self.given.subjects.mentions)
        if not stance.states(before, after, report) or (self.given.letter and stance.supposed(before)):
            return None
        side: Side = about if about != "sentence" else whose.about(claim, before, after, self._following(end))
        if self.given.letter and not self._spoken(claim, side, end):
            return None
        if claim.kind == "skill":
            return self._skill(claim, side)
        if claim.kind == "name":
            return self._name(claim)
        if claim.kind == "title":
            return self._title(claim, side, start, end)
        if claim.kind in {"employer", "organisation"}:
            return self._employer(claim, side, start, end)
        if side == "writer" and (demanded := self._wished(claim, end)):
            return demanded
        if isinstance(claim.value, Degree):
            return self._degree(claim, claim.value, side)
        if isinstance(claim.value, Period):
            return self._date(claim, claim.value, side, start, end)
        if report and (subject := self.given.subjects.of(self.given.text, claim.start)):
            return self.number(claim, subject.name) if subject.name else None
        return quantity(self.given, claim, side, start, end)

    def number(self, claim: Claim, subject: str) -> Checked | None:
        """The verdict on a number said of a subject."""
        return reported(self.given, claim, subject, stance.sentence(self.given.text, claim, self.stops))

    def _following(self, end: int) -> str:
        return stance.following(self.given.text, end, self.stops)

    def _spoken(self, claim: Claim, side: Side, end: int) -> bool:
        """Whether the fields say anything of a claim's kind for its side; where the side is open, for the reader's."""
        known = self.given.known
        if claim.kind == "name":
            greets = self.given.text[:end].count("\n") == 0
            return known.speaks("reader" if greets else "writer", "name")
        if claim.kind not in {"title", "employer", "organisation"} or not known.sources:
            return True
        kinds = ("title",) if claim.kind == "title" else ("employer", "organisation")
        if known.speaks("writer" if side == "writer" else "reader", *kinds):
            return True
        return side == "both" and any(holds(bare(each.words), bare(worded(claim))) for each in known.sources)

    def _wished(self, claim: Claim, end: int) -> Checked | None:
        """The verdict on an amount in the very words of the advert's wish: '8 years with electric cars'."""
        said = words(self.given.text[claim.start : min(end, claim.end + 60)])
        for source, wish in self.given.known.wishes:
            if len(wish) > 2 and said[: len(wish)] == wish and not content(wish[2:]) <= self.given.own:
                return demand(claim, source)
        return None

    # --- the kinds -----------------------------------------------------------------------------------------

    def _skill(self, claim: Claim, side: Side) -> Checked | None:
        wanted = worded(claim)
        for source in self.given.sources("both" if side == "reader" else side):
            if holds(source.words, wanted):
                return supported(claim, source.name)
        if not self.given.letter:
            return self.given.elsewhere(claim, wanted, side) or unknown(claim, f"no field names {claim.text}")
        own = content(wanted) & self.given.own
        if side != "reader" and own == content(wanted):
            return supported(claim, self.given.naming(own))
        if demanded := self.given.elsewhere(claim, wanted, side):
            return demanded
        listed = vocabulary(self.given.known.skills).has(wanted)
        unsure = (
            bool(content(wanted) & self.given.skilled) if not listed else acts(self.given.text, claim.start, claim.end)
        )
        if unsure or (side == "reader" and not (listed and self.given.known.speaks("reader", "skill"))):
            return None
        return unknown(claim, f"no field names {claim.text}")

    def _name(self, claim: Claim) -> Checked:
        if claim.start in self.misplaced:
            return Checked(claim, "contradicted", None, self.misplaced[claim.start])
        wanted = set(worded(claim))
        facts = self.given.facts("both", "name")
        for fact in facts:
            have = set(worded(fact.claim))
            if wanted <= have or have <= wanted:
                return supported(claim, fact.field)
        for source in self.given.known.sources:
            if holds(source.words, worded(claim)):
                return supported(claim, source.name)
        if named := self.given.subjects.names.called(worded(claim)):
            return supported(claim, named)
        signed = next((fact for fact in facts if fact.side != "reader"), None)
        if signed and claim.start > len(self.given.text) // 2:
            return against(claim, signed)
        return unknown(claim, "no field gives this name")

    def _title(self, claim: Claim, side: Side, start: int, end: int) -> Checked:
        wanted = worded(claim)
        for source in self.given.sources(side):
            if holds(source.words, wanted):
                return supported(claim, source.name)
        for fact in self.given.facts(side, "title"):
            if set(wanted) <= set(worded(fact.claim)) or alike(wanted, worded(fact.claim)):
                return supported(claim, fact.field)
        if len(wanted) == 1 and claim.text.islower() and stem(wanted[0]) in self.given.own:
            return supported(claim, self.given.naming(frozenset({stem(wanted[0])})))  # 'stewarded 60 concerts'
        facts = self.given.facts(side, "title")
        if side == "reader":
            own = [fact for fact in facts if fact.side == "reader" and fact.claim.text == fact.piece]
            return against(claim, own[0]) if own else unknown(claim, "the advert's fields do not name this title")
        if anchored := self.given.anchored(facts, claim, start, end):
            return against(claim, anchored[0])
        return self.given.elsewhere(claim, wanted, side) or unknown(claim, "no field names this title")

    def _employer(self, claim: Claim, side: Side, start: int, end: int) -> Checked:
        wanted = bare(worded(claim))
        for source in self.given.sources(side):
            if holds(bare(source.words), wanted):
                return supported(claim, source.name)
        facts = self.given.facts(side, "employer", "organisation")
        for fact in facts:
            if alike(wanted, bare(worded(fact.claim))):
                return supported(claim, fact.field)
        if side == "reader":
            own = [fact for fact in facts if fact.side == "reader" and fact.claim.text == fact.piece]
            return against(claim, own[0]) if own else unknown(claim, "the advert's fields do not name this employer")
        for near in self.given.near(claim, start, end, "title"):
            if same := [each for each in facts if holds(words(each.piece), worded(near))]:
                return against(claim, same[0])
        return self.given.elsewhere(claim, wanted, side) or unknown(claim, "no field names this organisation")

    def _degree(self, claim: Claim, said: Degree, side: Side) -> Checked:
        facts = [each for each in self.given.facts(side, "degree") if isinstance(each.claim.value, Degree)]
        for fact in facts:
            if isinstance(fact.claim.value, Degree) and agree.degree(said, fact.claim.value):
                return supported(claim, fact.field)
        for source in self.given.sources(side):
            if holds(source.words, words(claim.text)):
                return supported(claim, source.name)
        if facts:
            return against(claim, facts[0])
        for fact in self.given.facts("both", "degree"):
            if isinstance(fact.claim.value, Degree) and agree.degree(said, fact.claim.value):
                return demand(claim, fact.field)
        return unknown(claim, "no field states this degree")

    def _date(self, claim: Claim, said: Period, side: Side, start: int, end: int) -> Checked:
        facts = self.given.facts(side, "date")
        anchored = self.given.anchored(facts, claim, start, end)
        for fact in anchored or facts:
            if isinstance(fact.claim.value, Period) and agree.period(said, fact.claim.value):
                return supported(claim, fact.field)
        return against(claim, anchored[0]) if anchored else unknown(claim, "no field states this date")
