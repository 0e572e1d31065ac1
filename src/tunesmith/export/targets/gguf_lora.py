"""The adapter alone as a GGUF file, which llama.cpp loads beside a file of the base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch

from tunesmith.errors import ModelError
from tunesmith.export.convert import check_base, convert, convert_adapter
from tunesmith.export.job import File, Job, Runtime
from tunesmith.export.merge import describe, merge
from tunesmith.export.quantise import quantise
from tunesmith.export.targets.gguf import SLOTS
from tunesmith.generate.from_gguf import FromGguf
from tunesmith.model.adapter import read_adapter, write_adapter
from tunesmith.model.architecture import architecture


def write(job: Job, *, base: Literal["f16", "bf16", "f32", "q8_0"] = "f16", kind: Literal["f16", "f32"] = "f16") -> list[File]:  # noqa: E501  # fmt: skip
    """`base`: type of the base's file that is written beside it, without the adapter; `kind`: of the adapter's.

    A file of the same base from elsewhere serves as well, as near as its weights are to those of the training.
    """
    folder = job.folder / "gguf_lora"
    lora, beside = folder / f"{job.name}.lora.gguf", folder / f"base.{base}.gguf"
    if not (lora.exists() and beside.exists()):
        _check(job)
        check_base(job)
    if not lora.exists():
        known = job.folder / ".work" / "described"
        describe(job, known)
        named = job.folder / ".work" / "adapter"
        named.mkdir(parents=True, exist_ok=True)
        write_adapter(named, *read_adapter(job.adapter, architecture(job.weights)))  # with the text model's own names
        convert_adapter(job, named, known, lora, kind)
        shutil.rmtree(known)
        shutil.rmtree(named)
    if not beside.exists():
        _write_base(job, beside, base)
    command = f"llama-server -m {beside} --lora {lora} --jinja --temp 0"
    return [File("gguf_lora", lora, exact=base != "q8_0", commands={"llama.cpp": command}, notes={"base": str(beside)})]


def opened(job: Job, file: File) -> Runtime:
    """llama.cpp over the base's file, the adapter beside it."""
    return FromGguf(Path(file.notes["base"]), lora=file.path, stop=job.stop, slots=SLOTS, context=job.context)


def _check(job: Job) -> None:
    config, tensors = read_adapter(job.adapter, architecture(job.weights))
    odd = [name for name in tensors if not name.endswith((".lora_A", ".lora_B"))]
    if config.get("use_dora") or odd:
        what = "DoRA's lengths" if config.get("use_dora") else f"'{odd[0]}', which was trained whole"
        raise ModelError(
            f"a GGUF adapter cannot hold {what}", where="export.files: gguf_lora", next="Leave it out, and ship gguf"
        )


def _write_base(job: Job, target: Path, mix: str) -> None:
    work = job.folder / ".work"
    whole = work / "base.f16.gguf"
    if not whole.exists():
        convert(job, merge(job, work / "base", torch.float16, adapter=False), whole, "f16")
    shutil.rmtree(work / "base", ignore_errors=True)
    quantise(whole, {mix: target})
    whole.unlink()
