"""Training rows whose prompt, answer or both also occur in the test or validation rows.

Why it hurts: the score then measures memory, not skill.

Example: "How do I pay?" in the training rows and "how do i pay" in the test rows.

What to do: let the training row be dropped. A shared answer alone is often right (twelve ways to ask, one canonical
answer), so such rows are reported and kept. `train` refuses rows whose prompt leaks unless `data.allow_leaks` is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import CheckContext, Finding, Proposal, prompt_key, row_finding, table_finding

SCOPE = "split"


def find_defects(rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Yields training rows that have a held-out prompt, and the number of rows that share only a held-out answer."""
    held_out: dict[tuple[str, ...], Conversation] = {}
    held_out_answers: set[str] = set()
    for row in rows:
        if context.parts.get(row.id, "train") != "train":
            held_out.setdefault(prompt_key(row), row)
            held_out_answers.add(normalize(row.answer))
    shared = 0
    for row in rows:
        if context.parts.get(row.id) != "train":
            continue
        if held_out_row := held_out.get(prompt_key(row)):
            subject = " and its answer are" if normalize(row.answer) == normalize(held_out_row.answer) else " is"
            message = f"its prompt{subject} also in {context.parts[held_out_row.id]}: {held_out_row.origin}"
            yield row_finding("leak", row, message, do)
        else:
            shared += normalize(row.answer) in held_out_answers
    if shared:
        yield table_finding("leak", f"{shared} training rows have the answer of a held-out row with another prompt")
