"""Base and adapter as GGUF files for llama.cpp, Ollama, LM Studio: several types in one pass."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.config.registry import raise_first
from tunesmith.errors import TunesmithError
from tunesmith.exporting.convert import check_base, convert, differences, refusals
from tunesmith.exporting.gguf_metadata import metadata_of
from tunesmith.exporting.job import File, Job, Request, Runtime
from tunesmith.exporting.merge import merge
from tunesmith.exporting.quantize import quantise
from tunesmith.exporting.targets._shipped import cannot_merge, unknown_type
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.models.gguf_header import read_header

EXACT = ("f32", "f16", "bf16", "q8_0")
SELECT = {"types"}
SLOTS = 4


def wrong_options(types: Any = ("q4_k_m",), **_: Any) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the options, whatever the model."""
    if not isinstance(types, list | tuple) or not types:
        yield "types", f"'types' must be a list of types, not {types!r}", "Write it as types: [q4_k_m, q8_0]"
        return
    yield from (("types", *wrong) for each in types if (wrong := unknown_type(each)))


def validate(request: Request, *, types: Sequence[str] = ("q4_k_m",), source: str = "f16") -> Iterator[TunesmithError]:
    """Why the files cannot be made: a base that cannot be merged, or that llama.cpp's converter refuses."""
    yield from cannot_merge(request, "gguf")
    yield from refusals(request.job)


def warnings(request: Request, **_: Any) -> Iterator[str]:
    """Why the files are not expected to be verified."""
    yield from differences(request.job)


def write(job: Job, *, types: Sequence[str] = ("q4_k_m",), source: Literal["f16", "bf16", "f32"] = "f16") -> list[File]:
    """`types`: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, any of them.

    `source` is what the others are made from: f16 keeps three bits more of a small update than bf16, and takes half
    the disk of f32 while it works.
    """
    raise_first(wrong_options(types), "export.files: gguf")
    targets = {mix: job.out("gguf") / f"{job.name}.{mix}.gguf" for mix in types}
    missing = {mix: path for mix, path in targets.items() if job.lacks(path, "gguf")}
    if missing:
        whole = _whole(job, source)
        job.say(f"quantising to {', '.join(missing)}")
        quantise(whole, missing, metadata=metadata_of(job, read_header(whole)))
        whole.unlink()
    return [File(mix, path, mix in EXACT, _commands(path)) for mix, path in targets.items()]


def opened(job: Job, file: File) -> Runtime:
    """llama.cpp's server in a process apart, with the template and the tokenizer of the file alone."""
    return GgufModel(file.path, stop=job.stop, slots=SLOTS, context=job.context)


def _whole(job: Job, kind: str) -> Path:
    """The model in 16 or 32 bits as one GGUF file; the merged weights it is made from are gone then."""
    target = job.work / f"whole.{kind}.gguf"
    if target.exists():
        return target
    check_base(job)
    job.say("merging the adapter into the base")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[kind]
    folder = merge(job, job.work / "merged", dtype)
    job.say("converting to GGUF")
    convert(job, folder, target, kind)
    shutil.rmtree(folder)
    return target


def _commands(path: Path) -> dict[str, str]:
    name = shlex.quote(str(path))
    return {"llama.cpp": f"llama-server -m {name} --jinja --temp 0", "tunesmith": f"tunesmith chat {name}"}
