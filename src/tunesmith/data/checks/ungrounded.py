"""Answers that state facts which the row's fields do not: wrong numbers, employers, degrees, added skills.

Why it hurts: the model learns to invent. A statement about the writer must come from the writer's own fields, never
from the advert's demands.

Example: fields say "BSc in Biology, 2 years as a lab assistant", the letter says "with my Master's degree and five
years".

What to do: correct the answer from its fields. Rows found are set aside (quarantine). `fields` names the columns to
believe; none takes all but the answer's. It suits rows that are written from fields, not open questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.claims.match import check
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, answer_turn, of_place

SCOPE = "row"


def look(
    rows: Sequence[Conversation],
    context: Context,
    *,
    fields: list | None = None,  # type: ignore[type-arg]
    do: Proposal = "quarantine",
) -> Iterator[Finding]:
    """Every claim of an answer that is unsupported or contradicted by the row's fields, with its place."""
    for row in rows:
        own = row.own_fields(fields)
        for found in check(row.answer, own) if own else []:
            if found.verdict != "supported":
                claim = found.claim
                message = f"{found.verdict} {claim.kind} '{claim.text}': {found.reason}"
                yield of_place("ungrounded", row, answer_turn(row), (claim.start, claim.end), message, do)
