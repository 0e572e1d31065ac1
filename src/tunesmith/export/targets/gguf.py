"""Base and adapter as GGUF files for llama.cpp, Ollama, LM Studio: several types in one pass."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from tunesmith.errors import RecipeError
from tunesmith.export.convert import check_base, convert
from tunesmith.export.job import File, Job, Runtime
from tunesmith.export.merge import merge
from tunesmith.export.mix import MIXES
from tunesmith.export.quantise import quantise
from tunesmith.find import nearest
from tunesmith.generate.from_gguf import FromGguf

EXACT = ("f32", "f16", "bf16", "q8_0")
SLOTS = 4


def write(job: Job, *, types: Sequence[str] = ("q4_k_m",), source: Literal["f16", "bf16", "f32"] = "f16") -> list[File]:
    """`types`: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, any of them.

    `source` is what the others are made from: f16 keeps three bits more of a small update than bf16, and takes half
    the disk of f32 while it works.
    """
    targets = {mix: job.folder / "gguf" / f"{job.name}.{mix}.gguf" for mix in map(_known, types)}
    missing = {mix: path for mix, path in targets.items() if not path.exists()}
    if missing:
        whole = _whole(job, source)
        job.say(f"quantising to {', '.join(missing)}")
        quantise(whole, missing)
        whole.unlink()
    return [File(mix, path, mix in EXACT, _commands(path, job)) for mix, path in targets.items()]


def opened(job: Job, file: File) -> Runtime:
    """llama.cpp's server in a process apart, with the template and the tokenizer of the file alone."""
    return FromGguf(file.path, stop=job.stop, slots=SLOTS, context=job.context)


def _known(mix: str) -> str:
    if mix not in MIXES:
        raise RecipeError(f"unknown type '{mix}'", where="export.files: gguf.types", next=nearest(mix, MIXES))
    return mix


def _whole(job: Job, kind: str) -> Path:
    """The model in 16 or 32 bits as one GGUF file; the merged weights it is made from are gone then."""
    work = job.folder / ".work"
    target = work / f"whole.{kind}.gguf"
    if target.exists():
        return target
    check_base(job)
    job.say("merging the adapter into the base")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[kind]
    folder = merge(job, work / "merged", dtype)
    job.say("converting to GGUF")
    convert(job, folder, target, kind)
    shutil.rmtree(folder)
    return target


def _commands(path: Path, job: Job) -> dict[str, str]:
    return {
        "llama.cpp": f"llama-server -m {path} --jinja --temp 0",
        "tunesmith": f"tunesmith chat {path}",
    }
