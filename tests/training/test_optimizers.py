"""Every optimizer trains, saves and resumes on this machine's processor, or is refused before anything starts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith
from stopping import at, crash
from tunesmith.config.recipe import read_recipe
from tunesmith.config.registry import entries
from tunesmith.errors import RecipeError, ResourceError, TunesmithError
from tunesmith.runs.run import Run, atomic_folder, hash_file, translate_disk_errors
from tunesmith.training import checkpoint
from tunesmith.training.job import read_journal
from tunesmith.training.optimizers import adamw, adamw_8bit
from tunesmith.training.validation import check_engine, check_optimizer

OPTIMIZERS = entries("tunesmith.training.optimizers")
PATHS: dict[str, dict[str, Any]] = {
    "fused": {},
    "autograd": {"adapter__dropout": 0.1},
    "trl": {"train__engine": "trl"},
    "lora+": {"adapter__rate_ratio": 4, "adapter__dora": True},  # two groups, and vectors beside the matrices
}


def prepared(path: Path, folder: Path) -> tuple[Any, Run]:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    return recipe, run


SELDOM = [("adamw", "lora+"), ("adamw", "autograd")]  # by name: pytest -m slow


@pytest.mark.parametrize(
    ("optimizer", "way"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair in SELDOM))
        for pair in itertools.product(["adamw", "adamw_8bit"], PATHS)
    ],
)
def test_a_killed_run_resumes_bit_for_bit(
    recipe_file: Callable[..., Path], tmp_path: Path, optimizer: str, way: str
) -> None:
    """With rank 64 most matrices of the tiny model have 4,096 elements, from which on the state is in 8 bits."""
    options = {optimizer: {"beta1": 0.8, "beta2": 0.95}}
    settings = {"train__optimizer": options, "adapter__rank": 64, "train__epochs": 1, "train__evaluate_every": 2}
    path = recipe_file(**settings, train__weight_decay=0.1, **PATHS[way])
    recipe, whole = prepared(path, tmp_path / "whole")
    tunesmith.train(recipe, whole)
    _, run = prepared(path, tmp_path / "killed")

    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=at("step", 5, crash))
    saved = checkpoint.load(run / "checkpoints", 4)
    assert saved is not None
    kinds = {tensor.dtype for name, tensor in saved.tensors.items() if name.endswith("state1")}
    assert (torch.uint8 in kinds) == (optimizer == "adamw_8bit")
    tunesmith.train(recipe, run)
    files = [each / "adapter/adapter_model.safetensors" for each in (run, whole)]
    assert hash_file(files[0]) == hash_file(files[1])
    events = read_journal(run / "journal.jsonl")
    assert [event["step"] for event in events if event["kind"] == "resume"] == [4]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_8_bit_optimizer_follows_adamw(decay: float) -> None:
    """Over 30 steps with a decay and a group of its own rate; the difference is the rounding of the moments."""
    moved = []
    for make in (adamw, adamw_8bit):
        source = torch.Generator().manual_seed(0)
        wide, small = (torch.nn.Parameter(torch.randn(shape, generator=source)) for shape in ((64, 128), (8, 8)))
        start = [wide.detach().clone(), small.detach().clone()]
        groups: list[dict[str, Any]] = [{"params": [wide]}, {"params": [small], "lr": 3e-3, "weight_decay": 0.0}]
        optimizer = make(groups, 1e-2, decay)
        for _ in range(30):
            wide.grad = torch.randn(wide.shape, generator=source) + wide.detach()
            small.grad = torch.randn(small.shape, generator=source)
            optimizer.step()
        moved.append([part.detach() - before for part, before in zip((wide, small), start, strict=True)])
    for exact, eight, error in zip(*moved, (0.05, 1e-5), strict=True):  # few elements stay in 32 bits
        assert (eight - exact).norm() < error * exact.norm()
        assert exact.norm() > 0


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_state_survives_the_disk(tmp_path: Path, optimizer: str) -> None:
    """Several parameters, whose 8-bit states refer to the same two code books on a processor."""
    make = {"adamw": adamw, "adamw_8bit": adamw_8bit}[optimizer]

    def run(reload_at: int) -> list[torch.Tensor]:
        source = torch.Generator().manual_seed(0)
        parts = [torch.nn.Parameter(torch.randn(64, 80, generator=source)) for _ in range(3)]
        made = make(parts, 1e-2, 0.1)
        for step in range(6):
            for part in parts:
                part.grad = torch.randn(part.shape, generator=source)
            made.step()
            if step == reload_at:
                tensors, plain = checkpoint.pack_optimizer(made)
                checkpoint.save(tmp_path, step, tensors, {"optimizer": plain})
                made = make(parts, 1e-2, 0.1)
                saved = checkpoint.load(tmp_path, step)
                assert saved is not None
                checkpoint.unpack_optimizer(made, saved.tensors, saved.state["optimizer"])
        return [part.detach() for part in parts]

    assert all(torch.equal(one, two) for one, two in zip(run(2), run(99), strict=True))


# --- refusals -------------------------------------------------------------------------------------------------


def refused(*given: Any) -> list[TunesmithError]:
    return check_optimizer(*given)


@pytest.mark.parametrize("engine", ["native", "trl"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_on_each_device(name: str, device: str, engine: str) -> None:
    errors = refused(name, {}, device, engine)
    if not (name.startswith("paged") and device == "cpu"):
        assert errors == []
        return
    (error,) = errors
    assert isinstance(error, RecipeError)
    assert (error.what.split()[0], error.where) == (name, "train.optimizer")
    assert "CUDA device" in error.what
    advised = [word for word in error.next.replace(",", " ").split() if word in OPTIMIZERS]
    assert advised == ["adamw_8bit", "adamw"]
    assert not any(refused(other, {}, device, engine) for other in advised)  # what is advised works here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta3": 0.1}, "unknown option 'beta3'. Did you mean"),
        ({"beta1": 1.0}, "'beta1' must be from 0 to below 1, not 1.0"),
        ({"beta2": -0.1}, "'beta2' must be from 0 to below 1"),
        ({"beta1": float("nan")}, "'beta1' must be from 0 to below 1"),
        ({"eps": 0}, "'eps' must be a number above 0, not 0"),
        ({"eps": "1e-8"}, "'eps' must be float, not '1e-8'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    for name in OPTIMIZERS:
        (error,) = refused(name, options, "cuda", "native")
        assert message in str(error)
        assert error.where == f"train.optimizer.{name}.{next(iter(options))}"


def test_unknown_names() -> None:
    assert "Did you mean 'adamw'" in str(refused("adam", {}, "cpu", "native")[0])
    assert [error.where for error in refused("adam", {}, "cpu", "nativ")] == ["train.engine", "train.optimizer"]


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_training_refuses_before_it_starts(recipe_file: Callable[..., Path], tmp_path: Path, engine: str) -> None:
    path = recipe_file(train__optimizer={"paged_adamw_8bit": {"beta1": 2.0}}, train__engine=engine)
    recipe, run = prepared(path, tmp_path)
    for command in (tunesmith.train, tunesmith.plan):
        with pytest.raises(TunesmithError, match=r"'beta1' must be.*\n.*needs a CUDA device.*Set it to adamw_8bit"):
            command(recipe, run)
    assert not (run / "checkpoints").exists()
    assert not (run / "machine.json").exists()


def test_every_named_engine_is_checked(recipe_file: Callable[..., Path]) -> None:
    assert check_engine(read_recipe(str(recipe_file()))) == []
    assert check_engine(read_recipe(str(recipe_file(train__engine="trl")))) == []


# --- a folder that cannot be written --------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"cannot be written \(.*\); finished work is kept.*to resume"
    with pytest.raises(ResourceError, match=message), atomic_folder(tmp_path / "file" / "adapter"):
        pass


def test_a_full_disk_as_safetensors_says_it(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(ResourceError, match="disk is full"), translate_disk_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="header"), translate_disk_errors(tmp_path):
        raise SafetensorError("Error while deserializing header: invalid")


def test_a_rehearsal_leaves_nothing_and_asks_for_room(tmp_path: Path) -> None:
    checkpoint.rehearse(tmp_path, {"a": torch.zeros(10)}, {}, copies=4)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ResourceError, match=r"need up to .* MB and the disk has .* MB left.*train\.keep"):
        checkpoint.rehearse(tmp_path, {"a": torch.zeros(1000)}, {"x": json.dumps([0])}, copies=1 << 40)
    assert not list(tmp_path.iterdir())
