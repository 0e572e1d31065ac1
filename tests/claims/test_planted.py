"""Planted errors in original letters are found, clean letters pass; pytest -s prints the tables."""

from __future__ import annotations

import re
from typing import Any

import pytest

from claims.planted import DEVELOPMENT, HELD_OUT, ROWS, check_row, errors, fields_of, measure
from tunesmith.claims.match import score_claims


@pytest.mark.parametrize("rows", [DEVELOPMENT, HELD_OUT], ids=["development", "held-out"])
def test_planted_errors_are_found(rows: list[dict[str, Any]]) -> None:
    figures = measure(rows)
    print(f"\n{figures.table()}")
    assert figures.recall >= 0.95
    assert figures.precision >= 0.9, figures.false_alarms
    assert figures.clean_supported >= 0.95 * figures.clean


def test_there_are_enough_letters_and_every_error_changes_one() -> None:
    assert len(ROWS) >= 12
    for row in ROWS:
        for kind, text, start, end in errors(row):
            assert text != row["letter"], kind
            assert 0 <= start < end <= len(text)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["fields"].get("Job Title", "position"))
def test_spans_match_the_text_and_never_overlap(row: dict[str, Any]) -> None:
    end = 0
    for result in check_row(row["letter"], row):
        claim = result.claim
        assert row["letter"][claim.start : claim.end] == claim.text
        assert claim.start >= end
        assert result.reason
        assert result.field is None or result.field in fields_of(row)
        end = claim.end


def test_a_clean_letter_has_full_scores_and_an_empty_one_none() -> None:
    row = ROWS[0]
    full = score_claims(row["letter"], fields_of(row), check_row(row["letter"], row))
    assert (full.precision, full.coverage, full.contradictions) == (1.0, 1.0, 0)
    silent = "I would like to work with you. I am diligent and friendly."
    none = score_claims(silent, fields_of(row), check_row(silent, row))
    assert (none.precision, none.coverage, none.claims) == (None, 0.0, 0)
    assert score_claims("", {}, []).coverage is None


def test_planted_errors_lower_precision() -> None:
    row = ROWS[0]
    clean = score_claims(row["letter"], fields_of(row), check_row(row["letter"], row)).precision
    for _, text, _, _ in errors(row):
        error_precision = score_claims(text, fields_of(row), check_row(text, row)).precision
        assert clean is not None
        assert error_precision is not None
        assert error_precision < clean


def test_an_error_does_not_change_other_verdicts() -> None:
    row = ROWS[2]
    before = {c.claim.text: c.verdict for c in check_row(row["letter"], row)}
    changed = re.sub("seven years", "twelve years", row["letter"])
    after = {c.claim.text: c.verdict for c in check_row(changed, row)}
    assert {text for text in before.keys() & after.keys() if before[text] != after[text]} == set()
