"""Says what this installation can do: the machine, the extras with the lines that install them, and what is wrong."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tunesmith.config.extras import EXTRA_PACKAGES, install_command
from tunesmith.config.registry import GROUPS, installed, is_foreign, package_of
from tunesmith.hardware import Machine, core_count, detect_hardware

USES = {
    "core": "audit, undo, new, runs, report",
    "train": "check, prepare, plan, train, evaluate, chat, push",
    "export": "export, GGUF files",
    "serve": "serve, review",
    "ui": "ui, letters as .docx and .pdf",
    "parquet": "rows in Parquet and Arrow files",
    "trl": "train.engine: trl",
    "ner": "data.repair of names by spaCy",
}
_MIN_DISK = 20 << 30  # bytes: a 7B base is 13 GB


@dataclass(frozen=True)
class Extra:
    """An extra of the package. `missing` are import names; `command` installs them, '' if nothing is missing."""

    name: str
    uses: str
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Diagnosis:
    """The installation. `problems` are (what, what to do); `entries` are (group, name, package) of other packages."""

    python: str
    version: str
    machine: Machine
    disk_free: int
    extras: tuple[Extra, ...]
    entries: tuple[tuple[str, str, str], ...]
    problems: tuple[tuple[str, str], ...]


def doctor(folder: Path = Path()) -> Diagnosis:
    """Looks at Python, the machine, the disk of `folder`, the installed extras and entry points. Changes nothing."""
    machine, disk_free = detect_hardware(), shutil.disk_usage(folder).free
    extras = tuple(_extra(name) for name in USES)
    entries = tuple(
        (GROUPS[catalog], name, package_of(catalog, name)) for catalog in GROUPS for name in installed(catalog)
    )
    problems = [*_torch_problems(machine), *_entry_problems()]
    if disk_free < _MIN_DISK:
        problems.append(
            (f"only {disk_free >> 30} GiB of disk are free in {folder.resolve()}", "Free some, or use --runs")
        )
    version = metadata.version("tunesmith")
    return Diagnosis(sys.version.split()[0], version, machine, disk_free, extras, entries, tuple(problems))


def describe(diagnosis: Diagnosis) -> list[str]:
    """Returns the diagnosis as lines."""
    machine = diagnosis.machine
    memory = f"{machine.memory_free / 2**30:.1f} of {machine.memory_total / 2**30:.1f} GiB of memory free"
    gpus = f", {machine.gpus} GPUs" if machine.gpus > 1 else ""
    lines = [
        f"tunesmith {diagnosis.version}, Python {diagnosis.python}",
        f"machine: {machine.name}, {machine.device}{gpus}, {core_count()} CPU cores, {memory}",
        f"training would compute in {machine.precision}: {machine.why}",
        f"disk: {diagnosis.disk_free / 2**30:.0f} GiB free",
    ]
    for extra in diagnosis.extras:
        missing = f"missing {', '.join(extra.missing)}. {extra.command}"
        lines.append(f"{extra.name + ':':9}{missing if extra.missing else f'installed ({extra.uses})'}")
    lines += [f"{group}: {name} ({package})" for group, name, package in diagnosis.entries]
    lines += [f"problem: {problem}. {advice}" for problem, advice in diagnosis.problems]
    return lines


def _extra(name: str) -> Extra:
    packages = EXTRA_PACKAGES.get(name, ())
    missing = tuple(package for package in packages if importlib.util.find_spec(package) is None)
    return Extra(name, USES[name], missing, install_command(name) if missing else "")


def _torch_problems(machine: Machine) -> list[tuple[str, str]]:
    """Returns the problem of a GPU that the installed torch cannot use."""
    if importlib.util.find_spec("torch") is None or machine.device == "cuda" or shutil.which("nvidia-smi") is None:
        return []
    import torch

    if torch.version.cuda is None:
        advice = "Install the CUDA package: pip install --force-reinstall torch"
        return [(f"there is an NVIDIA GPU, but torch {torch.__version__} is a CPU package", advice)]
    return [("there is an NVIDIA GPU, but torch cannot use it", "Update the driver: nvidia-smi shows its version")]


def _entry_problems() -> list[tuple[str, str]]:
    return [
        (f"the entry '{name}' of {package_of(catalog, name)} has the name of one of tunesmith's own", "It is not used")
        for catalog in GROUPS
        for name in installed(catalog)
        if not is_foreign(catalog, name)
    ]
