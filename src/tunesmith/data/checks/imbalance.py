"""Groups of very different sizes, and one answer that makes up much of the data.

Why it hurts: the model learns the big group's manner for all, and a small group's test score rests on a handful of
rows.

Example: 18 topics with 160 rows each and two with 5.

What to do: collect or synthesize rows for the small groups, or draw fewer of the big ones. No row is dropped for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, normalise
from tunesmith.data.finding import Context, Finding, of_table

SCOPE = "table"
FEW = 20  # rows: below it a share means nothing


def look(
    rows: Sequence[Conversation], context: Context, *, ratio: float = 10.0, share: float = 0.1
) -> Iterator[Finding]:
    """A note when the largest group has `ratio` times the smallest's rows, or one answer has a `share` of all rows."""
    if len(rows) < FEW:
        return
    groups = Counter(row.group for row in rows if row.group).most_common()
    if len(groups) > 1 and groups[0][1] >= ratio * groups[-1][1]:
        (most, rows_most), (least, rows_least) = groups[0], groups[-1]
        small = sum(count * ratio <= rows_most for _, count in groups)
        message = (
            f"'{most}' has {rows_most} rows, '{least}' {rows_least}; {small} of {len(groups)} groups are that small"
        )
        yield of_table("imbalance", message)
    answers = Counter(hash(normalise(row.answer)) for row in rows)
    [(_, times)] = answers.most_common(1)
    if times >= share * len(rows):
        yield of_table("imbalance", f"one answer stands in {times} of {len(rows)} rows")
