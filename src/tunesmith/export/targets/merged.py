"""Base and adapter as one folder of safetensors, for transformers, vLLM and whatever reads such folders."""

from __future__ import annotations

from typing import Literal

import torch

from tunesmith.export.job import File, Job, Runtime
from tunesmith.export.merge import merge
from tunesmith.generate.from_folder import FromFolder


def write(job: Job, *, dtype: Literal["base", "float16", "bfloat16", "float32"] = "base") -> list[File]:
    """`dtype`: of the weights; base: as the base's files have them. bfloat16 rounds small updates away."""
    made = merge(job, job.folder / "merged", None if dtype == "base" else getattr(torch, dtype))
    command = f"vllm serve {made} --served-model-name {job.name}"
    code = f"AutoModelForCausalLM.from_pretrained({str(made)!r})"
    return [File("merged", made, exact=True, commands={"vLLM": command, "Python (transformers)": code})]


def opened(job: Job, file: File) -> Runtime:
    """transformers alone."""
    return FromFolder(file.path, stop=job.stop, template=None, context=job.context)
