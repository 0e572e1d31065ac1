"""Says before the training what the held-out rows can never show, because they are too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.evaluation.comparison import sample_rows
from tunesmith.evaluation.verdict import MIN_GROUPS
from tunesmith.wording import counted, plural

MIN_ROWS = 10  # with fewer test rows only a difference that nearly every row has is shown
ENOUGH_ROWS = 40


def sample_size_warnings(
    parts: Mapping[str, Sequence[Conversation]], *, limit: int, seed: int, kind: str = "group"
) -> list[str]:
    """Returns warnings about the rows that both models will be asked: too few rows, or too few groups.

    `parts` are the held-out parts `test` and `unseen`, `limit` is evaluate.rows, and `kind` is what a group is called.
    A row without a group counts as its own group, as in verdict.decide.
    """
    count = sum(len(rows) for rows in parts.values())
    if not count:
        return [
            "WARNING: no rows are held out, so base and tuned model cannot be compared. Set data.split.test above 0"
        ]
    sampled = sample_rows({part: rows for part, rows in parts.items() if rows}, limit, seed)
    row_count = sum(map(len, sampled.values()))
    groups = _count_groups([row for rows in sampled.values() for row in rows])
    unseen = _count_groups(sampled.get("unseen", ()))
    warnings = []
    if row_count < MIN_ROWS:
        weak = (
            "so few rows show no difference" if groups < MIN_GROUPS else "so few rows show only very large differences"
        )
        advice = (
            f"set evaluate.rows to {min(count, ENOUGH_ROWS)} or more"
            if count >= MIN_ROWS
            else "raise data.split.test, or add rows"
        )
        warnings.append(
            f"{'WARNING: ' * (groups < MIN_GROUPS)}base and tuned model are compared on {counted(row_count, 'row')}; "
            f"{weak}. Use {MIN_ROWS} or more, better {ENOUGH_ROWS}: {advice}"
        )
    if groups < MIN_GROUPS and groups < row_count:
        warnings.append(
            f"WARNING: the test rows belong to {counted(groups, kind)}. With fewer than {MIN_GROUPS} no difference can "
            "be shown, however large it is, because chance alone often gives such a result. Hold out rows of "
            f"{MIN_GROUPS} or more {plural(kind)}"
        )
    elif 0 < unseen < MIN_GROUPS and unseen < len(sampled["unseen"]):
        warnings.append(
            f"the test has {counted(unseen, kind)} that training does not see. With fewer than {MIN_GROUPS} nothing "
            f"can be shown about such {plural(kind)} alone; the verdict is about all test rows. Set "
            f"data.split.unseen_groups to {MIN_GROUPS} or more to learn it"
        )
    return warnings


def _count_groups(rows: Sequence[Conversation]) -> int:
    return len({row.group or row.id for row in rows})
