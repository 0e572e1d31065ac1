"""A base and an adapter as one folder of plain weights, one tensor in memory at a time.

W' = W + s B A, in float32 and rounded once (Hu et al. 2021, arXiv:2106.09685); with DoRA each output of that is brought
to its trained length (Liu et al. 2024, arXiv:2402.09353). W is the weight that training multiplied by, quantised to NF4
and back, or the weight as it came: the recipe's `export.onto`.
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
from tunesmith.exporting.chat_template import literal, strip_generation_tags, with_defaults
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge_experts import ExpertTensors, ExpertUpdate, expert_updates, without_mxfp4
from tunesmith.exporting.tokenizer_config import ends_of, portable
from tunesmith.models.adapter import read_adapter
from tunesmith.models.architecture import Architecture, architecture_from_weights
from tunesmith.models.expert_packing import MXFP4_BLOCKS, MXFP4_SCALES, from_mxfp4
from tunesmith.models.weights import Weights, read_config, tensor_headers
from tunesmith.prompt.tokens import stop_ids
from tunesmith.runs.run import sync_folder, translate_disk_errors, write_atomic

SHARD = 1 << 30  # bytes of a file, about; a finished one is not made again
SPARE = 64 << 20  # bytes of disk left free beside the folder's own
DONE = "config.json"  # written last: a folder with it is whole
LARGEST = 65504.0  # of float16
_WORDS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
_PACKED = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4")


@dataclass(frozen=True)
class _Update:
    """What is added to one layer: A (rank x in), B (out x rank), their scale, DoRA's magnitude (out)."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None


@dataclass(frozen=True)
class _Out:
    """A tensor of the folder: its name, shape and number type, and how to make it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def merge(
    job: Job,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    adapter: bool = True,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Path:
    """Writes base and adapter (`adapter` False: the base alone, as `onto` says) as a folder that transformers reads.

    `dtype` is that of all weights, as they came where None is given. `tell` hears how many bytes are done. Stopped, the
    same call goes on behind the last finished file. Raises ModelError for weights that cannot be merged, ResourceError
    when the disk is too small.
    """
    if (folder / DONE).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    outs = list(_outs(job, dtype, adapter=adapter))
    shards = _shards(outs)
    total = sum(out.bytes for out in outs)
    names = _names(len(shards))
    _check_room(folder, sum(sum(o.bytes for o in s) for s, n in zip(shards, names, strict=True) if not (folder / n).exists()))  # noqa: E501  # fmt: skip
    done = 0
    with torch.no_grad():
        for name, shard in zip(names, shards, strict=True):
            if not (folder / name).exists():
                _write(folder / name, shard, lambda size, done=done: tell(done + size, total))  # type: ignore[misc]
            done += sum(out.bytes for out in shard)
            tell(done, total)
    if len(names) > 1:
        index = {out.name: name for name, shard in zip(names, shards, strict=True) for out in shard}
        whole = {"metadata": {"total_size": total}, "weight_map": index}
        write_atomic(folder / "model.safetensors.index.json", json.dumps(whole, indent=1) + "\n")
    describe(job, folder, dtype)
    return folder


def describe(job: Job, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes what stands beside the weights: tokenizer, template of the training, stop tokens, configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = job.template.tokenizer
    kept = tokenizer.chat_template
    tokenizer.chat_template = shipped_template(job)
    try:
        with translate_disk_errors(folder):
            tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = kept
    _write_tokenizer_config(folder / "tokenizer_config.json", job)
    own = job.weights.folder / "tokenizer.model"
    if own.is_file():
        shutil.copyfile(own, folder / "tokenizer.model")
    stops = stop_ids(job.template)
    config = text_config(architecture_from_weights(job.weights), job.weights)
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    _complete(config)
    config["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    generation = {"bos_token_id": config.get("bos_token_id"), "eos_token_id": ends_of(job), "do_sample": False}
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=1) + "\n")
    write_atomic(folder / DONE, json.dumps(config, indent=1) + "\n")
    sync_folder(folder)


def _complete(config: dict[str, Any]) -> None:
    """Adds what transformers 5 leaves out or renames, and what llama.cpp's converter asks for."""
    kind = config.get("model_type")
    if kind == "gpt2":
        config.setdefault("n_ctx", config.get("n_positions", 1024))
    if kind == "deepseek_v3":  # without it llama.cpp chooses experts by softmax
        config.setdefault("scoring_func", "sigmoid")
    if config.get("architectures") == ["PhimoeForCausalLM"]:  # Microsoft's own files have the converter's name
        config["architectures"] = ["PhiMoEForCausalLM"]


def text_config(model: Architecture, weights: Weights) -> dict[str, Any]:
    """config.json of what is trained: as the base has it, or of the text half of an image-text model."""
    config = read_config(weights.folder, weights.name)
    if model.whole:
        own, part = model.config.to_dict(), config.get("text_config", {})
        if part.get("model_type") == model.family and any(key.startswith("rope") for key in part):
            kept = {key: value for key, value in part.items() if key.startswith("rope")}  # as other readers know them
            own = {key: value for key, value in own.items() if not key.startswith("rope")} | kept
        config = {**own, "tie_word_embeddings": model.tied, "architectures": [type(model.network).__name__]}
    for key in ("quantization_config", "auto_map", "_name_or_path"):
        config.pop(key, None)
    return config


def _write_tokenizer_config(path: Path, job: Job) -> None:
    """Makes the configuration one that other programs read, and says whether a prompt begins with the start token.

    transformers 5 leaves that out, and where nothing is said llama.cpp puts one before each text of SentencePiece
    models.
    """
    tokenizer = job.template.tokenizer
    config = portable(json.loads(path.read_text(encoding="utf-8")), job.weights.folder)
    config.setdefault("added_tokens_decoder", _added_tokens(tokenizer))
    write_atomic(path, json.dumps({**config, "add_bos_token": writes_start(job)}, indent=2, ensure_ascii=False) + "\n")


def writes_start(job: Job) -> bool:
    """Whether a prompt of the training begins with the start token."""
    start = job.template.tokenizer.bos_token
    return bool(start) and job.template.render((Turn("user", "a"),), generate=True).startswith(start)


def _added_tokens(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """The tokens that are found in a text before it is cut, by id: llama.cpp's converter looks for them here alone."""
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        str(at): {flag: getattr(token, flag) for flag in flags} for at, token in tokenizer.added_tokens_decoder.items()
    }


def shipped_template(job: Job) -> str:
    """The template's text for programs that render it without this project: plain Jinja, with the defaults of training.

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


# --- what the folder holds -------------------------------------------------------------------------------------


def _outs(job: Job, dtype: torch.dtype | None, *, adapter: bool) -> Iterator[_Out]:
    model = architecture_from_weights(job.weights)
    linears, transposed, tied_head = model.linear(), model.transposed, f"{model.head}." if model.tied else "\0"
    stored = tensor_headers(job.weights.folder)
    found = without_mxfp4(stored)
    updates, whole, targets = _adapter(job) if adapter else ({}, {}, [])
    known = model.parameter_names(found)
    files = {text: name for name in found if not name.endswith(_PACKED) and (text := model.text_name(name))}
    experts = _experts(job, model, stored, files, updates, targets)
    for written, name in files.items():
        path, shape, kind = found[name]
        parameter, alone = known.get(name, ("", False))
        own = _own_type(kind, job) if dtype is None else dtype
        if written in experts:
            yield _Out(written, shape, own, functools.partial(experts.merged, written))
            continue
        if parameter.startswith(tied_head):
            continue  # some files hold the tied head as well
        layer = parameter.removesuffix(".weight")
        if alone and parameter.endswith(".weight") and layer in linears:
            size = linears[layer][::-1]
            make = functools.partial(_layer, job, path, name, size, updates.pop(layer, None), transposed=transposed)
            yield _Out(written, size[::-1] if transposed else size, own, make)
            continue
        trained = whole.pop(parameter, None) if alone else None
        yield _Out(written, shape, own, functools.partial(_read, path, name) if trained is None else trained.float)
    left = [*updates, *(name for name in whole if not name.startswith(tied_head))]
    if left:
        raise ModelError(
            f"the base's files hold no weight for the adapter's '{left[0]}'", where=job.weights.name,
            next="Was it trained on another base?",
        )  # fmt: skip


def _experts(
    job: Job,
    model: Architecture,
    stored: Mapping[str, tuple[Path, Any, str]],
    files: Mapping[str, str],
    updates: dict[str, _Update],
    targets: Sequence[str],
) -> ExpertTensors:
    """The experts among the text model's tensors; their updates are taken out of `updates`, by PEFT's `targets`.

    `stored` are the tensors of the files with their paths, `files` the name there of each of the text model's.
    """
    packed_from = getattr(torch, job.precision) if job.onto == "quantised" and job.bits == 4 else None

    def read(name: str) -> Tensor:
        own = files[name]
        if own in stored:
            return _read(stored[own][0], own)
        blocks, scales = (_read(stored[own + end][0], own + end) for end in (MXFP4_BLOCKS, MXFP4_SCALES))
        return from_mxfp4(blocks, scales, torch.float32)

    experts = ExpertTensors(model.network, files, read, packed_from)
    if updates:
        own, taken = expert_updates(
            model.network, targets, {name: ExpertUpdate(each.a, each.b, each.scale) for name, each in updates.items()}
        )
        experts.take(own)
        for name in taken:
            del updates[name]
    return experts


def _adapter(job: Job) -> tuple[dict[str, _Update], dict[str, Tensor], list[str]]:
    """The updates by layer, the tensors that were trained whole by their own names, and PEFT's target_parameters."""
    config, tensors = read_adapter(job.adapter, architecture_from_weights(job.weights))
    rank, alpha = int(str(config["r"])), float(str(config["lora_alpha"]))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    updates = {}
    for name in [name for name in tensors if name.endswith(".lora_A")]:
        layer = name.removesuffix(".lora_A")
        magnitude = tensors.pop(f"{layer}.lora_magnitude_vector", None)
        updates[layer] = _Update(tensors.pop(name), tensors.pop(f"{layer}.lora_B"), scale, magnitude)
    whole = {  # PEFT calls the bias of a layer with an update base_layer's
        name.replace(".base_layer.", ".") if name.endswith(".bias") else f"{name}.weight": tensor
        for name, tensor in tensors.items()
    }
    return updates, whole, [str(name) for name in cast("list[object]", config.get("target_parameters") or [])]


def _layer(
    job: Job, path: Path, name: str, size: tuple[int, int], update: _Update | None, *, transposed: bool
) -> Tensor:
    made = _merged(_base(job, path, name, size, transposed=transposed), update)
    return made.T if transposed else made


def _merged(weight: Tensor, update: _Update | None) -> Tensor:
    if update is None:
        return weight
    made = torch.addmm(weight, update.b, update.a, alpha=update.scale)
    if update.magnitude is not None:
        made *= (update.magnitude / torch.linalg.vector_norm(made, dim=1))[:, None]
    return made


def _base(job: Job, path: Path, name: str, size: tuple[int, int], *, transposed: bool) -> Tensor:
    """The weight (out x in, float32) that the update is added to."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    found = _read(path, name)
    if found.dtype == torch.uint8:  # the files are in 4 bits themselves
        if job.onto == "original":
            advice = "Set export.onto to quantised, or train on the unquantised model"
            raise ModelError("the base's files hold 4 bits, not the original weights", where=job.weights.name, next=advice)  # noqa: E501  # fmt: skip
        stored: Tensor = dequantize_4bit(found, _state(path, name))
        return stored.reshape(size).float()
    weight = (found.T if transposed else found).contiguous()
    if job.onto == "quantised" and job.bits == 4:
        weight = weight.to(getattr(torch, job.precision))
        weight = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
    return weight.float()


def _state(path: Path, name: str) -> Any:
    from bitsandbytes.functional import QuantState
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        beside = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{name}.")}  # noqa: SIM118
    return QuantState.from_dict(beside, device=torch.device("cpu"))


def _read(path: Path, name: str) -> Tensor:
    """One tensor; the file is closed again, so that what was read of it leaves the memory."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor(name)
            return found
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the weights cannot be read: {error}", where=str(path)) from error


def _own_type(kind: str, job: Job) -> torch.dtype:
    known = {word: dtype for dtype, word in _WORDS.items()}
    return known.get(kind, torch.float16 if job.precision == "float16" else torch.bfloat16)


# --- writing -----------------------------------------------------------------------------------------------------


def _shards(outs: Sequence[_Out]) -> list[list[_Out]]:
    shards: list[list[_Out]] = [[]]
    for out in outs:
        if shards[-1] and sum(each.bytes for each in shards[-1]) + out.bytes > SHARD:
            shards.append([])
        shards[-1].append(out)
    return shards


def _names(many: int) -> list[str]:
    return ["model.safetensors"] if many == 1 else [f"model-{n:05}-of-{many:05}.safetensors" for n in range(1, many + 1)]  # noqa: E501  # fmt: skip


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise ResourceError(
            f"the merged weights need {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free",
            where=str(folder),
            next="Free some space, or keep the runs on another disk with --runs",
        )


def _write(path: Path, shard: Sequence[_Out], tell: Callable[[int], None]) -> None:
    """A safetensors file, tensor by tensor (https://huggingface.co/docs/safetensors): header's length, header, data."""
    at, places = 0, {}
    for out in shard:
        places[out.name] = {"dtype": _WORDS[out.dtype], "shape": list(out.shape), "data_offsets": [at, at + out.bytes]}
        at += out.bytes
    head = json.dumps({"__metadata__": {"format": "pt"}, **places}).encode()
    head += b" " * (-len(head) % 8)
    temporary = path.with_name(f".{path.name}.part")
    with translate_disk_errors(path):
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            written = 0
            for out in shard:
                _put(file, out)
                written += out.bytes
                tell(written)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


def _put(file: IO[bytes], out: _Out) -> None:
    made = out.make()
    if tuple(made.shape) != out.shape:
        raise ModelError(f"'{out.name}' is {tuple(made.shape)}, not {out.shape}", where=file.name)
    lowest, highest = (float(each) for each in made.aminmax())  # without a copy of an embedding of gigabytes
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ModelError(f"'{out.name}' holds values that are no numbers", where=file.name, next="Train again")
    if out.dtype == torch.float16 and max(-lowest, highest) > LARGEST:
        advice = "Export in bf16 or f32"
        raise ModelError(f"'{out.name}' holds {max(-lowest, highest):g}, more than float16 can", where=file.name, next=advice)  # noqa: E501  # fmt: skip
    file.write(made.to(out.dtype).contiguous().view(torch.uint8).numpy().data)
