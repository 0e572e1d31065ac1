"""Rows whose prompt and answer nearly repeat an earlier row's; exact copies are found by `duplicate`.

Why it hurts: as with exact copies; a word changed here and there does not make a new example. Similarity is the exact
Jaccard of 3-word runs (of 4-letter runs in short texts), not an estimate.

Example: two letters that differ in the name of the company alone.

What to do: let the later ones be dropped. Raise `threshold` where rows from one form are meant to be alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, key, of_row, spoken

SCOPE = "table"


def look(
    rows: Sequence[Conversation], context: Context, *, threshold: float = 0.8, do: Proposal = "drop"
) -> Iterator[Finding]:
    """All but the first of each cluster of rows at least `threshold` alike; exact copies are not told again."""
    from tunesmith.data.duplicates import clusters, near_pairs

    texts = [spoken(row.turns) for row in rows]
    for group in clusters(len(rows), near_pairs(texts, threshold=threshold)):
        first = rows[group[0]]
        for place in group[1:]:
            row = rows[place]
            if key(row.turns) != key(first.turns):
                yield of_row("near_duplicate", row, f"nearly repeats {first.origin}", do)
