"""SIGKILL at random moments: the same command goes on, and the adapter is the uninterrupted run's, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tunesmith
from tunesmith.config.recipe import read_recipe
from tunesmith.runs.run import hash_file
from tunesmith.training.job import read_journal

KILLS = 5


@pytest.mark.slow  # fifty seconds
def test_killed_at_five_random_moments(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file(train__epochs=12, train__evaluate_every=3, train__batch="2 rows", adapter__dropout=0.1)
    recipe = read_recipe(str(path))
    whole, run = (tunesmith.open_run(recipe, tmp_path / name) for name in ("whole", "killed"))
    for folder in (whole, run):
        tunesmith.prepare(recipe, folder)
    began = time.time()
    tunesmith.train(recipe, whole)
    lasted = time.time() - began
    chance = random.Random(time.time_ns())
    command = [str(Path(sys.executable).with_name("tunesmith")), "train", str(path), "--runs", str(tmp_path / "killed")]
    stopped_at = []
    for _ in range(KILLS):
        journal_size = (run / "journal.jsonl").stat().st_size if (run / "journal.jsonl").exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:  # wait until this attempt trains, then strike somewhere in its next stretch
            journal = run / "journal.jsonl"
            if journal.exists() and journal.stat().st_size != journal_size:
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, lasted / (KILLS + 2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        stopped_at.append(max((e["step"] for e in read_journal(run / "journal.jsonl")), default=0))
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    resumed, expected = (hash_file(r / "adapter/adapter_model.safetensors") for r in (run, whole))
    assert resumed == expected, f"killed at steps {stopped_at}"
    steps = [e["step"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "step"]
    assert steps == list(range(1, max(steps) + 1))
    assert not list((run / "checkpoints").glob(".*.old"))
