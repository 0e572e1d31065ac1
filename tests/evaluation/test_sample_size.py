"""What check says before the training: what too few rows or groups, or a saturated score, can never show."""

from __future__ import annotations

from typing import Any

import pytest

from handmade import row
from tunesmith.data.conversation import Conversation
from tunesmith.evaluation.sample_size import sample_size_warnings
from tunesmith.evaluation.sentences import saturated_sentences
from tunesmith.evaluation.verdict import decide, is_saturated


def held_out(groups: int, each: int, start: int = 0, *, named: bool = True) -> list[Conversation]:
    return [
        row(start + g * each + n, f"q {g} {n}", group=f"t{start + g}" if named else "")
        for g in range(groups)
        for n in range(each)
    ]


def told(test: list[Conversation], unseen: list[Conversation], limit: int = 100) -> list[str]:
    return sample_size_warnings({"test": test, "unseen": unseen}, limit=limit, seed=1, kind="topic")


def test_enough_rows_and_groups_are_not_mentioned() -> None:
    assert told(held_out(6, 2), []) == []
    assert told(held_out(10, 1, named=False), []) == []  # each row is its own group
    assert told(held_out(6, 2), held_out(6, 2, 100)) == []


def test_few_rows_are_told_with_how_many_would_do() -> None:
    (warning,) = told(held_out(9, 1), [])
    assert warning == (
        "base and tuned model are compared on 9 rows; so few rows show only very large differences. Use 10 or more, "
        "better 40: raise data.split.test, or add rows"
    )
    (warning,) = told(held_out(20, 4), [], limit=8)
    assert "compared on 8 rows" in warning and warning.endswith("better 40: set evaluate.rows to 40 or more")
    (warning,) = told(held_out(4, 1, named=False), [])
    assert warning.startswith("WARNING: ") and "so few rows show no difference" in warning
    (warning,) = told([], [])
    assert "no rows are held out" in warning and "data.split.test above 0" in warning


def test_few_groups_are_told_because_nothing_can_be_shown() -> None:
    (warning,) = told(held_out(5, 8), [])
    assert warning.startswith("WARNING: the test rows belong to 5 topics. With fewer than 6 no difference can be shown")
    assert warning.endswith("Hold out rows of 6 or more topics")
    (warning,) = told(held_out(2, 10), held_out(3, 5, 100))  # five in both parts together
    assert "belong to 5 topics" in warning
    rows, groups = told(held_out(2, 4), [])
    assert "on 8 rows" in rows and "belong to 2 topics" in groups


def test_few_unseen_groups_are_told_only_if_the_verdict_can_still_be_one() -> None:
    (warning,) = told(held_out(16, 2), held_out(4, 12, 100))
    assert warning.startswith(
        "the test has 4 topics that training does not see. With fewer than 6 nothing can be shown"
    )
    assert "Set data.split.unseen_groups to 6 or more" in warning


def test_the_rows_counted_are_those_that_are_asked() -> None:
    (warning,) = told(held_out(20, 5), [], limit=5)
    assert warning.startswith("WARNING: base and tuned model are compared on 5 rows")


@pytest.mark.parametrize(
    ("scores", "better", "limits", "saturated"),
    [
        ([1.0] * 39 + [0.0], "higher", (0.0, 1.0), True),
        ([1.0] * 19 + [0.0], "higher", (0.0, 1.0), True),  # 0.95
        ([1.0] * 18 + [0.0] * 2, "higher", (0.0, 1.0), False),
        ([0.04] * 20, "lower", (0.0, 1.0), True),
        ([0.06] * 20, "lower", (0.0, 1.0), False),
        ([9.6] * 20, "higher", (1.0, 10.0), True),  # 0.45 below the best
        ([9.5] * 20, "higher", (1.0, 10.0), False),
        ([0.0] * 20, "neither", (0.0, 1.0), False),
        ([0.001, 2.0] * 10, "lower", None, False),  # a loss has no best value that models reach
    ],
)
def test_a_base_within_five_percent_of_the_best_score_is_saturated(
    scores: list[float], better: Any, limits: Any, saturated: bool
) -> None:
    names = [f"t{n}" for n in range(len(scores))]
    verdict = decide(scores, scores, names, better=better, limits=limits, seed=1, power=False).describe()
    assert is_saturated(verdict) is saturated
    assert bool(saturated_sentences(verdict, "numbered_steps")) is saturated


def test_a_saturated_score_is_told_with_its_value_and_what_to_do() -> None:
    verdict = decide([0.98] * 8, [1.0] * 8, [f"{n}" for n in range(8)], better="higher", limits=(0, 1), seed=1)
    assert saturated_sentences(verdict.describe(), "numbered_steps") == [
        "The base model's numbered steps is already 0.98 (at most 1 is possible), so tuning cannot show a gain on it. "
        "Choose another evaluate.primary, or harder rows."
    ]
    assert saturated_sentences(None, "numbered_steps") == []
