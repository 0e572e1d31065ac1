"""What several targets do with files that others wrote."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import ModelError, RecipeError
from tunesmith.export.job import Job
from tunesmith.export.mix import MIXES
from tunesmith.find import nearest

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FRONT = re.compile(r"---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


def check_repo(name: str, where: str) -> None:
    """Raises RecipeError for what is no name of a repository."""
    if not REPO.fullmatch(name):
        raise RecipeError(f"'{name}' is no name of a repository", where=where, next="Write it as owner/name")


def gguf_file(job: Job, mix: str, *, of: str, option: str) -> Path:
    """The file that gguf wrote, for the target `of`, whose `option` names it.

    Raises RecipeError for a type that does not exist, ModelError for a file that is not there.
    """
    if mix not in MIXES:
        where = f"export.files: {of}.{option}"
        raise RecipeError(f"unknown type '{mix}'", where=where, next=nearest(mix, MIXES))
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
