"""Checks a text against the fields it was written from: a verdict and a reason for every claim, and the shares."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from tunesmith.claims.abilities import acts_alone, content_stems, load_vocabulary, stem
from tunesmith.claims.claim import CheckedClaim, Claim, Degree, Period, Quantity, Side, degrees_agree, periods_agree
from tunesmith.claims.evidence import (
    Evidence,
    claim_words,
    contradicted,
    find_misplaced,
    member_groups,
    only_demanded,
    supported,
    unsupported,
)
from tunesmith.claims.extract import FIRST_PERSON, claim_side, extract
from tunesmith.claims.fields import ParsedFields, read_fields
from tunesmith.claims.reported import check_quantity, check_reported
from tunesmith.claims.subject import (
    Names,
    Subjects,
    is_asserted,
    is_conditional,
    next_sentence,
    reattribute,
    sentence_ends,
    sentence_span,
)
from tunesmith.claims.words import Phrases, ReportOptions, contains_phrase, core_words, nearly_equal, words

ClaimsAbout = Literal["sentence", "writer", "reader", "both"]


def check_claims(
    text: str,
    fields: Mapping[str, str],
    *,
    about: ClaimsAbout = "sentence",
    sides: Mapping[str, Side] | None = None,
    skills: Iterable[str] = (),
    subjects: Collection[str] = (),
    synonyms: Mapping[str, str] | None = None,
    proper: bool = False,
    today: date | None = None,
) -> list[CheckedClaim]:
    """Return every claim of a text with the verdict of the fields, in the text's order.

    `about` says whose facts the text states: 'sentence' decides per statement by its words ('I have', 'your team'),
    'both' lets any field support anything. `sides` maps fields to the side whose facts they hold; the others are
    guessed by `fields.guess_side`. `skills` are phrases to find in addition to the built-in list. `subjects` are fields
    whose names are things that the text is about (a player, a product): a number after such a name is checked against
    that field only. With subjects, '31-12' is a score, 'a steal' is a 1 if a field counts steals, and figures that the
    fields imply (a margin, a sum) are supported. `synonyms` maps phrases of the text to their meaning in the fields
    ('boards': 'rebounds', 'from the field': 'field goals', a nickname: its subject). With `proper`, every capitalized
    name is a claim, and a name is wrong if the numbers stated of it all belong to another subject. `today` (default:
    the current date) ends 'since 2019'.
    """
    nouns = {phrase: meaning for phrase, meaning in (synonyms or {}).items() if meaning not in subjects}
    report = ReportOptions(Phrases.from_synonyms(nouns), scores=bool(subjects)) if subjects or nouns or proper else None
    parsed = read_fields(fields, sides or {}, frozenset(skills), report)
    if report:
        report = replace(report, nouns=_counted_nouns(parsed) if subjects else frozenset(), names=proper)
    claims = extract(text, parsed.skills, parsed.organizations, report)
    names = Names(subjects, synonyms)
    unknown_names = (
        [result for result in claims if result.kind == "name" and not names.lookup(claim_words(result))]
        if subjects
        else []
    )
    subject_index = Subjects(text, names, unknown_names)
    letter = report is None and bool(FIRST_PERSON.search(text))
    evidence = Evidence(text, parsed, claims, subject_index, today or date.today(), letter)
    reasons = {
        mention.start: reason
        for mention, reason in find_misplaced(text, subject_index, member_groups(parsed, subjects))
    }
    judge = _Judge(evidence, sentence_ends(text), reasons)
    checked = [result for claim in claims if (result := judge.verdict(claim, about))]
    if not subjects:
        return checked
    return reattribute(checked, text, subject_index, tuple(subjects), judge.number)


def _counted_nouns(parsed: ParsedFields) -> frozenset[str]:
    """Return the nouns that fields count on their own: 'steal', but not the 'field' of 'field goals'."""
    values = [fact.claim.value for fact in parsed.facts]
    return frozenset(
        next(iter(value.nouns))
        for value in values
        if isinstance(value, Quantity) and len(value.nouns) == 1 and not value.unit
    )


@dataclass(frozen=True)
class _Judge:
    """Decides the verdict on each claim of one text."""

    evidence: Evidence
    ends: tuple[list[int], list[int]]
    misplaced: Mapping[int, str]

    def verdict(self, claim: Claim, about: ClaimsAbout) -> CheckedClaim | None:
        """Return the verdict on a claim; None if the text does not assert it (a denial, a wish, a rhetorical 'two')."""
        start, end = sentence_span(self.evidence.text, claim, self.ends)
        before, after = self.evidence.text[start : claim.start], self.evidence.text[claim.end : end]
        report = bool(self.evidence.subjects.mentions)
        if not is_asserted(before, after, report) or (self.evidence.letter and is_conditional(before)):
            return None
        side: Side = about if about != "sentence" else claim_side(claim, before, after, self._next_sentence(end))
        if self.evidence.letter and not self._is_covered(claim, side, end):
            return None
        if claim.kind == "skill":
            return self._skill(claim, side)
        if claim.kind == "name":
            return self._name(claim)
        if claim.kind == "title":
            return self._title(claim, side, start, end)
        if claim.kind in {"employer", "organisation"}:
            return self._employer(claim, side, start, end)
        if side == "writer" and (demand_result := self._demanded_amount(claim, end)):
            return demand_result
        if isinstance(claim.value, Degree):
            return self._degree(claim, claim.value, side)
        if isinstance(claim.value, Period):
            return self._date(claim, claim.value, side, start, end)
        if report and (subject := self.evidence.subjects.subject_at(self.evidence.text, claim.start)):
            return self.number(claim, subject.name) if subject.name else None
        return check_quantity(self.evidence, claim, side, start, end)

    def number(self, claim: Claim, subject: str) -> CheckedClaim | None:
        """Return the verdict on a number stated of a subject."""
        return check_reported(self.evidence, claim, subject, sentence_span(self.evidence.text, claim, self.ends))

    def _next_sentence(self, end: int) -> str:
        return next_sentence(self.evidence.text, end, self.ends)

    def _is_covered(self, claim: Claim, side: Side, end: int) -> bool:
        """Return whether the fields state anything of the claim's kind for its side, or for the reader if unclear."""
        fields = self.evidence.fields
        if claim.kind == "name":
            in_greeting = self.evidence.text[:end].count("\n") == 0
            return fields.covers("reader" if in_greeting else "writer", "name")
        if claim.kind not in {"title", "employer", "organisation"} or not fields.sources:
            return True
        kinds = ("title",) if claim.kind == "title" else ("employer", "organisation")
        if fields.covers("writer" if side == "writer" else "reader", *kinds):
            return True
        return side == "both" and any(
            contains_phrase(core_words(source.words), core_words(claim_words(claim))) for source in fields.sources
        )

    def _demanded_amount(self, claim: Claim, end: int) -> CheckedClaim | None:
        """Return a verdict if the claim repeats an advert's requirement word for word: '8 years with electric cars'."""
        following_words = words(self.evidence.text[claim.start : min(end, claim.end + 60)])
        for source, requirement in self.evidence.fields.requirements:
            if (
                len(requirement) > 2
                and following_words[: len(requirement)] == requirement
                and not content_stems(requirement[2:]) <= self.evidence.writer_stems
            ):
                return only_demanded(claim, source)
        return None

    # --- one method per kind -----------------------------------------------------------------------------------------

    def _skill(self, claim: Claim, side: Side) -> CheckedClaim | None:
        phrase = claim_words(claim)
        for source in self.evidence.sources("both" if side == "reader" else side):
            if contains_phrase(source.words, phrase):
                return supported(claim, source.name)
        if not self.evidence.letter:
            return self.evidence.demanded_elsewhere(claim, phrase, side) or unsupported(
                claim, f"no field names {claim.text}"
            )
        own_stems = content_stems(phrase) & self.evidence.writer_stems
        if side != "reader" and own_stems == content_stems(phrase):
            return supported(claim, self.evidence.best_field(own_stems))
        if demand_result := self.evidence.demanded_elsewhere(claim, phrase, side):
            return demand_result
        is_listed = load_vocabulary(self.evidence.fields.skills).contains(phrase)
        is_unsure = (
            bool(content_stems(phrase) & self.evidence.skill_stems)
            if not is_listed
            else acts_alone(self.evidence.text, claim.start, claim.end)
        )
        if is_unsure or (side == "reader" and not (is_listed and self.evidence.fields.covers("reader", "skill"))):
            return None
        return unsupported(claim, f"no field names {claim.text}")

    def _name(self, claim: Claim) -> CheckedClaim:
        if claim.start in self.misplaced:
            return CheckedClaim(claim, "contradicted", None, self.misplaced[claim.start])
        name_words = set(claim_words(claim))
        facts = self.evidence.facts("both", "name")
        for fact in facts:
            fact_words = set(claim_words(fact.claim))
            if name_words <= fact_words or fact_words <= name_words:
                return supported(claim, fact.field)
        for source in self.evidence.fields.sources:
            if contains_phrase(source.words, claim_words(claim)):
                return supported(claim, source.name)
        if subject := self.evidence.subjects.names.lookup(claim_words(claim)):
            return supported(claim, subject)
        signature = next((fact for fact in facts if fact.side != "reader"), None)
        if signature and claim.start > len(self.evidence.text) // 2:
            return contradicted(claim, signature)
        return unsupported(claim, "no field gives this name")

    def _title(self, claim: Claim, side: Side, start: int, end: int) -> CheckedClaim:
        phrase = claim_words(claim)
        for source in self.evidence.sources(side):
            if contains_phrase(source.words, phrase):
                return supported(claim, source.name)
        for fact in self.evidence.facts(side, "title"):
            if set(phrase) <= set(claim_words(fact.claim)) or nearly_equal(phrase, claim_words(fact.claim)):
                return supported(claim, fact.field)
        if len(phrase) == 1 and claim.text.islower() and stem(phrase[0]) in self.evidence.writer_stems:
            return supported(claim, self.evidence.best_field(frozenset({stem(phrase[0])})))  # 'stewarded 60 concerts'
        facts = self.evidence.facts(side, "title")
        if side == "reader":
            advert_titles = [fact for fact in facts if fact.side == "reader" and fact.claim.text == fact.piece]
            return (
                contradicted(claim, advert_titles[0])
                if advert_titles
                else unsupported(claim, "the advert's fields do not name this title")
            )
        if anchored := self.evidence.facts_nearby(facts, claim, start, end):
            return contradicted(claim, anchored[0])
        return self.evidence.demanded_elsewhere(claim, phrase, side) or unsupported(claim, "no field names this title")

    def _employer(self, claim: Claim, side: Side, start: int, end: int) -> CheckedClaim:
        name = core_words(claim_words(claim))
        for source in self.evidence.sources(side):
            if contains_phrase(core_words(source.words), name):
                return supported(claim, source.name)
        facts = self.evidence.facts(side, "employer", "organisation")
        for fact in facts:
            if nearly_equal(name, core_words(claim_words(fact.claim))):
                return supported(claim, fact.field)
        if side == "reader":
            advert_employers = [fact for fact in facts if fact.side == "reader" and fact.claim.text == fact.piece]
            return (
                contradicted(claim, advert_employers[0])
                if advert_employers
                else unsupported(claim, "the advert's fields do not name this employer")
            )
        for title in self.evidence.neighbors(claim, start, end, "title"):
            if matching := [fact for fact in facts if contains_phrase(words(fact.piece), claim_words(title))]:
                return contradicted(claim, matching[0])
        return self.evidence.demanded_elsewhere(claim, name, side) or unsupported(
            claim, "no field names this organisation"
        )

    def _degree(self, claim: Claim, degree: Degree, side: Side) -> CheckedClaim:
        facts = [fact for fact in self.evidence.facts(side, "degree") if isinstance(fact.claim.value, Degree)]
        for fact in facts:
            if isinstance(fact.claim.value, Degree) and degrees_agree(degree, fact.claim.value):
                return supported(claim, fact.field)
        for source in self.evidence.sources(side):
            if contains_phrase(source.words, words(claim.text)):
                return supported(claim, source.name)
        if facts:
            return contradicted(claim, facts[0])
        for fact in self.evidence.facts("both", "degree"):
            if isinstance(fact.claim.value, Degree) and degrees_agree(degree, fact.claim.value):
                return only_demanded(claim, fact.field)
        return unsupported(claim, "no field states this degree")

    def _date(self, claim: Claim, period: Period, side: Side, start: int, end: int) -> CheckedClaim:
        facts = self.evidence.facts(side, "date")
        anchored = self.evidence.facts_nearby(facts, claim, start, end)
        for fact in anchored or facts:
            if isinstance(fact.claim.value, Period) and periods_agree(period, fact.claim.value):
                return supported(claim, fact.field)
        return contradicted(claim, anchored[0]) if anchored else unsupported(claim, "no field states this date")


OWN_FACTS = 3  # three facts of the applicant are enough: a letter should not list all of them


@dataclass(frozen=True)
class ClaimScore:
    """`precision` and `coverage` are shares of 1, or None if there is nothing to divide by."""

    precision: float | None
    coverage: float | None
    contradictions: int
    claims: int


def score_claims(
    text: str,
    fields: Mapping[str, str],
    checked: Sequence[CheckedClaim],
    *,
    sides: Mapping[str, Side] | None = None,
    own_facts: int = OWN_FACTS,
) -> ClaimScore:
    """Return precision, coverage and number of contradictions of a checked text.

    Precision is supported claims over all claims. Coverage is the share of key facts that the text mentions. Key facts
    are the job title and the company (each field that is one counts 1) and `own_facts` facts of the applicant, or fewer
    if the fields hold fewer; mentioning more earns nothing. The applicant's facts are the distinct employers, titles,
    degrees, skills and quantities of the writer's fields.
    """
    supported = [result.claim for result in checked if result.verdict == "supported"]
    return ClaimScore(
        len(supported) / len(checked) if checked else None,
        _coverage(text, fields, supported, sides or {}, own_facts),
        sum(result.verdict == "contradicted" for result in checked),
        len(checked),
    )


def _coverage(
    text: str, fields: Mapping[str, str], supported: Sequence[Claim], sides: Mapping[str, Side], own_facts: int
) -> float | None:
    stream = core_words(words(text))
    job_mentioned: list[bool] = []
    own_mentioned: dict[tuple[str, object], bool] = {}
    for fact in read_fields(fields, sides).facts:
        mentioned = _is_mentioned(fact.claim, stream, supported)
        if fact.side == "reader" and fact.claim.kind in {"title", "employer"} and fact.claim.text == fact.piece:
            job_mentioned.append(mentioned)
        elif fact.side == "writer" and fact.claim.kind != "name":
            own_mentioned[fact.claim.kind, fact.claim.value] = mentioned
    key_facts = len(job_mentioned) + min(own_facts, len(own_mentioned))
    return (sum(job_mentioned) + min(own_facts, sum(own_mentioned.values()))) / key_facts if key_facts else None


def _is_mentioned(fact: Claim, stream: tuple[str, ...], supported: Sequence[Claim]) -> bool:
    if isinstance(fact.value, tuple):
        return contains_phrase(stream, core_words(fact.value))
    if isinstance(fact.value, Degree):
        return any(isinstance(c.value, Degree) and degrees_agree(c.value, fact.value) for c in supported)
    return any((c.kind == fact.kind and c.value == fact.value) or c.text == fact.text for c in supported)
