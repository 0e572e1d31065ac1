"""Training checkpoints, written atomically and verified by hash when read.

A checkpoint is a folder step-N with tensors.safetensors (adapter, optimizer, random states), state.json and
manifest.json (SHA-256 of both). Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import ResourceError
from tunesmith.runs.run import atomic_folder, hash_file, translate_disk_errors

_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, tensors and plain state."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Writes checkpoint `step` into `folder`. Raises ResourceError if the disk is full or cannot be written."""
    target = folder / f"step-{step:07d}"
    with atomic_folder(target) as partial:
        _write(partial, tensors, {**state, "step": step})
    return target


def rehearse(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], *, copies: int) -> None:
    """Writes a checkpoint and removes it, so that a checkpoint that cannot be saved is an early error.

    Raises what `save` raises, and ResourceError if the disk has no space for `copies` checkpoints.
    """
    trial = folder / f".trial.{os.getpid()}"
    with translate_disk_errors(folder):
        try:
            trial.mkdir(parents=True)
            _write(trial, tensors, state)
            size = sum(path.stat().st_size for path in trial.iterdir())
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    free = shutil.disk_usage(folder).free
    if free < copies * size:
        raise ResourceError(
            f"the checkpoints need up to {copies * size / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB left",
            where=str(folder),
            next="Free some space or lower train.keep, then run the same command again",
        )


def _write(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(_own_storage(tensors), folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    manifest = {name: hash_file(folder / name) for name in ("tensors.safetensors", "state.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _own_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors on the host, each with its own storage, as safetensors requires.

    On a CPU, bitsandbytes' 8-bit optimizers share two code books among all parameters.
    """
    pointers: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in pointers:
            copy = copy.clone()
        pointers.add(copy.untyped_storage().data_ptr())
        separate[name] = copy
    return separate


def steps(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    return sorted((int(m[1]) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))), reverse=True)


def load(folder: Path, step: int) -> Checkpoint | None:
    """Returns the checkpoint of `step`, or None if a file is missing, truncated or changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / f"step-{step:07d}"
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if any(hash_file(path / name) != digest for name, digest in manifest.items()):
            return None
        state = json.loads((path / "state.json").read_text())
        return Checkpoint(step, load_file(path / "tensors.safetensors"), state)
    except (OSError, ValueError, SafetensorError):
        return None


def newest(folder: Path) -> tuple[Checkpoint | None, list[int]]:
    """Returns the newest intact checkpoint and the steps of newer, damaged ones."""
    damaged: list[int] = []
    for step in steps(folder):
        if checkpoint := load(folder, step):
            return checkpoint, damaged
        damaged.append(step)
    return None, damaged


def checkpoint_inputs(folder: Path) -> dict[str, str] | None:
    """Returns the inputs that the newest readable checkpoint recorded, or None if there is none."""
    for step in steps(folder):
        try:
            inputs: dict[str, str] = json.loads((folder / f"step-{step:07d}/state.json").read_text())["inputs"]
        except (OSError, ValueError, LookupError):  # damaged, or written by an older version
            continue
        return inputs
    return None


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    for step in steps(folder)[keep:]:
        if step != best:
            shutil.rmtree(folder / f"step-{step:07d}", ignore_errors=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns an optimizer's state as named tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in _unwrap_state(entries).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            elif isinstance(value, int | float | bool | str) or value is None:
                plain[f"{index}.{key}"] = value
            else:
                raise AssertionError(f"optimizer state {key} is {type(value).__name__}")
    return tensors, plain


def _unwrap_state(entries: dict[str, Any]) -> dict[str, Any]:
    """Flattens bitsandbytes' quantized state, which is nested when saved but loaded flat."""
    unwrapped = {key: value for key, value in entries.items() if not isinstance(value, dict)}
    for value in entries.values():
        if isinstance(value, dict):
            unwrapped.update(value)
    return unwrapped


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Restores the state that `pack_optimizer` returned; paged state goes back into paged memory."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    for name, value in plain.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if getattr(optimizer, "is_paged", False):
        _move_to_paged_memory(optimizer)


def _move_to_paged_memory(optimizer: Any) -> None:
    """Moves the moments into the optimizer's paged buffers; `load_state_dict` puts them into plain GPU memory."""
    for parameter, entries in optimizer.state.items():
        for key in ("state1", "state2"):
            if key in entries:
                buffer = optimizer.get_state_buffer(parameter, dtype=entries[key].dtype)
                entries[key] = buffer.copy_(entries[key])


def random_state() -> dict[str, Tensor]:
    """Returns torch's random states, which dropout uses."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(tensors: dict[str, Tensor]) -> None:
    """Restores the random states."""
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
