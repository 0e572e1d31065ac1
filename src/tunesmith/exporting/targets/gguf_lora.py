"""Writes the adapter alone as a GGUF file, which llama.cpp loads together with a file of the base."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.errors import ModelError, RecipeError, TunesmithError
from tunesmith.exporting.convert import (
    check_adapter,
    check_base,
    conversion_errors,
    convert,
    convert_adapter,
    gguf_metadata,
    known_differences,
)
from tunesmith.exporting.job import File, Job, Request, Runtime
from tunesmith.exporting.merge import merge
from tunesmith.exporting.quantize import quantize, rewrite_header
from tunesmith.exporting.targets._shipped import merge_errors
from tunesmith.exporting.targets.gguf import SLOTS
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.models.adapter import read_adapter
from tunesmith.models.architecture import architecture_from_weights
from tunesmith.models.gguf_header import read_header

WHERE = "export.files: gguf_lora"
ADVICE = "Use gguf instead of gguf_lora in export.files; it merges the adapter into the base"


def validate(request: Request, *, base: str = "f16", kind: str = "f16") -> Iterator[TunesmithError]:
    """Yields why the adapter cannot be written: parts that the format cannot hold, or an unsupported base."""
    adapter = request.recipe.adapter
    parts = {
        "the magnitudes of adapter.dora": adapter.dora,
        f"the full weights of adapter.train_also ({', '.join(adapter.train_also)})": bool(adapter.train_also),
        f"the biases that adapter.bias: {adapter.bias} trains": adapter.bias != "none",
    }
    errors: list[TunesmithError] = [
        RecipeError(f"a GGUF adapter cannot hold {part}", where=WHERE, next=ADVICE)
        for part, trained in parts.items()
        if trained
    ]
    if architecture_from_weights(request.job.weights).covered(adapter.layers, adapter.experts)[1]:
        problem, advice = "a GGUF adapter cannot hold updates of experts", f"Set adapter.experts to none. Or: {ADVICE}"
        errors.append(RecipeError(problem, where=WHERE, next=advice))
    errors = [*errors, *merge_errors(request, "gguf_lora"), *conversion_errors(request.job)]
    yield from errors
    if not errors:
        try:
            check_adapter(request.job, adapter.layers)
        except ModelError as error:
            yield ModelError(error.what, where=WHERE, next=error.next)


def warnings(request: Request, **_: Any) -> Iterator[str]:
    """Yields why the files are not expected to pass verification."""
    yield from known_differences(request.job)


def write(job: Job, *, base: Literal["f16", "bf16", "f32", "q8_0"] = "f16", kind: Literal["f16", "f32"] = "f16") -> list[File]:  # noqa: E501  # fmt: skip
    """Writes the adapter in type `kind`, and beside it a file of the base alone in type `base`.

    Another file of the same base also works, as far as its weights match those of training.
    """
    folder = job.out("gguf_lora")
    lora, base_file = folder / f"{job.name}.lora.gguf", folder / f"base.{base}.gguf"
    missing = [path for path in (lora, base_file) if job.must_write(path, "gguf_lora")]
    if missing:
        _check_adapter(job)
        check_base(job)
    if lora in missing:
        converted = convert_adapter(job, job.work / lora.name, kind)
        rewrite_header(converted, gguf_metadata(job, read_header(converted)))
        lora.parent.mkdir(parents=True, exist_ok=True)
        converted.replace(lora)
    if base_file in missing:
        _write_base(job, base_file, base)
    command = f"llama-server -m {shlex.quote(str(base_file))} --lora {shlex.quote(str(lora))} --jinja --temp 0"
    return [
        File("gguf_lora", lora, exact=base != "q8_0", commands={"llama.cpp": command}, notes={"base": str(base_file)})
    ]


def opened(job: Job, file: File) -> Runtime:
    """Opens the base's file with the adapter in llama.cpp."""
    return GgufModel(Path(file.notes["base"]), lora=file.path, stop=job.stop, slots=SLOTS, context=job.context)


def _check_adapter(job: Job) -> None:
    """Raises ModelError for an adapter that cannot be written as a GGUF adapter."""
    config, tensors = read_adapter(job.adapter, architecture_from_weights(job.weights))
    full_tensors = [name for name in tensors if not name.endswith((".lora_A", ".lora_B"))]
    stacked = [name for name, tensor in tensors.items() if name.endswith(".lora_A") and len(tensor) != config["r"]]
    if config.get("use_dora") or full_tensors or stacked:
        content = "DoRA's magnitudes" if config.get("use_dora") else "updates of experts"
        content = f"'{full_tensors[0]}', which was trained whole" if full_tensors else content
        raise ModelError(f"a GGUF adapter cannot hold {content}", where=WHERE, next=ADVICE)


def _write_base(job: Job, target: Path, quantization_type: str) -> None:
    unquantized = job.work / "base.f16.gguf"
    if not unquantized.exists():
        convert(job, merge(job, job.work / "base", torch.float16, adapter=False), unquantized, "f16")
    shutil.rmtree(job.work / "base", ignore_errors=True)
    quantize(
        unquantized, {quantization_type: target}, metadata=gguf_metadata(job, read_header(unquantized), adapter=False)
    )
    unquantized.unlink()
