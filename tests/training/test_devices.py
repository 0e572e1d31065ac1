"""What a machine cannot do with a recipe is said before any work starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.commands.plan import check_devices
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.hardware import Machine

GIB = 1 << 30
CPU = Machine("cpu", "a processor", 2, 16 * GIB, 8 * GIB, "float32", "for the test")
T4 = Machine("cuda", "a T4", 4, 15 * GIB, 14 * GIB, "float16", "for the test", gpus=1)
A100 = Machine("cuda", "an A100", 8, 40 * GIB, 39 * GIB, "bfloat16", "for the test", gpus=2)
H200 = Machine("cuda", "an H200", 16, 140 * GIB, 139 * GIB, "bfloat16", "for the test", eight=True, gpus=1)
MACHINES = {"cpu": CPU, "t4": T4, "a100": A100, "h200": H200}
TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def wrong(recipe_file: Callable[..., Path], machine: Machine, **changes: Any) -> list[tuple[str, str]]:
    errors = check_devices(read_recipe(str(recipe_file(**changes))), machine)
    assert all(isinstance(error, RecipeError | ResourceError) and error.next for error in errors)
    return [(error.where, error.what) for error in errors]


@pytest.mark.parametrize(
    ("precision", "refusing"),
    [
        ("auto", set()),
        ("float32", set()),
        ("bfloat16", {"t4"}),
        ("float16", {"cpu"}),
        ("fast", {"cpu", "t4", "a100"}),
    ],
)
@pytest.mark.parametrize("name", MACHINES)
def test_precision(recipe_file: Callable[..., Path], name: str, precision: str, refusing: set[str]) -> None:
    found = wrong(recipe_file, MACHINES[name], train__precision=precision)
    assert [where for where, _ in found] == ["train.precision"] * (name in refusing)


def test_8_bit_products_need_the_fused_decoder(recipe_file: Callable[..., Path]) -> None:
    ((where, what),) = wrong(recipe_file, H200, train__precision="fast", adapter__dora=True)
    assert where == "train.precision" and "adapter.dora" in what
    ((where, what),) = wrong(recipe_file, H200, train__precision="fast", train__engine="trl")
    assert where == "train.precision" and "engine trl has no 8-bit products" in what


def test_a_budget_beyond_the_device(recipe_file: Callable[..., Path]) -> None:
    assert wrong(recipe_file, T4, train__memory="15GiB") == []
    ((where, what),) = wrong(recipe_file, T4, train__memory="16GiB")
    assert (where, what) == ("train.memory", "the budget of 16GiB exceeds the memory of a T4, 15.0 GiB")


def test_gpus(recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for spread in ("ddp", "fsdp"):
        ((where, what),) = wrong(recipe_file, T4, train__parallel=spread)
        assert where == "train.parallel" and "needs several GPUs" in what
        assert wrong(recipe_file, A100, train__parallel=spread) == []
        assert "train.engine" in dict(wrong(recipe_file, A100, train__parallel=spread, train__engine="trl"))
    for name, value in {**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    ((where, what),) = wrong(recipe_file, A100)
    assert where == "torchrun" and "4 processes were started on a machine with 2 GPUs" in what
    assert wrong(recipe_file, replace(A100, gpus=4)) == wrong(recipe_file, CPU) == []
    ((where, what),) = wrong(recipe_file, CPU, train__engine="trl")
    assert where == "train.engine" and "engine trl supports one process" in what


def test_everything_wrong_is_named_at_once(recipe_file: Callable[..., Path]) -> None:
    changes = {"train__engine": "trl", "train__samples": 1, "train__precision": "float16", "train__memory": "1000GB"}
    found = [where for where, _ in wrong(recipe_file, CPU, **changes)]
    assert found == ["train.samples", "train.precision", "train.memory"]


@pytest.mark.parametrize("primary", ["loss", "perplexity"])
def test_the_best_score_must_be_one_that_replies_have(recipe_file: Callable[..., Path], primary: str) -> None:
    changes = {"train__best": "score", "evaluate__metrics": ["loss", "perplexity"], "evaluate__primary": primary}
    ((where, what),) = wrong(recipe_file, CPU, **changes)
    assert where == "train.best" and "is not a score of replies" in what
