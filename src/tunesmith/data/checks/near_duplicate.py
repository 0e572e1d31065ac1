"""Rows whose prompt and answer nearly repeat an earlier row's; exact copies are found by `duplicate`.

Why it hurts: as with exact copies; a few changed words do not make a new example. Similarity is the exact Jaccard index
of word 3-grams (character 4-grams in short texts), not an estimate.

Example: two letters that differ only in the name of the company.

What to do: let the later ones be dropped. Raise `threshold` if rows from one form are meant to be alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, dialog_text, row_finding, turns_key

SCOPE = "table"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, threshold: float = 0.8, do: Proposal = "drop"
) -> Iterator[Finding]:
    """Yields all but the first of each cluster of rows with similarity `threshold` or more, except exact copies."""
    from tunesmith.data.duplicates import clusters, near_pairs

    texts = [dialog_text(row.turns) for row in rows]
    for group in clusters(len(rows), near_pairs(texts, threshold=threshold)):
        first = rows[group[0]]
        for index in group[1:]:
            row = rows[index]
            if turns_key(row.turns) != turns_key(first.turns):
                yield row_finding("near_duplicate", row, f"nearly repeats {first.origin}", do)
