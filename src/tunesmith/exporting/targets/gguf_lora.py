"""The adapter alone as a GGUF file, which llama.cpp loads beside a file of the base."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.errors import ModelError, RecipeError, TunesmithError
from tunesmith.exporting.convert import check_adapter, check_base, convert, convert_adapter, differences, refusals
from tunesmith.exporting.gguf_metadata import metadata_of
from tunesmith.exporting.job import File, Job, Request, Runtime
from tunesmith.exporting.merge import merge
from tunesmith.exporting.quantize import quantise, rewrite_header
from tunesmith.exporting.targets._shipped import cannot_merge
from tunesmith.exporting.targets.gguf import SLOTS
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.models.adapter import read_adapter
from tunesmith.models.architecture import architecture_from_weights
from tunesmith.models.gguf_header import read_header

WHERE = "export.files: gguf_lora"
ADVICE = "Leave gguf_lora out of export.files; gguf, which merges the adapter into the base, can hold it"


def validate(request: Request, *, base: str = "f16", kind: str = "f16") -> Iterator[TunesmithError]:
    """Why the adapter cannot be made: parts that the format has no place for, or a base that is not known."""
    adapter = request.recipe.adapter
    parts = {
        "the magnitudes of adapter.dora": adapter.dora,
        f"what adapter.train_also trains whole ({', '.join(adapter.train_also)})": bool(adapter.train_also),
        f"the biases that adapter.bias: {adapter.bias} trains": adapter.bias != "none",
    }
    wrong: list[TunesmithError] = [
        RecipeError(f"a GGUF adapter cannot hold {part}", where=WHERE, next=ADVICE)
        for part, trained in parts.items()
        if trained
    ]
    if architecture_from_weights(request.job.weights).covered(adapter.layers, adapter.experts)[1]:
        what, advice = "a GGUF adapter cannot hold updates of experts", f"Set adapter.experts to none. Or: {ADVICE}"
        wrong.append(RecipeError(what, where=WHERE, next=advice))
    wrong = [*wrong, *cannot_merge(request, "gguf_lora"), *refusals(request.job)]
    yield from wrong
    if not wrong:
        try:
            check_adapter(request.job, adapter.layers)
        except ModelError as error:
            yield ModelError(error.what, where=WHERE, next=error.next)


def warnings(request: Request, **_: Any) -> Iterator[str]:
    """Why the files are not expected to be verified."""
    yield from differences(request.job)


def write(job: Job, *, base: Literal["f16", "bf16", "f32", "q8_0"] = "f16", kind: Literal["f16", "f32"] = "f16") -> list[File]:  # noqa: E501  # fmt: skip
    """`base`: type of the base's file that is written beside it, without the adapter; `kind`: of the adapter's.

    A file of the same base from elsewhere serves as well, as near as its weights are to those of the training.
    """
    folder = job.out("gguf_lora")
    lora, beside = folder / f"{job.name}.lora.gguf", folder / f"base.{base}.gguf"
    missing = [path for path in (lora, beside) if job.lacks(path, "gguf_lora")]
    if missing:
        _check(job)
        check_base(job)
    if lora in missing:
        made = convert_adapter(job, job.work / lora.name, kind)
        rewrite_header(made, metadata_of(job, read_header(made)))
        lora.parent.mkdir(parents=True, exist_ok=True)
        made.replace(lora)
    if beside in missing:
        _write_base(job, beside, base)
    command = f"llama-server -m {shlex.quote(str(beside))} --lora {shlex.quote(str(lora))} --jinja --temp 0"
    return [File("gguf_lora", lora, exact=base != "q8_0", commands={"llama.cpp": command}, notes={"base": str(beside)})]


def opened(job: Job, file: File) -> Runtime:
    """llama.cpp over the base's file, the adapter beside it."""
    return GgufModel(Path(file.notes["base"]), lora=file.path, stop=job.stop, slots=SLOTS, context=job.context)


def _check(job: Job) -> None:
    """Raises ModelError for an adapter that a GGUF adapter cannot hold."""
    config, tensors = read_adapter(job.adapter, architecture_from_weights(job.weights))
    odd = [name for name in tensors if not name.endswith((".lora_A", ".lora_B"))]
    stacked = [name for name, tensor in tensors.items() if name.endswith(".lora_A") and len(tensor) != config["r"]]
    if config.get("use_dora") or odd or stacked:
        what = "DoRA's magnitudes" if config.get("use_dora") else "updates of experts"
        what = f"'{odd[0]}', which was trained whole" if odd else what
        raise ModelError(f"a GGUF adapter cannot hold {what}", where=WHERE, next=ADVICE)


def _write_base(job: Job, target: Path, mix: str) -> None:
    whole = job.work / "base.f16.gguf"
    if not whole.exists():
        convert(job, merge(job, job.work / "base", torch.float16, adapter=False), whole, "f16")
    shutil.rmtree(job.work / "base", ignore_errors=True)
    quantise(whole, {mix: target}, metadata=metadata_of(job, read_header(whole), adapter=False))
    whole.unlink()
