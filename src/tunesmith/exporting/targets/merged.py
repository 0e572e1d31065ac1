"""Merges base and adapter into one safetensors folder, for transformers, vLLM and other readers of such folders."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Literal

import torch

from tunesmith.errors import TunesmithError
from tunesmith.exporting.job import File, Job, Request, Runtime
from tunesmith.exporting.merge import COMPLETE_FILE, merge
from tunesmith.exporting.targets._shipped import merge_errors
from tunesmith.generation.from_folder import FolderModel


def validate(request: Request, *, dtype: str = "base") -> Iterator[TunesmithError]:
    """Yields why the weights cannot be merged."""
    yield from merge_errors(request, "merged")


def write(job: Job, *, dtype: Literal["base", "float16", "bfloat16", "float32"] = "base") -> list[File]:
    """Writes the merged folder. `dtype` of the weights; `base` keeps the files' own. bfloat16 loses small updates."""
    folder = job.out("merged")
    if job.must_write(folder / COMPLETE_FILE, "merged"):
        merge(job, folder, None if dtype == "base" else getattr(torch, dtype))
    command = f"vllm serve {shlex.quote(str(folder))} --served-model-name {shlex.quote(job.name)}"
    code = f"AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    return [File("merged", folder, exact=True, commands={"vLLM": command, "Python (transformers)": code})]


def opened(job: Job, file: File) -> Runtime:
    """Opens the folder with transformers only."""
    return FolderModel(file.path, stop=job.stop, template=None, context=job.context)
