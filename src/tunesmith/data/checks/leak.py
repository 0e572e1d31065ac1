"""Training rows that stand in the test or validation rows too: by prompt, by answer, or as a whole.

Why it hurts: the score is then memory, not skill.

Example: "How do I pay?" in the training rows and "how do i pay" in the test.

What to do: let the training row be dropped. A shared answer alone is often right (twelve ways to ask, one canonical
answer), so such rows are told and kept. `train` refuses rows whose prompt leaks unless `data.allow_leaks` is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, normalise
from tunesmith.data.finding import Context, Finding, Proposal, of_row, of_table, prompt_key

SCOPE = "split"


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Training rows with a held-out prompt, told whether the answer is the same; and how many share an answer alone."""
    held: dict[tuple[str, ...], Conversation] = {}
    answers: set[str] = set()
    for row in rows:
        if context.parts.get(row.id, "train") != "train":
            held.setdefault(prompt_key(row), row)
            answers.add(normalise(row.answer))
    shared = 0
    for row in rows:
        if context.parts.get(row.id) != "train":
            continue
        if other := held.get(prompt_key(row)):
            both = " and its answer are" if normalise(row.answer) == normalise(other.answer) else " is"
            message = f"its prompt{both} also in {context.parts[other.id]}: {other.origin}"
            yield of_row("leak", row, message, do)
        else:
            shared += normalise(row.answer) in answers
    if shared:
        yield of_table("leak", f"{shared} training rows have the answer of a held-out row, to another prompt")
