"""Slots that nobody filled: [Your Name], {{company}}, XXX, "insert … here", lorem ipsum.

Why it hurts: the model writes the slot to its users, who send it.

Example: "Sincerely, [Your Name]" under an otherwise good letter.

What to do: a slot that one of the row's own fields certainly fills is repaired; other rows are set aside
(quarantine). Slots that are meant (`{{Order Number}}` for a help desk to fill) want `placeholder: {do: keep}`. A
made-up employer (a company called ABC) counts where a field of the row names the true one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data import defects
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_place
from tunesmith.data.repair_text import repair

SCOPE = "row"
EMPLOYERS = frozenset({"hiring company", "company", "company name", "employer", "hiring_company", "company_name"})


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal | None = None) -> Iterator[Finding]:
    """Every slot in an answer; made-up employers only where a field names another."""
    for row in rows:
        for place, turn in enumerate(row.turns):
            if turn.role != "assistant":
                continue
            found = [d for d in defects.placeholders(turn.text) if d.severity != "note" or _knows(row, d.text)]
            edits = repair(turn.text, row.fields).edits if found else ()
            mended = [edit for edit in edits if "placeholders" in edit.kind]
            for slot in found:
                certain = any(edit.start <= slot.start and slot.end <= edit.end for edit in mended)
                wish: Proposal = do or ("repair" if certain else "quarantine")
                yield of_place("placeholder", row, place, (slot.start, slot.end), slot.why, wish)


def _knows(row: Conversation, employer: str) -> bool:
    """Whether a short field of the row names the company, and none of them is called `employer`."""
    own = row.own_fields()
    named = any(name.casefold() in EMPLOYERS and len(own[name]) < 80 for name in own)
    return named and not any(employer.casefold() in text.casefold() for text in own.values())
