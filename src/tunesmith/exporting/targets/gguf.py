"""Merges base and adapter into GGUF files for llama.cpp, Ollama and LM Studio, several types in one pass."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.config.registry import raise_first
from tunesmith.errors import TunesmithError
from tunesmith.exporting.convert import check_base, conversion_errors, convert, gguf_metadata, known_differences
from tunesmith.exporting.job import File, Job, Request, Runtime
from tunesmith.exporting.merge import merge
from tunesmith.exporting.quantize import quantize
from tunesmith.exporting.targets._shipped import merge_errors, type_error
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.models.gguf_header import read_header

EXACT = ("f32", "f16", "bf16", "q8_0")
SELECT = {"types"}
SLOTS = 4


def wrong_options(types: Any = ("q4_k_m",), **_: Any) -> Iterator[tuple[str, str, str]]:
    """Yields problems of the options that do not depend on the model."""
    if not isinstance(types, list | tuple) or not types:
        yield "types", f"'types' must be a list of types, not {types!r}", "Write it as types: [q4_k_m, q8_0]"
        return
    yield from (("types", *problem) for name in types if (problem := type_error(name)))


def validate(request: Request, *, types: Sequence[str] = ("q4_k_m",), source: str = "f16") -> Iterator[TunesmithError]:
    """Yields why the files cannot be written: the base cannot be merged, or llama.cpp's converter refuses it."""
    yield from merge_errors(request, "gguf")
    yield from conversion_errors(request.job)


def warnings(request: Request, **_: Any) -> Iterator[str]:
    """Yields why the files are not expected to pass verification."""
    yield from known_differences(request.job)


def write(job: Job, *, types: Sequence[str] = ("q4_k_m",), source: Literal["f16", "bf16", "f32"] = "f16") -> list[File]:
    """Writes one file for each of `types`: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s.

    `source` is the type that is quantized: f16 keeps three more bits of a small update than bf16, and needs half the
    temporary disk space of f32.
    """
    raise_first(wrong_options(types), "export.files: gguf")
    targets = {gguf_type: job.out("gguf") / f"{job.name}.{gguf_type}.gguf" for gguf_type in types}
    missing = {gguf_type: path for gguf_type, path in targets.items() if job.must_write(path, "gguf")}
    if missing:
        unquantized = _unquantized_file(job, source)
        job.say(f"quantizing to {', '.join(missing)}")
        quantize(unquantized, missing, metadata=gguf_metadata(job, read_header(unquantized)))
        unquantized.unlink()
    return [File(gguf_type, path, gguf_type in EXACT, _commands(path)) for gguf_type, path in targets.items()]


def opened(job: Job, file: File) -> Runtime:
    """Opens llama.cpp's server in a separate process, with the file's own template and tokenizer."""
    return GgufModel(file.path, stop=job.stop, slots=SLOTS, context=job.context)


def _unquantized_file(job: Job, kind: str) -> Path:
    """Returns the merged model in 16 or 32 bits as one GGUF file; removes the merged folder."""
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
