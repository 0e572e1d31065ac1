"""The evidence for a claim: fields and facts of its side, the claims next to it, and misplaced claims."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise

from tunesmith.claims.abilities import stem
from tunesmith.claims.claim import CheckedClaim, Claim, Side
from tunesmith.claims.fields import SKILL_FIELD, Fact, ParsedFields, SourceField
from tunesmith.claims.subject import Mention, Subjects
from tunesmith.claims.words import Words, contains_phrase, core_words, words


@dataclass(frozen=True)
class Evidence:
    """A text with its claims, and its fields as facts.

    `today` ends 'since 2019'. A `letter` is written in the first person.
    """

    text: str
    fields: ParsedFields
    claims: list[Claim]
    subjects: Subjects
    today: date
    letter: bool = False

    @cached_property
    def writer_stems(self) -> frozenset[str]:
        """Stems of all words in the writer's fields."""
        return frozenset(stem(word) for source in self.sources("writer") for word in source.words)

    @cached_property
    def skill_stems(self) -> frozenset[str]:
        """Stems of the words in the writer's skill lists, or in all the writer's fields if there is no list."""
        lists = [source for source in self.sources("writer") if SKILL_FIELD.search(source.name)]
        return frozenset(stem(word) for source in lists for word in source.words) if lists else self.writer_stems

    @cached_property
    def by_field(self) -> Mapping[str, Sequence[Fact]]:
        """Facts by field."""
        table: dict[str, list[Fact]] = {}
        for fact in self.fields.facts:
            table.setdefault(fact.field, []).append(fact)
        return table

    def sources(self, side: Side) -> list[SourceField]:
        """Return the fields that apply to a side."""
        return [source for source in self.fields.sources if applies_to(source.side, side)]

    def facts(self, side: Side, *kinds: str) -> list[Fact]:
        """Return the facts of these kinds that apply to a side."""
        return [fact for fact in self.fields.facts if fact.claim.kind in kinds and applies_to(fact.side, side)]

    def best_field(self, stems: frozenset[str]) -> str:
        """Return the writer's field that has most of these stems."""
        return max(self.sources("writer"), key=lambda source: len(stems & {stem(word) for word in source.words})).name

    def neighbors(self, claim: Claim, start: int, end: int, *kinds: str) -> list[Claim]:
        """Return claims of the kinds that belong to this one: after it up to a comma or 'and', else before it.

        'two years as a Cook at X and three years as a Chef at Y': each duration has its own employer.
        """
        in_span = [
            other_claim
            for other_claim in self.claims
            if start <= other_claim.start and other_claim.end <= end and other_claim is not claim
        ]
        same_kind = [other_claim for other_claim in in_span if other_claim.kind == claim.kind]
        until = min([other_claim.start for other_claim in same_kind if other_claim.start >= claim.end], default=end)
        for mark in (",", " and ", " but "):
            cut = self.text.find(mark, claim.end, until)
            until = cut if cut >= 0 else until
        following = [
            other_claim
            for other_claim in in_span
            if other_claim.kind in kinds and claim.end <= other_claim.start < until
        ]
        since = max([other_claim.end for other_claim in same_kind if other_claim.end <= claim.start], default=start)
        return following or [
            other_claim
            for other_claim in in_span
            if other_claim.kind in kinds and since <= other_claim.start < claim.start
        ]

    def facts_nearby(self, facts: list[Fact], claim: Claim, start: int, end: int) -> list[Fact]:
        """Return the facts whose piece names the employer, else the title, else the skill next to the claim."""
        for kind in ("employer", "title", "skill"):
            for neighbor in self.neighbors(claim, start, end, kind):
                matching = [
                    fact
                    for fact in facts
                    if contains_phrase(core_words(words(fact.piece)), core_words(claim_words(neighbor)))
                ]
                if matching:
                    return matching
        return []

    def demanded_elsewhere(self, claim: Claim, phrase: Words, side: Side) -> CheckedClaim | None:
        """Return a verdict if only the reader's fields name a phrase that the writer claims."""
        for source in self.fields.sources:
            if (
                side == "writer"
                and source.side == "reader"
                and contains_phrase(core_words(source.words), core_words(phrase))
            ):
                return only_demanded(claim, source.name)
        return None


def applies_to(field: Side, side: Side) -> bool:
    """Return whether a field of one side applies to a statement about the other."""
    return "both" in {field, side} or field == side


def claim_words(claim: Claim) -> Words:
    """Return a claim's folded words."""
    return claim.value if isinstance(claim.value, tuple) else words(claim.text)


def supported(claim: Claim, field: str) -> CheckedClaim:
    """Return the verdict for a claim that a field states."""
    return CheckedClaim(claim, "supported", field, f"{field} states it")


def contradicted(claim: Claim, fact: Fact) -> CheckedClaim:
    """Return the verdict for a claim that a fact contradicts."""
    return CheckedClaim(claim, "contradicted", fact.field, f"{fact.field} says {fact.claim.text!r}")


def only_demanded(claim: Claim, field: str) -> CheckedClaim:
    """Return the verdict for a claim that only the reader's field names."""
    return CheckedClaim(
        claim, "unsupported", field, f"only {field} names it: the advert asks for it, no field says it of the applicant"
    )


def unsupported(claim: Claim, reason: str) -> CheckedClaim:
    """Return the verdict for a claim that no field states."""
    return CheckedClaim(claim, "unsupported", None, reason)


_BRACKET = re.compile(r"\([^)]*\)")
_BREAK = re.compile(r"[,;:.]|\b(?:and|or|while|but|as|than|where|when|who|which|if|because|so|though|although)\b")
_PARTICIPLE = re.compile(r"^[^,;]*,\s+(?:as\s+(?:they|he|she|it)\s+\w+|[\w-]+ing)\s+(?:the\s+)?$")  # ', outscoring the'
_PLACE = re.compile(r"\b(?:in|at|near)\s+(?:the\s+)?$")  # 'the Boston Celtics won in Boston'
_LEADS = re.compile(r"^[^,;]{0,60}\b(?:for|led|leads|leading|paced|paces|pacing|carried|headed)\s+(?:the\s+)?$")
_LED = re.compile(r"^[^,;]{0,30}\b(?:led|paced|carried|headed)\s+by\b[^,;]{0,60}$")


def member_groups(parsed: ParsedFields, subjects: Collection[str]) -> dict[str, str]:
    """Return, for each subject whose field names exactly one other subject, that subject: a player's team."""
    groups = {}
    for source in parsed.sources:
        if source.name in subjects:
            others = [name for name in subjects if name != source.name and contains_phrase(source.words, words(name))]
            if len(others) == 1:
                groups[source.name] = others[0]
    return groups


def find_misplaced(text: str, subjects: Subjects, group_of: Mapping[str, str]) -> Iterator[tuple[Mention, str]]:
    """Yield mentions that contradict their sentence, with a reason. `group_of` maps a member to its group."""
    mentions = [mention for mention in subjects.mentions if not mention.pronoun]
    for first, second in pairwise(mentions):
        between = _BRACKET.sub("", text[first.end : second.start])
        if not first.name or not second.name or ". " in between or "\n" in between:
            continue
        if first.name == second.name:
            if (
                between.strip()
                and not _PLACE.search(between)
                and (not _BREAK.search(between) or _PARTICIPLE.search(between))
            ):
                yield second, f"the sentence relates {first.name} to itself"
        elif second.name in group_of.values() and group_of.get(first.name, second.name) != second.name:
            if _LEADS.search(between):
                yield second, f"{first.name} says {group_of[first.name]!r}"
        elif (
            first.name in group_of.values()
            and group_of.get(second.name, first.name) != first.name
            and _LED.search(between)
        ):
            yield first, f"{second.name} says {group_of[second.name]!r}"
