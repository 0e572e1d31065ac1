"""What several targets do with files that others wrote."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.registry import nearest
from tunesmith.errors import ModelError, RecipeError, TunesmithError
from tunesmith.exporting.job import Job, Request
from tunesmith.exporting.quantization_types import MIXES
from tunesmith.models.weights import read_config

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FRONT = re.compile(r"---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


def wrong_repo(name: str) -> tuple[str, str] | None:
    """What is wrong with the name of a repository, and what to do; None for a name that is right."""
    if isinstance(name, str) and REPO.fullmatch(name):
        return None
    return f"'{name}' is no name of a repository", "Write it as owner/name"


def unknown_type(mix: Any) -> tuple[str, str] | None:
    """What is wrong with the name of a GGUF type, and what to do; None for a type that can be written."""
    if isinstance(mix, str) and mix in MIXES:
        return None
    return f"unknown type '{mix}'", nearest(str(mix), MIXES)


def cannot_merge(request: Request, target: str) -> Iterator[TunesmithError]:
    """Why base and adapter cannot be merged: the original weights of a base that is stored in 4 bits are not there."""
    job = request.job
    config = read_config(job.weights.folder, job.weights.name)
    if job.onto == "original" and config.get("quantization_config", {}).get("load_in_4bit"):
        yield RecipeError(
            "the base's files hold 4 bits, not the original weights", where=f"export.files: {target}",
            next="Set export.onto to quantised, or train on the unquantised model",
        )  # fmt: skip


def lacks_gguf(request: Request, mix: str, *, of: str) -> Iterator[TunesmithError]:
    """The error that no GGUF file of the type is there when the target `of` is written."""
    if mix not in request.types:
        yield RecipeError(
            f"{of} needs a GGUF file of type {mix}, which no target before it writes", where=f"export.files: {of}",
            next=f"Put {{gguf: {{types: [{mix}]}}}} before {of} in export.files",
        )  # fmt: skip


def gguf_file(job: Job, mix: str, *, of: str, option: str) -> Path:
    """The file that gguf wrote, for the target `of`, whose `option` names it.

    Raises RecipeError for a type that does not exist, ModelError for a file that is not there.
    """
    if wrong := unknown_type(mix):
        raise RecipeError(wrong[0], where=f"export.files: {of}.{option}", next=wrong[1])
    path = job.folder / "gguf" / f"{job.name}.{mix}.gguf"
    if not path.is_file():
        advice = f"Put {{gguf: {{types: [{mix}]}}}} before {of} in export.files"
        raise ModelError(f"there is no GGUF file of type {mix}", where=str(path), next=advice)
    return path


def link(source: Path, target: Path) -> None:
    """`source` under another name too; a copy where the disk cannot link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(source, target)


def front_matter(card: str) -> Mapping[str, Any]:
    """The YAML in front of a card; empty where there is none. Raises yaml.YAMLError."""
    match = _FRONT.match(card)
    found = yaml.safe_load(match[1]) if match else None
    return found if isinstance(found, dict) else {}
