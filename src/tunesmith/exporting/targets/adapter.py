"""The adapter as PEFT reads it: the folder that training wrote, over the base by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.exporting.job import File, Job, Request, Runtime
from tunesmith.generation.from_folder import FolderModel
from tunesmith.models.architecture import architecture_from_weights
from tunesmith.models.experts import expert_shapes
from tunesmith.models.weights import read_config


def write(job: Job) -> list[File]:
    """The folder that `train` wrote; nothing is copied. Who uses it fetches the base by its name."""
    code = f"PeftModel.from_pretrained(base, {str(job.adapter)!r})"
    return [File("adapter", job.adapter, exact=True, commands={"Python (peft)": code})]


def warnings(request: Request, **_: Any) -> Iterator[str]:
    """Where transformers and PEFT compute with other numbers than training did, in 4 bits."""
    job = request.job
    if job.bits != 4:
        return
    if expert_shapes(architecture_from_weights(job.weights).network):
        yield "training holds the experts in NF4, but transformers does not quantize experts, so replies may differ"
    stored = read_config(job.weights.folder, job.weights.name).get("quantization_config") or {}
    wished = str(stored.get("bnb_4bit_compute_dtype", job.precision))
    if stored.get("load_in_4bit") and job.precision not in ("", wished):
        yield f"the base's own files ask for products in {wished}, but training computes in {job.precision}"


def opened(job: Job, file: File) -> Runtime:
    """transformers and PEFT over the base as training read it."""
    return FolderModel(
        Path(job.weights.folder), adapter=file.path, bits=job.bits, stop=job.stop, template=job.template,
        context=job.context,
    )  # fmt: skip
