"""What may speak for a claim: the sources and facts of its side, and those that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from tunesmith.claims.abilities import stem
from tunesmith.claims.claim import Checked, Claim, Side
from tunesmith.claims.fields import SKILLS, Fact, Known, Source
from tunesmith.claims.fold import Words, bare, holds, words
from tunesmith.claims.subject import Subjects


@dataclass(frozen=True)
class Evidence:
    """A text with its claims, and its fields as facts. `today` ends 'since 2019'.

    In a `letter` somebody speaks of himself.
    """

    text: str
    known: Known
    claims: list[Claim]
    subjects: Subjects
    today: date
    letter: bool = False

    @cached_property
    def own(self) -> frozenset[str]:
        """The stems of all that the writer's fields say."""
        return frozenset(stem(word) for each in self.sources("writer") for word in each.words)

    @cached_property
    def skilled(self) -> frozenset[str]:
        """The stems of the writer's lists of skills; of all that his fields say where none is a list of skills."""
        lists = [each for each in self.sources("writer") if SKILLS.search(each.name)]
        return frozenset(stem(word) for each in lists for word in each.words) if lists else self.own

    @cached_property
    def by_field(self) -> Mapping[str, Sequence[Fact]]:
        """The facts of each field."""
        table: dict[str, list[Fact]] = {}
        for each in self.known.facts:
            table.setdefault(each.field, []).append(each)
        return table

    def sources(self, side: Side) -> list[Source]:
        """The fields that may speak for a side."""
        return [each for each in self.known.sources if may(each.side, side)]

    def facts(self, side: Side, *kinds: str) -> list[Fact]:
        """Their facts of these kinds."""
        return [each for each in self.known.facts if each.claim.kind in kinds and may(each.side, side)]

    def naming(self, stems: frozenset[str]) -> str:
        """The writer's field that has most of these stems."""
        return max(self.sources("writer"), key=lambda each: len(stems & {stem(word) for word in each.words})).name

    def near(self, claim: Claim, start: int, end: int, *kinds: str) -> list[Claim]:
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

    def anchored(self, facts: list[Fact], claim: Claim, start: int, end: int) -> list[Fact]:
        """The facts whose piece names the employer, else the title, else the skill that goes with the claim."""
        for kind in ("employer", "title", "skill"):
            for near in self.near(claim, start, end, kind):
                some = [each for each in facts if holds(bare(words(each.piece)), bare(worded(near)))]
                if some:
                    return some
        return []

    def elsewhere(self, claim: Claim, wanted: Words, side: Side) -> Checked | None:
        """The verdict on what only the other side's fields say."""
        for source in self.known.sources:
            if side == "writer" and source.side == "reader" and holds(bare(source.words), bare(wanted)):
                return demand(claim, source.name)
        return None


def may(field: Side, side: Side) -> bool:
    """Whether a field of one side may speak for a statement of the other."""
    return "both" in {field, side} or field == side


def worded(claim: Claim) -> Words:
    """A claim's folded words."""
    return claim.value if isinstance(claim.value, tuple) else words(claim.text)


def supported(claim: Claim, field: str) -> Checked:
    """The verdict on what a field states."""
    return Checked(claim, "supported", field, f"{field} states it")


def against(claim: Claim, fact: Fact) -> Checked:
    """The verdict on what a field states otherwise."""
    return Checked(claim, "contradicted", fact.field, f"{fact.field} says {fact.claim.text!r}")


def demand(claim: Claim, field: str) -> Checked:
    """The verdict on what only the other side's field states."""
    return Checked(claim, "unsupported", field, f"only {field} names it: the advert's demand, not the applicant's fact")


def unknown(claim: Claim, reason: str) -> Checked:
    """The verdict on what no field states."""
    return Checked(claim, "unsupported", None, reason)
