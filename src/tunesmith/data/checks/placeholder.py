"""Placeholders that were not filled in: [Your Name], {{company}}, XXX, "insert … here", lorem ipsum.

Why it hurts: the model writes the placeholder to its users, who send it.

Example: "Sincerely, [Your Name]" under an otherwise good letter.

What to do: a placeholder that exactly one field of the row fits is filled by repair; other rows are
quarantined. For intended placeholders (`{{Order Number}}`, which a help desk fills in) write `placeholder: {do:
keep}`. A made-up employer (a company called ABC) counts only if a field of the row names the real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, span_finding
from tunesmith.data.repair_text import repair

SCOPE = "row"
EMPLOYERS = frozenset({"hiring company", "company", "company name", "employer", "hiring_company", "company_name"})


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields every placeholder in an answer; made-up employers only if a field names another."""
    for row in rows:
        for turn_index, turn in enumerate(row.turns):
            if turn.role != "assistant":
                continue
            slots = [
                defect
                for defect in defects.placeholders(turn.text)
                if defect.severity != "note" or _names_other_employer(row, defect.text)
            ]
            edits = repair(turn.text, row.fields).edits if slots else ()
            fills = [edit for edit in edits if "placeholders" in edit.kind]
            for slot in slots:
                certain = any(edit.start <= slot.start and slot.end <= edit.end for edit in fills)
                proposal: Proposal = do or ("repair" if certain else "quarantine")
                yield span_finding("placeholder", row, turn_index, (slot.start, slot.end), slot.why, proposal)


def _names_other_employer(row: Conversation, employer: str) -> bool:
    """Whether a short field of the row names the company, and no field contains `employer`."""
    fields = row.own_fields()
    names_company = any(name.casefold() in EMPLOYERS and len(fields[name]) < 80 for name in fields)
    return names_company and not any(employer.casefold() in text.casefold() for text in fields.values())
