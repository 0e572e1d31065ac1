"""Scores a checked text. Precision alone rewards saying nothing, so coverage is reported too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.claims.agree import degrees_agree
from tunesmith.claims.claim import CheckedClaim, Claim, Degree, Side
from tunesmith.claims.fields import read_fields
from tunesmith.claims.fold import contains_phrase, core_words, words

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
