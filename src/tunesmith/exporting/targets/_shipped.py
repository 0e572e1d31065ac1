"""Helpers of several targets: option checks, and access to files that other targets wrote."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import parse_yaml
from tunesmith.config.registry import nearest
from tunesmith.errors import ModelError, RecipeError, TunesmithError
from tunesmith.exporting.job import Job, Request
from tunesmith.exporting.quantization_types import QUANTIZATION_TYPES
from tunesmith.models.weights import read_config

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FRONT = re.compile(r"---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


def repo_error(name: str) -> tuple[str, str] | None:
    """Returns the problem of a repository name and advice; None for a valid name."""
    if isinstance(name, str) and REPO.fullmatch(name):
        return None
    return f"'{name}' is not a repository name", "Write it as owner/name"


def type_error(gguf_type: Any) -> tuple[str, str] | None:
    """Returns the problem of a GGUF type's name and advice; None for a known type."""
    if isinstance(gguf_type, str) and gguf_type in QUANTIZATION_TYPES:
        return None
    return f"unknown type '{gguf_type}'", nearest(str(gguf_type), QUANTIZATION_TYPES)


def merge_errors(request: Request, target: str) -> Iterator[TunesmithError]:
    """Yields why base and adapter cannot be merged: a base stored in 4 bits has no original weights."""
    job = request.job
    config = read_config(job.weights.folder, job.weights.name)
    if job.merge_into == "original" and config.get("quantization_config", {}).get("load_in_4bit"):
        yield RecipeError(
            "the base's files hold 4 bits, not the original weights", where=f"export.files: {target}",
            next="Set export.merge_into to quantized, or train on the unquantized model",
        )  # fmt: skip


def missing_gguf_errors(request: Request, gguf_type: str, *, target: str) -> Iterator[TunesmithError]:
    """Yields an error if no GGUF file of the type exists when `target` is written."""
    if gguf_type not in request.types:
        yield RecipeError(
            f"{target} needs a GGUF file of type {gguf_type}, which no target before it writes",
            where=f"export.files: {target}",
            next=f"Put {{gguf: {{types: [{gguf_type}]}}}} before {target} in export.files",
        )  # fmt: skip


def find_gguf(job: Job, gguf_type: str, *, target: str, option: str) -> Path:
    """Returns the GGUF file that `option` of `target` selects.

    Raises RecipeError for an unknown type, ModelError for a file that does not exist.
    """
    if problem := type_error(gguf_type):
        raise RecipeError(problem[0], where=f"export.files: {target}.{option}", next=problem[1])
    path = job.folder / "gguf" / f"{job.name}.{gguf_type}.gguf"
    if not path.is_file():
        advice = f"Put {{gguf: {{types: [{gguf_type}]}}}} before {target} in export.files"
        raise ModelError(f"there is no GGUF file of type {gguf_type}", where=str(path), next=advice)
    return path


def link(source: Path, target: Path) -> None:
    """Creates a hard link to `source`, or a copy if the disk cannot link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def front_matter(card: str) -> Mapping[str, Any]:
    """Returns the YAML front matter of a model card; empty if there is none. Raises RecipeError if it is not YAML."""
    match = _FRONT.match(card)
    return parse_yaml(match[1], "front matter")[0] if match else {}
