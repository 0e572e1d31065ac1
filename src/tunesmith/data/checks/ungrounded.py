"""Answers that state facts which are not in the row's fields: wrong numbers, employers, degrees, added skills.

Why it hurts: the model learns to invent. A statement about the writer must come from the writer's own fields, never
from the requirements in the job ad.

Example: fields say "BSc in Biology, 2 years as a lab assistant", the letter says "with my Master's degree and five
years".

What to do: correct the answer from its fields. The rows are quarantined. `fields` names the columns to
trust; by default all but the answer's. The check suits rows written from fields, not open questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.claims.match import check_claims
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, answer_turn, span_finding

SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation],
    context: CheckContext,
    *,
    fields: list | None = None,  # type: ignore[type-arg]
    do: Proposal = "quarantine",
) -> Iterator[Finding]:
    """Yields every claim of an answer that the row's fields do not support or that they contradict."""
    for row in rows:
        sources = row.own_fields(fields)
        for result in check_claims(row.answer, sources) if sources else []:
            if result.verdict != "supported":
                claim = result.claim
                message = f"{result.verdict} {claim.kind} '{claim.text}': {result.reason}"
                yield span_finding("ungrounded", row, answer_turn(row), (claim.start, claim.end), message, do)
