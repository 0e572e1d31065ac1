"""Merges an adapter into its base model as a transformers folder, with one tensor in memory at a time.

W' = W + s B A, in float32 and rounded once (Hu et al. 2021, arXiv:2106.09685); with DoRA, each row of W' is rescaled to
its trained magnitude (Liu et al. 2024, arXiv:2402.09353). The recipe's `export.merge_into` selects W: the weight that
training used, quantized to NF4 and dequantized, or the original weight.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, ResourceError
from tunesmith.exporting.chat_template import (
    eos_token_ids,
    literal,
    portable_config,
    strip_generation_tags,
    with_defaults,
)
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge_experts import ExpertTensors, ExpertUpdate, dequantized_headers, expert_updates
from tunesmith.models.adapter import read_adapter
from tunesmith.models.architecture import Architecture, architecture_from_weights
from tunesmith.models.expert_packing import MXFP4_BLOCKS, MXFP4_SCALES, from_mxfp4
from tunesmith.models.weights import Weights, read_config, tensor_headers
from tunesmith.prompt.tokens import stop_ids
from tunesmith.runs.run import sync_folder, translate_disk_errors, write_atomic

SHARD = 1 << 30  # approximate bytes of a file; a resumed merge skips finished files
SPARE = 64 << 20  # bytes of disk to leave free
COMPLETE_FILE = "config.json"  # written last: a folder with it is complete
FLOAT16_MAX = 65504.0  # of float16
_SAFETENSORS_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_NF4_SUFFIXES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4")


@dataclass(frozen=True)
class _Update:
    """The LoRA update of one layer: A (rank x in), B (out x rank), their scale, DoRA's magnitude (out)."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None


@dataclass(frozen=True)
class _OutputTensor:
    """A tensor of the merged model: its name, shape and dtype, and the function that computes it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _report_bytes(on_progress: Callable[[int, int], None], before: int, total: int, count: int) -> None:
    on_progress(before + count, total)


def merge(
    job: Job,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    adapter: bool = True,
    on_progress: Callable[[int, int], None] = lambda bytes_written, of: None,
) -> Path:
    """Merges the adapter into the base and writes a transformers folder; with `adapter` False, writes the base alone.

    `dtype` applies to all weights; None keeps the base's. `on_progress` receives bytes done and in total. After an
    interruption, the same call resumes after the last finished file. Raises ModelError for weights that cannot be
    merged, ResourceError if the disk is too small.
    """
    if (folder / COMPLETE_FILE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(_output_tensors(job, dtype, adapter=adapter))
    shards = _shards(tensors)
    total = sum(out.bytes for out in tensors)
    names = _shard_names(len(shards))
    _check_disk_space(folder, sum(sum(o.bytes for o in s) for s, n in zip(shards, names, strict=True) if not (folder / n).exists()))  # noqa: E501  # fmt: skip
    bytes_written = 0
    with torch.no_grad():
        for name, shard in zip(names, shards, strict=True):
            if not (folder / name).exists():
                report = functools.partial(_report_bytes, on_progress, bytes_written, total)
                _write_shard(folder / name, shard, report)
            bytes_written += sum(out.bytes for out in shard)
            on_progress(bytes_written, total)
    if len(names) > 1:
        index = {out.name: name for name, shard in zip(names, shards, strict=True) for out in shard}
        index_content = {"metadata": {"total_size": total}, "weight_map": index}
        write_atomic(folder / "model.safetensors.index.json", json.dumps(index_content, indent=1) + "\n")
    write_config_files(job, folder, dtype)
    return folder


def write_config_files(job: Job, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the files beside the weights: tokenizer, training template, stop tokens, configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = job.template.tokenizer
    former_template = tokenizer.chat_template
    tokenizer.chat_template = shipped_template(job)
    try:
        with translate_disk_errors(folder):
            tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = former_template
    _write_tokenizer_config(folder / "tokenizer_config.json", job)
    base_vocabulary = job.weights.folder / "tokenizer.model"
    if base_vocabulary.is_file():
        shutil.copyfile(base_vocabulary, folder / "tokenizer.model")
    stops = stop_ids(job.template)
    config = text_model_config(architecture_from_weights(job.weights), job.weights)
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    _complete_config(config)
    config["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    generation = {"bos_token_id": config.get("bos_token_id"), "eos_token_id": eos_token_ids(job), "do_sample": False}
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=1) + "\n")
    write_atomic(folder / COMPLETE_FILE, json.dumps(config, indent=1) + "\n")
    sync_folder(folder)


def _complete_config(config: dict[str, Any]) -> None:
    """Adds the keys that transformers 5 omits or renames and that llama.cpp's converter needs."""
    kind = config.get("model_type")
    if kind == "gpt2":
        config.setdefault("n_ctx", config.get("n_positions", 1024))
    if kind == "deepseek_v3":  # without it, llama.cpp routes experts by softmax
        config.setdefault("scoring_func", "sigmoid")
    if config.get("architectures") == ["PhimoeForCausalLM"]:  # the converter expects the name in Microsoft's files
        config["architectures"] = ["PhiMoEForCausalLM"]


def text_model_config(model: Architecture, weights: Weights) -> dict[str, Any]:
    """Returns config.json of the trained model: the base's, or that of the text model in an image-text model."""
    config = read_config(weights.folder, weights.name)
    if model.whole:
        text_values, stored_text = model.config.to_dict(), config.get("text_config", {})
        if stored_text.get("model_type") == model.family and any(key.startswith("rope") for key in stored_text):
            rope = {
                key: value for key, value in stored_text.items() if key.startswith("rope")
            }  # the key names that other programs read
            text_values = {key: value for key, value in text_values.items() if not key.startswith("rope")} | rope
        config = {**text_values, "tie_word_embeddings": model.tied, "architectures": [type(model.network).__name__]}
    for key in ("quantization_config", "auto_map", "_name_or_path"):
        config.pop(key, None)
    return config


def _write_tokenizer_config(path: Path, job: Job) -> None:
    """Makes tokenizer_config.json portable and writes add_bos_token as in training.

    transformers 5 omits that key, and without it llama.cpp adds a start token to each text of SentencePiece models.
    """
    tokenizer = job.template.tokenizer
    config = portable_config(json.loads(path.read_text(encoding="utf-8")), job.weights.folder)
    config.setdefault("added_tokens_decoder", _added_tokens(tokenizer))
    write_atomic(
        path, json.dumps({**config, "add_bos_token": starts_with_bos(job)}, indent=2, ensure_ascii=False) + "\n"
    )


def starts_with_bos(job: Job) -> bool:
    """Returns whether a training prompt begins with the start token."""
    start = job.template.tokenizer.bos_token
    return bool(start) and job.template.render((Turn("user", "a"),), generate=True).startswith(start)


def _added_tokens(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Returns the added tokens by id: llama.cpp's converter reads them only from here."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        str(at): {flag: getattr(token, flag) for flag in flags} for at, token in tokenizer.added_tokens_decoder.items()
    }


def shipped_template(job: Job) -> str:
    """Returns the chat template as plain Jinja, with the values used in training as defaults.

    These are the recipe's template options, its system message for conversations without one, and whether a text begins
    with the start token.
    """
    text = with_defaults(strip_generation_tags(job.template.text), job.template.options)
    if job.system and _takes_system(job):
        content = [{"type": "text", "text": job.system}] if job.template._wants_parts else job.system
        first = f"[{{'role': 'system', 'content': {literal(content)}}}]"
        text = f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = {first} + messages %}}{{% endif %}}{text}"
    if "starts_with_bos" in text:
        text = f"{{% set starts_with_bos = {str(job.template.starts_with_bos).lower()} %}}{text}"
    return text


def _takes_system(job: Job) -> bool:
    with contextlib.suppress(ModelError):
        job.template.render((Turn("system", job.system or ""), Turn("user", "a")), generate=True)
        return True
    return False


# --- tensors of the merged model -------------------------------------------------------------------------------


def _output_tensors(job: Job, dtype: torch.dtype | None, *, adapter: bool) -> Iterator[_OutputTensor]:
    model = architecture_from_weights(job.weights)
    linears, transposed, tied_head = model.linear(), model.transposed, f"{model.head}." if model.tied else "\0"
    stored = tensor_headers(job.weights.folder)
    headers = dequantized_headers(stored)
    updates, full_tensors, targets = _adapter(job) if adapter else ({}, {}, [])
    parameters = model.parameter_names(headers)
    files = {text: name for name in headers if not name.endswith(_NF4_SUFFIXES) and (text := model.text_name(name))}
    experts = _experts(job, model, stored, files, updates, targets)
    for output_name, name in files.items():
        path, shape, kind = headers[name]
        parameter, unfused = parameters.get(name, ("", False))
        output_dtype = _stored_dtype(kind, job) if dtype is None else dtype
        if output_name in experts:
            yield _OutputTensor(output_name, shape, output_dtype, functools.partial(experts.merged, output_name))
            continue
        if parameter.startswith(tied_head):
            continue  # some files also hold the tied head
        layer = parameter.removesuffix(".weight")
        if unfused and parameter.endswith(".weight") and layer in linears:
            size = linears[layer][::-1]
            make = functools.partial(
                _merged_layer, job, path, name, size, updates.pop(layer, None), transposed=transposed
            )
            yield _OutputTensor(output_name, size[::-1] if transposed else size, output_dtype, make)
            continue
        trained = full_tensors.pop(parameter, None) if unfused else None
        yield _OutputTensor(
            output_name,
            shape,
            output_dtype,
            functools.partial(_read_tensor, path, name) if trained is None else trained.float,
        )
    unused = [*updates, *(name for name in full_tensors if not name.startswith(tied_head))]
    if unused:
        raise ModelError(
            f"the base's files hold no weight for the adapter's '{unused[0]}'", where=job.weights.name,
            next="Set base.model to the model that the adapter was trained on; another base cannot be used",
        )  # fmt: skip


def _experts(
    job: Job,
    model: Architecture,
    stored: Mapping[str, tuple[Path, Any, str]],
    files: Mapping[str, str],
    updates: dict[str, _Update],
    targets: Sequence[str],
) -> ExpertTensors:
    """Returns the expert tensors of the text model; moves their updates out of `updates`, by PEFT's `targets`.

    `stored` are the tensors of the files with their paths; `files` maps names in the text model to names in the files.
    """
    packed_from = getattr(torch, job.precision) if job.merge_into == "quantized" and job.bits == 4 else None

    def read(name: str) -> Tensor:
        stored_name = files[name]
        if stored_name in stored:
            return _read_tensor(stored[stored_name][0], stored_name)
        blocks, scales = (
            _read_tensor(stored[stored_name + end][0], stored_name + end) for end in (MXFP4_BLOCKS, MXFP4_SCALES)
        )
        return from_mxfp4(blocks, scales, torch.float32)

    experts = ExpertTensors(model.network, files, read, packed_from)
    if updates:
        expert_lora, module_names = expert_updates(
            model.network,
            targets,
            {name: ExpertUpdate(update.a, update.b, update.scale) for name, update in updates.items()},
        )
        experts.take(expert_lora)
        for name in module_names:
            del updates[name]
    return experts


def _adapter(job: Job) -> tuple[dict[str, _Update], dict[str, Tensor], list[str]]:
    """Returns the updates by layer, the fully trained tensors by name, and PEFT's target_parameters."""
    config, tensors = read_adapter(job.adapter, architecture_from_weights(job.weights))
    rank, alpha = int(str(config["r"])), float(str(config["lora_alpha"]))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    updates = {}
    for name in [name for name in tensors if name.endswith(".lora_A")]:
        layer = name.removesuffix(".lora_A")
        magnitude = tensors.pop(f"{layer}.lora_magnitude_vector", None)
        updates[layer] = _Update(tensors.pop(name), tensors.pop(f"{layer}.lora_B"), scale, magnitude)
    full_tensors = {  # PEFT calls the bias of a layer with an update base_layer's
        name.replace(".base_layer.", ".") if name.endswith(".bias") else f"{name}.weight": tensor
        for name, tensor in tensors.items()
    }
    return updates, full_tensors, [str(name) for name in cast("list[object]", config.get("target_parameters") or [])]


def _merged_layer(
    job: Job, path: Path, name: str, size: tuple[int, int], update: _Update | None, *, transposed: bool
) -> Tensor:
    weight = _add_update(_base_weight(job, path, name, size, transposed=transposed), update)
    return weight.T if transposed else weight


def _add_update(weight: Tensor, update: _Update | None) -> Tensor:
    if update is None:
        return weight
    updated = torch.addmm(weight, update.b, update.a, alpha=update.scale)
    if update.magnitude is not None:
        updated *= (update.magnitude / torch.linalg.vector_norm(updated, dim=1))[:, None]
    return updated


def _base_weight(job: Job, path: Path, name: str, size: tuple[int, int], *, transposed: bool) -> Tensor:
    """Returns the weight (out x in, float32) that the update is added to."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    tensor = _read_tensor(path, name)
    if tensor.dtype == torch.uint8:  # the files store 4-bit weights
        if job.merge_into == "original":
            advice = "Set export.merge_into to quantized, or train on the unquantized model"
            raise ModelError("the base's files hold 4 bits, not the original weights", where=job.weights.name, next=advice)  # noqa: E501  # fmt: skip
        dequantized: Tensor = dequantize_4bit(tensor, _nf4_state(path, name))
        return dequantized.reshape(size).float()
    weight = (tensor.T if transposed else tensor).contiguous()
    if job.merge_into == "quantized" and job.bits == 4:
        weight = weight.to(getattr(torch, job.precision))
        weight = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
    return weight.float()


def _nf4_state(path: Path, name: str) -> Any:
    from bitsandbytes.functional import QuantState
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{name}.")}  # noqa: SIM118
    return QuantState.from_dict(tensors, device=torch.device("cpu"))


def _read_tensor(path: Path, name: str) -> Tensor:
    """Reads one tensor; closes the file, so that its mapped pages leave memory."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights cannot be read: {error}", where=str(path)) from error


def _stored_dtype(kind: str, job: Job) -> torch.dtype:
    dtypes = {word: dtype for dtype, word in _SAFETENSORS_DTYPES.items()}
    return dtypes.get(kind, torch.float16 if job.precision == "float16" else torch.bfloat16)


# --- writing -----------------------------------------------------------------------------------------------------


def _shards(tensors: Sequence[_OutputTensor]) -> list[list[_OutputTensor]]:
    shards: list[list[_OutputTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(member.bytes for member in shards[-1]) + tensor.bytes > SHARD:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _shard_names(count: int) -> list[str]:
    return ["model.safetensors"] if count == 1 else [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]  # noqa: E501  # fmt: skip


def _check_disk_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise ResourceError(
            f"the merged weights need {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free",
            where=str(folder),
            next="Free some space, or store the runs on another disk with --runs",
        )


def _write_shard(path: Path, shard: Sequence[_OutputTensor], on_progress: Callable[[int], None]) -> None:
    """Writes a safetensors file tensor by tensor (https://huggingface.co/docs/safetensors)."""
    offset, entries = 0, {}
    for tensor in shard:
        entries[tensor.name] = {
            "dtype": _SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    head += b" " * (-len(head) % 8)
    temporary = path.with_name(f".{path.name}.part")
    with translate_disk_errors(path):
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            bytes_done = 0
            for tensor in shard:
                _write_tensor(file, tensor)
                bytes_done += tensor.bytes
                on_progress(bytes_done)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


def _write_tensor(file: IO[bytes], out: _OutputTensor) -> None:
    values = out.make()
    if tuple(values.shape) != out.shape:
        raise ModelError(f"'{out.name}' is {tuple(values.shape)}, not {out.shape}", where=file.name)
    lowest, highest = (float(bound) for bound in values.aminmax())  # avoids a copy: embeddings can have gigabytes
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ModelError(f"'{out.name}' holds values that are infinite or NaN", where=file.name, next="Train again")
    if out.dtype == torch.float16 and max(-lowest, highest) > FLOAT16_MAX:
        advice = "Export in bf16 or f32"
        raise ModelError(f"'{out.name}' holds {max(-lowest, highest):g}, more than float16 can", where=file.name, next=advice)  # noqa: E501  # fmt: skip
    file.write(values.to(out.dtype).contiguous().view(torch.uint8).numpy().data)
