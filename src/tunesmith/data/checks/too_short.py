"""Answers far shorter than is usual in the data set.

Why it hurts: in a set of letters a one-line answer is usually a collection error, and it teaches that one line is
enough. In a set of facts short answers are right, so the rows are kept unless the recipe says otherwise.

Example: 240 letters of about 120 words, and one that reads "Please see attached."

What to do: read them. If they are errors, write `too_short: {do: drop}`; `words` sets the limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, answer_turn, span_finding

SCOPE = "table"
SHARE = 0.15  # of the median: in 566 real cover letters every fragment is below it and no complete letter
FENCE = 3.0  # interquartile ranges below the first quartile, of logarithms: far out (Tukey, Exploratory Data Analysis)
MAX_SHARE = 0.5  # of the median: upper bound of the limit, for answers that are all of nearly one length


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, words: int | None = None, do: Proposal = "keep"
) -> Iterator[Finding]:
    """Yields answers of fewer than `words` words; the default is 15 % of the median.

    If lengths vary little, the limit is Tukey's outer fence, at most half the median.
    """
    counts = np.fromiter((len(row.answer.split()) for row in rows), dtype=np.int64)
    if not len(counts):
        return
    limit = words if words is not None else _limit(counts[counts > 0])
    for index in np.flatnonzero((counts < limit) & (counts > 0)).tolist():
        row = rows[index]
        message = f"{counts[index]} words, the median answer has {np.median(counts):.0f}"
        yield span_finding("too_short", row, answer_turn(row), (0, len(row.answer)), message, do)


def _limit(counts: npt.NDArray[np.int64]) -> float:
    """The number of words below which an answer is far shorter than usual; `counts` [answers] are positive."""
    if not len(counts):
        return 0.0
    low, median, high = np.percentile(counts, [25, 50, 75])
    return float(max(SHARE * median, min(MAX_SHARE * median, low * (low / high) ** FENCE)))
