"""A text's claims in three figures. Precision alone rewards saying nothing, so coverage stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.claims import agree
from tunesmith.claims.claim import Checked, Claim, Degree, Side
from tunesmith.claims.fields import read
from tunesmith.claims.fold import bare, holds, words

OWN_FACTS = 3  # k: a letter that names three of the applicant's facts has said something; a list of all is no letter


@dataclass(frozen=True)
class Score:
    """`precision` and `coverage` are shares of 1, None where there is nothing to divide by."""

    precision: float | None
    coverage: float | None
    contradictions: int
    claims: int


def score(
    text: str,
    fields: Mapping[str, str],
    checked: Sequence[Checked],
    *,
    sides: Mapping[str, Side] | None = None,
    own_facts: int = OWN_FACTS,
) -> Score:
    """Precision, coverage and contradictions of a checked text.

    Precision is supported claims over all claims. Coverage is the share of key facts that the text mentions. Key facts
    are the job's title and the company (each field that is one, counting 1) and `own_facts` facts of the applicant, or
    as many as the fields hold if fewer: mentioning more earns nothing. The applicant's facts are the different
    employers, titles, degrees, skills and quantities of the writer's fields.
    """
    supported = [each.claim for each in checked if each.verdict == "supported"]
    return Score(
        len(supported) / len(checked) if checked else None,
        _coverage(text, fields, supported, sides or {}, own_facts),
        sum(each.verdict == "contradicted" for each in checked),
        len(checked),
    )


def _coverage(
    text: str, fields: Mapping[str, str], supported: Sequence[Claim], sides: Mapping[str, Side], own_facts: int
) -> float | None:
    stream = bare(words(text))
    job: list[bool] = []
    own: dict[tuple[str, object], bool] = {}
    for fact in read(fields, sides).facts:
        told = _told(fact.claim, stream, supported)
        if fact.side == "reader" and fact.claim.kind in {"title", "employer"} and fact.claim.text == fact.piece:
            job.append(told)
        elif fact.side == "writer" and fact.claim.kind != "name":
            own[fact.claim.kind, fact.claim.value] = told
    wanted = len(job) + min(own_facts, len(own))
    return (sum(job) + min(own_facts, sum(own.values()))) / wanted if wanted else None


def _told(fact: Claim, stream: tuple[str, ...], supported: Sequence[Claim]) -> bool:
    if isinstance(fact.value, tuple):
        return holds(stream, bare(fact.value))
    if isinstance(fact.value, Degree):
        return any(isinstance(c.value, Degree) and agree.degree(c.value, fact.value) for c in supported)
    return any((c.kind == fact.kind and c.value == fact.value) or c.text == fact.text for c in supported)
