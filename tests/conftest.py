"""Shared fixtures: tiny models, rows, recipes. Everything offline."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny import make_model, toy_rows

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job; children would never stop
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["GOMP_SPINCOUNT"] = "1000"  # as the command line does
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side; on two threads each, tests of tiny models took 63 s for 44 s
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]


FIRST = (
    "end_to_end",
    "exporting",
    "training",
    "generation",
    "models",
    "ui",
    "extension",
    "serve",
)  # files of half a minute


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with long files come first, so that of two processes none is left alone with one at the end."""
    items.sort(key=lambda item: FIRST.index(item.path.parent.name) if item.path.parent.name in FIRST else len(FIRST))


_frozen = 0  # modules that were imported when garbage was last collected whole


def pytest_collection_finish() -> None:
    freeze()


def pytest_runtest_logfinish() -> None:
    if len(sys.modules) > _frozen + 200:
        freeze()


def freeze() -> None:
    """What is imported stays: to look at it again at each model's loading, which collects garbage, takes 0.5 s."""
    global _frozen
    _frozen = len(sys.modules)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def measured_once() -> Iterator[None]:
    """How fast this machine is in a number type is measured once, not half a second long for each training."""
    from tunesmith import hardware

    real, known = hardware.measure_speed, dict[tuple[str, str], hardware.Speed]()

    def measure(machine: hardware.Machine) -> hardware.Speed:
        key = (machine.device, machine.precision)
        if key not in known:
            known[key] = real(machine)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hardware, "measure_speed", measure)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny(family) -> the folder of a tiny random model, made once a session."""
    made: dict[str, Path] = {}

    def get(family: str = "llama", **changes: Any) -> Path:
        key = json.dumps([family, changes], sort_keys=True)
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(f"{family}-model"), family, **changes)
        return made[key]

    return get


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """call(words) in an empty folder -> the command's exit code, what it said, what went to stderr."""
    from tunesmith.cli import main

    monkeypatch.chdir(tmp_path)

    def calling(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return calling


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """A .jsonl of toy rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    return path


@pytest.fixture
def recipe_file(tmp_path: Path, rows_file: Path, tiny: Callable[..., Path]) -> Callable[..., Path]:
    """recipe_file(**dotted changes with __ for dots) -> a small valid recipe's path; `family` picks the tiny model."""

    def write(family: str = "llama", **changes: Any) -> Path:
        plain: dict[str, Any] = {
            "name": "toy",
            "seed": 3,
            "base": {"model": str(tiny(family)), "bits": 4},
            "data": {
                "source": rows_file.name,
                "format": {"columns": {"prompt": "prompt", "answer": "completion", "group": "topic"}},
                "split": {"by": "group", "test": 0.15, "valid": 0.15, "unseen_groups": 1},
            },
            "prompt": {"max_tokens": 256},
            "adapter": {"rank": 4, "alpha": 8},
            "train": {
                "epochs": 2,
                "batch": "4 rows",
                "learning_rate": 1e-2,
                "evaluate_every": 5,
                "precision": "float32",
            },
            "evaluate": {
                "metrics": ["numbered_steps", "stops", "loss", "rouge", "length"],
                "primary": "loss",
                "max_new_tokens": 12,
                "rows": 8,
                "retention": 0,
            },
        }
        for key, value in changes.items():
            *sections, last = key.split("__")
            place = plain
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(plain, sort_keys=False))
        return path

    return write
