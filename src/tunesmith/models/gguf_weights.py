"""Converts a GGUF file to a transformers folder: config.json, model.safetensors, tokenizer and chat template.

Weights are read, dequantized and written in pieces of one tensor, so the conversion needs about the memory of its
largest tensor. models/gguf_header.py validates the file first.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import ModelError
from tunesmith.models.gguf_config import ADVICE, GgufArchitecture, config_values, find_architecture
from tunesmith.models.gguf_header import BLOCKS, Header, TensorInfo, read_header, tensor_bytes
from tunesmith.models.gguf_tokenizer import build_tokenizer, sentencepiece_model, write_header_keys

PIECE = 1 << 22  # weights dequantized at once: 16 MiB in float32
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SAFETENSORS_TYPES = {
    "F32": "F32",
    "F16": "F16",
}  # other tensor types are stored as BF16
_NUMBER_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_FACTORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")  # values of the configuration, not weights
_ROTATED = ("self_attn.q_proj", "self_attn.k_proj")


@dataclass(frozen=True)
class _Source:
    """A tensor of the file, with its name and shape in transformers."""

    path: Path
    info: TensorInfo
    name: str
    shape: tuple[int, ...]
    stored: str
    heads: int = 0  # whose rows are reordered
    shifted: bool = False
    transposed: bool = False


def part_names(file: str, where: str) -> list[str]:
    """Returns the names of a model's files: `file`, or all parts if it is the first part (NAME-00001-of-00003.gguf).

    Raises ModelError for a later part.
    """
    match = _PART.fullmatch(file)
    if match is None:
        return [file]
    names = [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]
    if int(match["number"]) != 1:
        problem = f"is part {int(match['number'])} of a model in {len(names)} parts"
        raise ModelError(problem, where=where, next=f"Use the first part, {names[0]}")
    return names


def parts_of(gguf: Path) -> list[Path]:
    """Returns the files of the model whose first or only part is `gguf`. Raises ModelError if one is missing."""
    parts = [gguf.with_name(name) for name in part_names(gguf.name, str(gguf))]
    missing = [part.name for part in parts if not part.is_file()]
    if missing and gguf.is_file():
        raise ModelError(f"{missing[0]} is missing beside it", where=str(gguf), next="Put all parts into one folder")
    return parts


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Converts the model in `gguf` and writes it to the existing `folder`, with the file's chat template.

    Quantized tensors are stored as bfloat16, others in their own type. Raises ModelError for a damaged file, and for an
    unsupported architecture, metadata key, tensor type or tensor.
    """
    headers = _headers(gguf)
    name, architecture = find_architecture(headers[0][1].metadata, str(gguf))
    config = _config(gguf, name, architecture, headers)
    sources = _sources(gguf, architecture, headers, config)
    _check_types(gguf, {source.info.type for source in sources})
    _check_complete(gguf, sources, config)
    tokenizer = build_tokenizer(headers[0][1].metadata, gguf.stem, str(gguf))
    _write(sources, folder / "model.safetensors")
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_header_keys(headers[0][1].metadata, folder)
    if (model := sentencepiece_model(headers[0][1].metadata)) is not None:
        (folder / "tokenizer.model").write_bytes(model)


def _headers(gguf: Path) -> list[tuple[Path, Header]]:
    return [(path, read_header(path)) for path in parts_of(gguf)]


def _config(gguf: Path, name: str, architecture: GgufArchitecture, headers: Sequence[tuple[Path, Header]]) -> Any:
    from transformers import AutoConfig

    tensors = {info.name: (path, info) for path, header in headers for info in header.tensors}
    if "token_embd.weight" not in tensors:
        raise ModelError("has no token_embd.weight", where=str(gguf), next="Download or convert the file again")
    factors = {
        key: _read_tensor(*tensors[f"{key}.weight"]).reshape(-1).tolist()
        for key in _FACTORS
        if f"{key}.weight" in tensors
    }
    vocabulary = tensors["token_embd.weight"][1].shape[1]
    values = config_values(name, headers[0][1].metadata, vocabulary, factors, str(gguf))
    values["tie_word_embeddings"] = "output.weight" not in tensors
    for setting, bias in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_up.bias")):
        if f"blk.0.{bias}" in tensors and not architecture.transposed and architecture.model_type != "qwen2":
            values[setting] = True
    kind = _SAFETENSORS_TYPES.get(tensors["token_embd.weight"][1].type, "BF16")
    values["dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
    try:
        config = AutoConfig.for_model(architecture.model_type, **values)
    except Exception as error:  # configurations check themselves with errors of many types
        raise ModelError(f"transformers refuses its metadata: {error}", where=str(gguf), next=ADVICE) from error
    config.architectures = [_model_class(config).__name__]
    config._name_or_path = gguf.stem
    return config


def _model_class(config: Any) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _sources(
    gguf: Path, architecture: GgufArchitecture, headers: Sequence[tuple[Path, Header]], config: Any
) -> list[_Source]:
    sources = []
    for path, header in headers:
        for info in header.tensors:
            if info.name.removesuffix(".weight") in _FACTORS:
                continue
            sources.append(_source(gguf, path, info, architecture, config))
    return sources


def _source(gguf: Path, path: Path, info: TensorInfo, architecture: GgufArchitecture, config: Any) -> _Source:
    stem, _, ending = info.name.rpartition(".")
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
    module = architecture.block.get(match[2]) if match else architecture.outer_module_name.get(stem)
    if module is None or ending not in ("weight", "bias"):
        raise ModelError(f"holds the tensor '{info.name}', which is not supported", where=str(gguf), next=ADVICE)
    name = f"{architecture.layers}.{match[1]}.{module}.{ending}" if match else f"{module}.{ending}"
    shape = tuple(reversed(info.shape))
    source = _Source(path, info, name, shape, _SAFETENSORS_TYPES.get(info.type, "BF16"))
    if architecture.rotated and module in _ROTATED:
        is_key = module.endswith("k_proj")
        return replace(source, heads=config.num_key_value_heads if is_key else config.num_attention_heads)
    if architecture.shifted and name.endswith("norm.weight"):
        return replace(source, shifted=True)
    if architecture.transposed and match and ending == "weight" and len(shape) == 2:
        return replace(source, shape=shape[::-1], transposed=True)
    return source


def _check_types(gguf: Path, types: set[str]) -> None:
    for kind in sorted(types):
        _, block, size = BLOCKS[kind]
        try:
            _dequantize(np.zeros(size, np.uint8), kind, (1, block))
        except (NotImplementedError, ValueError, KeyError) as error:
            raise ModelError(f"its tensors of type {kind} cannot be read", where=str(gguf), next=ADVICE) from error


def _check_complete(gguf: Path, sources: Sequence[_Source], config: Any) -> None:
    """Raises ModelError unless the file contains exactly the weights of the model, with their shapes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    stored = {source.name: source.shape for source in sources}
    if len(stored) != len(sources):
        raise ModelError("contains a tensor twice", where=str(gguf), next="Download or convert the file again")
    for name in [*expected, *stored]:
        if stored.get(name) != expected.get(name):
            problem = f"{name} has the shape {stored.get(name)} where the model needs {expected.get(name)}"
            raise ModelError(problem.replace("None", "nothing"), where=str(gguf), next=ADVICE)


def _write(sources: Sequence[_Source], target: Path) -> None:
    """Writes one safetensors file tensor by tensor (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for source in sources:
        begin, end = end, end + int(np.prod(source.shape)) * _NUMBER_BYTES[source.stored]
        header[source.name] = {"dtype": source.stored, "shape": list(source.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for source in sources:
            for piece in _stored_pieces(source):
                file.write(piece.data.cast("B"))


def _stored_pieces(source: _Source) -> Iterator[np.ndarray[Any, Any]]:
    """Yields the tensor in pieces in its stored type: float32, float16, or the upper halves of float32 (bfloat16).

    A tensor that is reordered is one piece; embeddings, which are large, never are.
    """
    kinds: dict[str, Any] = {"F32": np.float32, "F16": np.float16}
    pieces = _pieces(source.path, source.info)
    if source.shifted:
        pieces = (piece - np.float32(1) for piece in pieces)
    if source.stored == "BF16":
        pieces = map(_bfloat16, pieces)
    else:
        pieces = (piece.astype(kinds[source.stored]) for piece in pieces)
    if source.heads or source.transposed:
        rows = source.shape[::-1] if source.transposed else source.shape
        tensor = np.concatenate(list(pieces)).reshape(rows)
        if source.heads:  # pairs of neighbors become two halves, as transformers rotates them
            inner = rows[0] // source.heads // 2
            tensor = tensor.reshape(source.heads, inner, 2, *rows[1:]).swapaxes(1, 2).reshape(rows)
        pieces = iter([np.ascontiguousarray(tensor.T if source.transposed else tensor)])
    return pieces


def _pieces(path: Path, info: TensorInfo) -> Iterator[np.ndarray[Any, Any]]:
    """Yields the tensor's weights in order as float32, whole rows at a time."""
    row = info.shape[0]
    count = int(np.prod(info.shape)) // row
    rows_at_once, size = max(1, PIECE // row), tensor_bytes(info.type, row)
    with path.open("rb") as file:
        file.seek(info.offset)
        for first in range(0, count, rows_at_once):
            rows = min(rows_at_once, count - first)
            raw = np.frombuffer(file.read(rows * size), np.uint8)
            yield _dequantize(raw, info.type, (rows, row)).reshape(-1)


def _read_tensor(path: Path, info: TensorInfo) -> np.ndarray[Any, Any]:
    return np.concatenate(list(_pieces(path, info)))


def _dequantize(raw: np.ndarray[Any, Any], kind: str, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values = dequantize(raw.reshape(shape[0], -1), GGMLQuantizationType(BLOCKS[kind][0]))
    return np.asarray(values, np.float32).reshape(shape)


def _bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rounds float32 to bfloat16, to nearest with ties to even; returns the 16 bits as integers."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
