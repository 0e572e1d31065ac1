"""The adapter folder that training wrote, in PEFT's format."""

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
    """Returns the folder that `train` wrote; nothing is copied. Users download the base by its name."""
    code = f"PeftModel.from_pretrained(base, {str(job.adapter)!r})"
    return [File("adapter", job.adapter, exact=True, commands={"Python (peft)": code})]


def warnings(request: Request, **_: Any) -> Iterator[str]:
    """Yields where transformers and PEFT compute a 4-bit model differently from training."""
    job = request.job
    if job.bits != 4:
        return
    if expert_shapes(architecture_from_weights(job.weights).network):
        yield "training holds the experts in NF4, but transformers does not quantize experts, so replies may differ"
    stored = read_config(job.weights.folder, job.weights.name).get("quantization_config") or {}
    compute_dtype = str(stored.get("bnb_4bit_compute_dtype", job.precision))
    if stored.get("load_in_4bit") and job.precision not in ("", compute_dtype):
        yield f"the base's own files set computation in {compute_dtype}, but training computes in {job.precision}"


def opened(job: Job, file: File) -> Runtime:
    """Opens the adapter with transformers and PEFT over the base as in training."""
    return FolderModel(
        Path(job.weights.folder), adapter=file.path, bits=job.bits, stop=job.stop, template=job.template,
        context=job.context,
    )  # fmt: skip
