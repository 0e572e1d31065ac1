"""Groups of very different sizes, and one answer that makes up much of the data.

Why it hurts: the model applies the large group's style to everything, and a small group's test score rests on a few
rows.

Example: 18 topics with 160 rows each and two with 5.

What to do: collect or synthesize rows for the small groups, or sample fewer of the large ones. No row is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import CheckContext, Finding, table_finding

SCOPE = "table"
MIN_ROWS = 20  # rows: with fewer, a share means nothing


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, ratio: float = 10.0, share: float = 0.1
) -> Iterator[Finding]:
    """Yields a note if the largest group has `ratio` times the rows of the smallest, or one answer a `share` of all."""
    if len(rows) < MIN_ROWS:
        return
    groups = Counter(row.group for row in rows if row.group).most_common()
    if len(groups) > 1 and groups[0][1] >= ratio * groups[-1][1]:
        (most, rows_most), (least, rows_least) = groups[0], groups[-1]
        small = sum(count * ratio <= rows_most for _, count in groups)
        message = (
            f"'{most}' has {rows_most} rows, '{least}' {rows_least}; {small} of {len(groups)} groups are that small"
        )
        yield table_finding("imbalance", message)
    answers = Counter(hash(normalize(row.answer)) for row in rows)
    [(_, answer_count)] = answers.most_common(1)
    if answer_count >= share * len(rows):
        yield table_finding("imbalance", f"{answer_count} of {len(rows)} rows have the same answer")
