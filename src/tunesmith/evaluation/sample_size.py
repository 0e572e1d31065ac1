"""Says before the training what the held-out rows can never show, because they are too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.evaluation.comparison import sample_rows
from tunesmith.evaluation.verdict import MIN_GROUPS
from tunesmith.wording import counted, plural

MIN_ROWS = 10  # with fewer test rows only differences are shown that nearly every row has
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
    warnings = []
    if count < MIN_ROWS:
        warnings.append(
            f"the test has only {counted(count, 'row')}, which show only differences that nearly every row has. Use "
            f"{MIN_ROWS} or more, better {ENOUGH_ROWS}: raise data.split.test, or add rows"
        )
    if limit < MIN_ROWS and limit < count:
        warnings.append(
            f"evaluate.rows is {limit}, and so few rows show only differences that nearly every row has. Set it to "
            f"{min(count, ENOUGH_ROWS)} or more"
        )
    asked = sample_rows({part: rows for part, rows in parts.items() if rows}, limit, seed)
    groups = _count_groups([row for rows in asked.values() for row in rows])
    noun = kind if groups < sum(map(len, asked.values())) else "row"
    if groups < MIN_GROUPS:
        warnings.append(
            f"WARNING: the test asks rows of {counted(groups, noun)}. With fewer than {MIN_GROUPS} no difference can "
            "be shown, however large it is, because chance alone often gives such a result. Hold out rows of "
            f"{MIN_GROUPS} or more {plural(noun)}"
        )
    unseen = _count_groups(asked.get("unseen", ()))
    if 0 < unseen < MIN_GROUPS <= groups:
        warnings.append(
            f"the test asks rows of {counted(unseen, kind)} that training does not see. With fewer than {MIN_GROUPS} "
            f"nothing can be shown about such {plural(kind)} alone; the verdict is about all test rows. Hold out "
            f"{MIN_GROUPS} or more (data.split.unseen_groups) to learn it"
        )
    return warnings


def _count_groups(rows: Sequence[Conversation]) -> int:
    return len({row.group or row.id for row in rows})
