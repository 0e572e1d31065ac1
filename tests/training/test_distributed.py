"""Two processes train one run: the same loss, the same adapter, the same decisions as one."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

import tunesmith
from tiny import toy_rows
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import Paused
from tunesmith.models.adapter import read_adapter
from tunesmith.runs.run import Run
from tunesmith.training import distributed
from tunesmith.training.job import read_journal

SETTINGS: dict[str, dict[str, Any]] = {
    "fused": {},
    "lonely": {"train.batch": "1 rows", "data.sample": {"train": 6}},  # one process has no row
    "autograd": {"adapter.dora": True, "train.evaluate_every": 2},
    "fsdp": {"train.parallel": "fsdp", "train.batch": "3 rows", "data.sample": {"train": 7}},  # three rows: 2 and 1
}
TROUBLES = {"memory": {"trouble": "memory", "on": 1, "at": 2}, "stopped": {"trouble": "stop", "on": 1, "at": 3}}
TROUBLES["taken on"] = {}


@dataclass
class Both:
    """What two processes made of each setting, and what one did; those in trouble have the setting `fused`."""

    one: dict[str, Run]
    two: dict[str, Run]
    said: list[dict[str, Any]]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def write(folder: Path, model: Path, changes: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(5, 5)))
    plain: dict[str, Any] = {
        "name": "toy",
        "base": {"model": str(model)},
        "data": {
            "source": "rows.jsonl",
            "format": {"columns": {"prompt": "prompt", "answer": "completion", "group": "topic"}},
            "split": {"by": "rows", "test": 0.1, "valid": 0.2, "together": None},
        },
        "adapter": {"rank": 4, "alpha": 8},
        "train": {"batch": "4 rows", "learning_rate": 1e-3, "evaluate_every": 3, "precision": "float32"},
    }
    for key, value in changes.items():
        section, name = key.split(".")
        plain[section][name] = value
    (folder / "toy.yaml").write_text(yaml.safe_dump(plain))
    return folder / "toy.yaml"


def prepared(path: Path, runs: Path) -> Run:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, runs)
    tunesmith.prepare(recipe, run)
    return run


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def watch(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    return watch


@pytest.fixture(scope="module")
def both(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("spread")
    one, two, tasks = {}, {}, []
    for name, changes in SETTINGS.items():
        path = write(folder / name, tiny("llama"), changes)
        one[name] = prepared(path, folder / name / "one")
        for other in (name, *(TROUBLES if name == "fused" else ())):
            runs = folder / name / other
            two[other] = Run(Path(shutil.copytree(one[name].path, runs / "toy")))
            tasks.append({"name": other, "recipe": str(path), "runs": str(runs), **TROUBLES.get(other, {})})
            one[other] = one[name]
        tunesmith.train(read_recipe(str(path)), one[name])
    with pytest.raises(Paused):
        tunesmith.train(read_recipe(str(folder / "fused/toy.yaml")), two["taken on"], watch=stop_at(2))
    (folder / "tasks.json").write_text(json.dumps(tasks))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("distributed_worker.py")), str(folder / "tasks.json"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return Both(one, two, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)])


def events(run: Run, kind: str, key: str) -> list[Any]:
    return [event[key] for event in read_journal(run / "journal.jsonl") if event["kind"] == kind]


def same_run(one: Run, two: Run) -> None:
    """The journals' figures and the adapters agree to 1e-6."""
    assert events(two, "step", "step") == events(one, "step", "step")
    for kind, key in (("step", "loss"), ("step", "grad_norm"), ("valid", "loss")):
        assert events(two, kind, key) == pytest.approx(events(one, kind, key), rel=1e-6), key
    for key in ("tokens", "learnt"):
        assert events(two, "step", key) == events(one, "step", key)
    (_, wanted), (_, found) = (read_adapter(run / "adapter") for run in (one, two))
    error = sum(((found[name] - each) ** 2).sum() for name, each in wanted.items())
    assert (error / sum((each**2).sum() for each in wanted.values())) ** 0.5 < 1e-6
    assert len(list((two / "tensorboard").iterdir())) >= 1


@pytest.mark.slow  # the fixture takes half a minute of two processors
@pytest.mark.parametrize("name", ["fused", "lonely", "autograd", "fsdp", "memory"])
def test_two_processes_make_what_one_makes(both: Both, name: str) -> None:
    same_run(both.one[name], both.two[name])
    assert both.said[0][name]["sum"] == both.said[1][name]["sum"]  # each has the whole adapter, bit for bit
    steps = {"autograd": "autograd_step", "fsdp": "autograd_step"}
    assert all(said[name]["way"].endswith(steps.get(name, "fused_step")) for said in both.said)


@pytest.mark.slow
def test_a_sharded_base_has_half_of_its_codes_on_each(both: Both) -> None:
    whole = [said["autograd"]["codes"] for said in both.said]
    assert [said["fsdp"]["codes"] * 2 for said in both.said] == whole
    assert whole[0] > 30_000


@pytest.mark.slow
def test_one_process_may_shrink_its_micro_batches_alone(both: Both) -> None:
    sizes = [said["memory"]["micro_tokens"] for said in both.said]
    assert sizes[1] < sizes[0] == both.said[0]["fused"]["micro_tokens"]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_one_process_goes_on(both: Both) -> None:
    assert all("stopped after step 3 of" in said["stopped"]["paused"] for said in both.said)
    run = both.two["stopped"]
    assert not (run / "adapter").exists()
    tunesmith.train(read_recipe(str(run.path.parents[1] / "toy.yaml")), run)
    same_run(both.one["stopped"], run)


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(both: Both) -> None:
    run = both.two["taken on"]
    assert events(run, "resume", "step") == [2]
    same_run(both.one["taken on"], run)


@pytest.mark.slow
def test_only_the_first_writes(both: Both) -> None:
    run = both.two["fused"]
    steps = events(run, "step", "step")
    assert steps == sorted(set(steps))
    assert run.read_json("machine.json")["processes"] == 2
    assert not list(run.path.rglob(".*.tmp"))


def test_rows_are_divided_evenly() -> None:
    chance = random.Random(5)
    for _ in range(50):
        lengths = [chance.randint(1, 900) for _ in range(chance.randint(0, 40))]
        rows = list(range(len(lengths)))
        chance.shuffle(rows)
        for many in (1, 2, 3, 4, 8):
            parts = distributed.divide_rows(rows, lengths, many)
            assert sorted(itertools.chain(*parts)) == sorted(rows)
            sums = [sum(lengths[row] for row in part) for part in parts]
            assert max(sums) - min(sums) <= max(lengths, default=0)
            assert all(part == [row for row in rows if row in part] for part in parts)
    assert distributed.divide_rows([3], [9, 9, 9, 9], 2) == [[3], []]


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tunesmith", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def trains(words: list[str], run: Run) -> subprocess.Popen[str]:
    """A command that has made a step."""
    process = start(*words)
    until = time.monotonic() + 90
    while not events(run, "step", "step") and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_one_command_is_killed_and_stopped(tiny: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path / "made", tiny("llama"), {"train.epochs": 100, "train.evaluate_every": 1000})
    run = prepared(path, tmp_path / "runs")
    words = [str(path), "--runs", str(tmp_path / "runs"), "--gpus", "2"]
    process = trains(words, run)
    psutil.Process(process.pid).children()[-1].kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("tunesmith: torchrun: another training process has ended unexpectedly") == 1
    assert "Traceback" not in err
    (run / "journal.jsonl").unlink()
    process = trains(words, run)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "train: 2 processes, each with all of the base model" in out
    assert err.count("stopped after step") == 1
    assert "Traceback" not in err
    stopped = events(run, "step", "step")[-1]
    assert [int(each.name[5:]) for each in (run / "checkpoints").iterdir()] == [stopped]


def test_an_error_is_said_once(tiny: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path / "made", tiny("llama"), {})
    process = start(str(path), "--runs", str(tmp_path / "runs"), "--gpus", "2")
    _, err = process.communicate(timeout=90)
    assert process.returncode == 5, err
    assert err.count("prepare is not finished") == 1
    assert "Traceback" not in err
    assert torch.distributed.is_initialized() is False
