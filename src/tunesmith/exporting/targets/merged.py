"""Base and adapter as one folder of safetensors, for transformers, vLLM and whatever reads such folders."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Literal

import torch

from tunesmith.errors import TunesmithError
from tunesmith.exporting.job import File, Job, Request, Runtime
from tunesmith.exporting.merge import DONE, merge
from tunesmith.exporting.targets._shipped import cannot_merge
from tunesmith.generation.from_folder import FolderModel


def validate(request: Request, *, dtype: str = "base") -> Iterator[TunesmithError]:
    """Why the weights cannot be merged."""
    yield from cannot_merge(request, "merged")


def write(job: Job, *, dtype: Literal["base", "float16", "bfloat16", "float32"] = "base") -> list[File]:
    """`dtype`: of the weights; base: as the base's files have them. bfloat16 rounds small updates away."""
    made = job.out("merged")
    if job.lacks(made / DONE, "merged"):
        merge(job, made, None if dtype == "base" else getattr(torch, dtype))
    command = f"vllm serve {shlex.quote(str(made))} --served-model-name {shlex.quote(job.name)}"
    code = f"AutoModelForCausalLM.from_pretrained({str(made)!r})"
    return [File("merged", made, exact=True, commands={"vLLM": command, "Python (transformers)": code})]


def opened(job: Job, file: File) -> Runtime:
    """transformers alone."""
    return FolderModel(file.path, stop=job.stop, template=None, context=job.context)
