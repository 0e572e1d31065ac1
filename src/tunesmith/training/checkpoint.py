"""Checkpoints: everything that the next step needs, written whole or not at all, verified when read.

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
    """Writes checkpoint `step` below `folder`. Raises ResourceError when the disk is full or cannot be written."""
    target = folder / f"step-{step:07d}"
    with atomic_folder(target) as made:
        _write(made, tensors, {**state, "step": step})
    return target


def rehearse(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], *, copies: int) -> None:
    """Writes a checkpoint and removes it again, so that what cannot be saved is known early.

    Raises what `save` raises, and ResourceError when the disk has no room for `copies` checkpoints.
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
            next="Free some space, or lower train.keep, and give the same command again",
        )


def _write(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(_separate(tensors), folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    manifest = {name: hash_file(folder / name) for name in ("tensors.safetensors", "state.json")}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host, each with memory of its own, which safetensors requires.

    On a CPU bitsandbytes' 8-bit optimizers give all parameters the same two code books.
    """
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    return sorted((int(m[1]) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))), reverse=True)


def load(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of `step`, or None when a file is missing, cut or altered."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / f"step-{step:07d}"
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if any(hash_file(path / name) != wanted for name, wanted in manifest.items()):
            return None
        state = json.loads((path / "state.json").read_text())
        return Checkpoint(step, load_file(path / "tensors.safetensors"), state)
    except (OSError, ValueError, SafetensorError):
        return None


def newest(folder: Path) -> tuple[Checkpoint | None, list[int]]:
    """The newest whole checkpoint, and the steps of damaged ones that were passed over."""
    damaged: list[int] = []
    for step in steps(folder):
        if found := load(folder, step):
            return found, damaged
        damaged.append(step)
    return None, damaged


def made_from(folder: Path) -> dict[str, str] | None:
    """What the newest checkpoint that says it was made from; None where none does."""
    for step in steps(folder):
        try:
            found: dict[str, str] = json.loads((folder / f"step-{step:07d}/state.json").read_text())["made_from"]
        except (OSError, ValueError, LookupError):  # damaged, or of an older version
            continue
        return found
    return None


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    for step in steps(folder)[keep:]:
        if step != best:
            shutil.rmtree(folder / f"step-{step:07d}", ignore_errors=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in _unwrapped(entries).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            elif isinstance(value, int | float | bool | str) or value is None:
                plain[f"{index}.{key}"] = value
            else:
                raise AssertionError(f"optimizer state {key} is {type(value).__name__}")
    return tensors, plain


def _unwrapped(entries: dict[str, Any]) -> dict[str, Any]:
    """bitsandbytes wraps its quantised state into an inner dictionary, and takes it back unwrapped."""
    inner = {key: value for key, value in entries.items() if not isinstance(value, dict)}
    for value in entries.values():
        if isinstance(value, dict):
            inner.update(value)
    return inner


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Puts the state that `pack_optimizer` took back; what was in paged memory is in paged memory again."""
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
        _page(optimizer)


def _page(optimizer: Any) -> None:
    """Moves the moments into buffers as the optimizer allocates them; `load_state_dict` leaves plain GPU memory."""
    for parameter, entries in optimizer.state.items():
        for key in ("state1", "state2"):
            if key in entries:
                buffer = optimizer.get_state_buffer(parameter, dtype=entries[key].dtype)
                entries[key] = buffer.copy_(entries[key])


def random_state() -> dict[str, Tensor]:
    """torch's random states (dropout draws from them)."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(tensors: dict[str, Tensor]) -> None:
    """Puts the random states back."""
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
