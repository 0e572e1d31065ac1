"""The commands that only tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TUNESMITH = str(Path(sys.executable).with_name("tunesmith"))


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TUNESMITH, *words], capture_output=True, text=True)


def test_recipes_lists_what_is_shipped() -> None:
    assert (
        "shopsphere       Numbered step-by-step help for a shopping app  (google/gemma-2b-it)" in call("recipes").stdout
    )


def test_schema_is_the_recipes() -> None:
    assert {"name", "base", "data", "train"} <= set(json.loads(call("schema").stdout)["properties"])


def test_an_unknown_recipe_is_said() -> None:
    done = call("run", "shopsfere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no recipe is called 'shopsfere'" in done.stderr
    assert "Did you mean 'shopsphere'?" in done.stderr


def test_a_wrong_setting_is_said() -> None:
    done = call("check", "shopsphere", "--small", "--set", "train.epochs=none")
    assert done.returncode == 2
    assert "--set, train.epochs" in done.stderr


def test_a_run_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = call("chat", "shopsphere", "--small", "--runs", str(tmp_path))
    assert done.returncode == 5
    assert "there is no such run yet. Make it: tunesmith run RECIPE." in done.stderr
    assert not list(tmp_path.iterdir())
    assert call("prepare", "shopsphere", "--small", "--runs", str(tmp_path)).returncode == 0
    done = call("chat", "shopsphere", "--small", "--runs", str(tmp_path))
    assert "train is not finished. Run: tunesmith train." in done.stderr
