"""The adapter as PEFT reads it: the folder that training wrote, over the base by its name."""

from __future__ import annotations

from pathlib import Path

from tunesmith.exporting.job import File, Job, Runtime
from tunesmith.generation.from_folder import FromFolder


def write(job: Job) -> list[File]:
    """The folder that `train` wrote; nothing is copied. Who uses it fetches the base by its name."""
    code = f"PeftModel.from_pretrained(base, {str(job.adapter)!r})"
    return [File("adapter", job.adapter, exact=True, commands={"Python (peft)": code})]


def opened(job: Job, file: File) -> Runtime:
    """transformers and PEFT over the base as training read it."""
    return FromFolder(
        Path(job.weights.folder), adapter=file.path, bits=job.bits, stop=job.stop, template=job.template,
        context=job.context,
    )  # fmt: skip
