"""Answers far shorter than the data set's usual ones.

Why it hurts: in a set of letters a one-line answer is mostly an accident of collecting, and it teaches that a line
will do. In a set of facts short answers are right, so the rows are kept unless the recipe says otherwise.

Example: 240 letters of about 120 words, and one that reads "Please see attached."

What to do: read them. Where they are accidents, write `too_short: {do: drop}`; `words` sets the limit itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, answer_turn, of_place

SCOPE = "table"
SHARE = 0.15  # of the median: in 566 real cover letters no whole letter is below it, and every fragment is
FENCE = 3.0  # interquartile ranges below the first quartile, in logarithms: far out (Tukey, Exploratory Data Analysis)
MOST = 0.5  # of the median: where answers are nearly of one length, half of it is still no accident


def look(
    rows: Sequence[Conversation], context: Context, *, words: int | None = None, do: Proposal = "keep"
) -> Iterator[Finding]:
    """Answers of fewer than `words` words; without it, of less than 15 % of the median answer's.

    Where lengths differ little the limit is Tukey's outer fence, at most half the median.
    """
    counts = np.fromiter((len(row.answer.split()) for row in rows), dtype=np.int64)
    if not len(counts):
        return
    limit = words if words is not None else _limit(counts[counts > 0])
    for place in np.flatnonzero((counts < limit) & (counts > 0)).tolist():
        row = rows[place]
        message = f"{counts[place]} words, the median answer has {np.median(counts):.0f}"
        yield of_place("too_short", row, answer_turn(row), (0, len(row.answer)), message, do)


def _limit(counts: npt.NDArray[np.int64]) -> float:
    """The number of words below which an answer is far shorter than usual; `counts` [answers] are above 0."""
    if not len(counts):
        return 0.0
    low, median, high = np.percentile(counts, [25, 50, 75])
    return float(max(SHARE * median, min(MOST * median, low * (low / high) ** FENCE)))
