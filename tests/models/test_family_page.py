"""Checks that docs/families.md is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.families import page, read_page

from families import FAMILY
from family_checks import QUICK, SLOW, YES, quick, slow

OFTEN = ("llama3", "mistral", "qwen3", "qwen3_5", "gemma3", "gpt_oss", "gpt2")  # the others take ten minutes by name


@pytest.mark.parametrize("name", FAMILY)
def test_the_page_has_the_results_of_the_quick_checks(tmp_path: Path, name: str) -> None:
    results, row = quick(name, tmp_path / "model"), read_page()[name]
    assert {column: row[column] for column in QUICK} == results
    assert results["loss"] == YES
    assert (results["loaded"] == "text half") == (FAMILY[name].vision is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in FAMILY]
)
def test_the_page_has_the_results_of_the_slow_checks(tmp_path: Path, name: str) -> None:
    quick(name, tmp_path / "model")
    results, row = slow(name, tmp_path / "model", tmp_path / "slow"), read_page()[name]
    assert {column: row[column] for column in SLOW} == results


def test_every_family_is_on_the_page() -> None:
    assert read_page().keys() == FAMILY.keys()
    assert page(read_page()) == (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
