"""The commands that only tell."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tunesmith

Call = Callable[..., tuple[int, str, str]]
TUNESMITH = str(Path(sys.executable).with_name("tunesmith"))


def test_recipes_lists_what_is_shipped(call: Call) -> None:
    assert "shopsphere       Numbered step-by-step help for a shopping app  (google/gemma-2b-it)" in call("recipes")[1]


def test_schema_is_the_recipes() -> None:
    output = subprocess.run([TUNESMITH, "schema"], capture_output=True, text=True).stdout
    assert {"name", "base", "data", "train"} <= set(json.loads(output)["properties"])


def test_an_unknown_recipe_is_said() -> None:
    process = subprocess.run([TUNESMITH, "run", "shopsfere"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (2, "")
    assert "no recipe is called 'shopsfere'" in process.stderr
    assert "Did you mean 'shopsphere'?" in process.stderr


def test_a_wrong_setting_is_said(call: Call) -> None:
    code, _, err = call("check", "shopsphere", "--small", "--set", "train.epochs=none")
    assert code == 2
    assert "--set, train.epochs" in err


def test_a_run_that_is_not_there_is_said(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["shopsphere", "--small", "--runs", str(tmp_path)]
    code, _, err = call("chat", *words)
    assert code == 5
    assert f"this run does not exist yet. Create it: tunesmith run shopsphere --small --runs {tmp_path}\n" in err
    assert not list(tmp_path.iterdir())
    assert call("prepare", *words)[0] == 0
    _, _, err = call("chat", *words)
    assert "train is not finished. Run: tunesmith train " in err
    words = shlex.split(err.rstrip().rpartition("Run: tunesmith ")[2])  # as it stands there, it can be pasted
    monkeypatch.setattr(tunesmith, "train", lambda recipe, run, *_, **__: print("trains", recipe.name, run.path))
    assert call(*words)[1] == f"trains shopsphere-small {tmp_path / 'shopsphere-small'}\n"
