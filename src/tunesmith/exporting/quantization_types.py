"""Chooses the type of each tensor for a quantization type such as q4_k_m.

The rule is llama.cpp's (src/llama-quant.cpp, without an importance matrix), so a file matches what users expect of the
name: weights that matter most for quality get more bits, and rows that blocks do not fill fall back to a finer type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.config.registry import nearest
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.gguf_header import BLOCKS, TensorInfo


@dataclass(frozen=True)
class QuantizationType:
    """The usual tensor type of a quantization type, and its general.file_type number."""

    type: str
    number: int


QUANTIZATION_TYPES = {
    "f32": QuantizationType("F32", 0),
    "f16": QuantizationType("F16", 1),
    "bf16": QuantizationType("BF16", 32),
    "q8_0": QuantizationType("Q8_0", 7),
    "q6_k": QuantizationType("Q6_K", 18),
    "q5_k_m": QuantizationType("Q5_K", 17),
    "q5_k_s": QuantizationType("Q5_K", 16),
    "q4_k_m": QuantizationType("Q4_K", 15),
    "q4_k_s": QuantizationType("Q4_K", 14),
}

FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # blocks of 256 -> a finer type with blocks of 32

# Number of blocks of each family's 70B model in llama.cpp's table. Eight heads share a value there: it gets more bits.
_BLOCKS_OF_70B = {"llama": 80, "llama-embed": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}

# Matrices that are not quantized: small, or read by code that has no quantized form of them.
_UNQUANTIZED_NAMES = {"position_embd.weight", "token_types.weight"}
_UNQUANTIZED_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight",
    "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_VALUES = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")


@dataclass(frozen=True)
class ModelFacts:
    """The properties of a model that the rule needs besides its tensors; head counts are the first block's."""

    architecture: str
    blocks: int
    heads: int = 0
    heads_kv: int = 0
    experts: int = 0

    @property
    def seventy(self) -> bool:
        """Whether llama.cpp treats this model as a 70B model."""
        if self.architecture.startswith("llama") and (self.heads == self.heads_kv or self.experts == 8):
            return False  # 65B has as many key heads as query heads, and a model with eight experts is no 70B
        return _BLOCKS_OF_70B.get(self.architecture) == self.blocks


def read_facts(metadata: Mapping[str, Any], where: str = "") -> ModelFacts:
    """Reads the properties from a GGUF header's metadata.

    Raises ModelError if the architecture or the block count is missing. `where` is the file, for the error.
    """
    architecture = metadata.get("general.architecture")

    def first(key: str, default: int) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, tuple):  # one value per block
            value = value[0] if value else default
        return value if isinstance(value, int) else -1

    heads = first("attention.head_count", 0)
    model_facts = ModelFacts(
        str(architecture), first("block_count", -1), heads, first("attention.head_count_kv", heads),
        first("expert_count", 0),
    )  # fmt: skip
    if (
        not isinstance(architecture, str)
        or min(model_facts.blocks - 1, model_facts.heads, model_facts.heads_kv, model_facts.experts) < 0
    ):
        raise ModelError(
            "its metadata names no architecture, or an invalid number of blocks, heads or experts",
            where=where,
            next="Convert the model again",
        )
    return model_facts


def sort_tensors(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Returns tensors in the order of llama.cpp's quantizer: those outside blocks first, then by block and name."""
    return sorted(tensors, key=lambda tensor: (_block_index(tensor.name), tensor.name))


def tensor_types(tensors: Iterable[TensorInfo], model_facts: ModelFacts, quantization_type: str) -> dict[str, str]:
    """Returns each tensor's type (a key of BLOCKS) for a key of QUANTIZATION_TYPES, in the order of `sort_tensors`.

    Raises RecipeError for an unknown quantization type, ModelError if a tensor fills neither its type's blocks nor a
    fallback's.
    """
    if quantization_type not in QUANTIZATION_TYPES:
        advice = nearest(quantization_type, QUANTIZATION_TYPES)
        raise RecipeError(f"unknown quantization type '{quantization_type}'", next=advice)
    sorted_tensors = sort_tensors(tensors)
    rule = _Rule(quantization_type, model_facts, [tensor.name for tensor in sorted_tensors])
    return {tensor.name: rule.type(tensor) for tensor in sorted_tensors}


class _Rule:
    """The rule with its counters; tensors are passed one by one, in order."""

    def __init__(self, quantization_type: str, model_facts: ModelFacts, names: list[str]) -> None:
        self.quantization_type, self.facts, self.usual = (
            quantization_type,
            model_facts,
            QUANTIZATION_TYPES[quantization_type].type,
        )
        self.tied = "output.weight" not in names
        self.values = sum(_is_value(name) for name in names)
        self.counts: Counter[str] = Counter()

    def type(self, tensor: TensorInfo) -> str:
        if not _is_quantized(tensor):
            return tensor.type
        if BLOCKS[self.usual][1] == 1:
            return self.usual
        return _fitting_type(tensor, self.type_by_role(tensor))

    def type_by_role(self, tensor: TensorInfo) -> str:
        """Returns the type by the tensor's role in the model, whether or not its rows fill blocks."""
        name, usual = tensor.name, self.usual
        embeds = name in ("token_embd.weight", "per_layer_token_embd.weight")
        if name == "output.weight" or (self.tied and embeds):
            use_q8 = self.facts.architecture == "falcon" or tensor.shape[0] % BLOCKS[usual][1]
            return "Q8_0" if use_q8 or usual == "Q8_0" else "Q6_K"
        if embeds:
            return usual
        if _is_value(name):
            return self.value_type()
        if "attn_k.weight" in name:
            return "Q8_0" if self.facts.experts == 8 else usual
        if "attn_q.weight" in name:
            return usual
        if "attn_output.weight" in name:
            gets_more_bits = self.facts.experts == 8 and usual == "Q4_K" and self.facts.architecture != "falcon"
            return "Q5_K" if gets_more_bits else usual
        if "ffn_down" in name and "ffn_up" not in name and "ffn_gate" not in name:
            return self.down_type(name)
        return usual

    def value_type(self) -> str:
        """Returns the type of the next value matrix, or of the next fused query, key and value matrix."""
        index = self.counts["value"]
        self.counts["value"] += 1
        if self.facts.experts == 8:
            return "Q8_0"
        kind = self.usual
        if self.quantization_type in ("q4_k_m", "q5_k_m") and _gets_more_bits(index, self.values):
            kind = "Q6_K"
        elif self.quantization_type == "q4_k_s" and index < 4:
            kind = "Q5_K"
        return "Q5_K" if kind == "Q4_K" and self.facts.seventy else kind

    def down_type(self, name: str) -> str:
        """Returns the type of the next down projection of a feed-forward layer."""
        index, count, falcon = self.counts["down"], self.facts.blocks, self.facts.architecture == "falcon"
        self.counts["down"] += 1
        if self.facts.experts > 1:  # the matrices may be in any order, so the name decides
            index = _block_index(name)
            if not 0 <= index < count:
                raise ModelError(f"tensor '{name}' belongs to no block of {count}", next="Convert the model again")
        if self.quantization_type == "q4_k_m" and falcon:
            return "Q6_K" if index < count // 16 else "Q5_K" if _gets_more_bits(index, count) else "Q4_K"
        if self.quantization_type in ("q4_k_m", "q5_k_m") and _gets_more_bits(index, count):
            return "Q6_K"
        return "Q5_K" if self.quantization_type == "q4_k_s" and not falcon and index < count // 8 else self.usual


def _block_index(name: str) -> int:
    block = re.match(r"blk\.(\d+)", name)
    return int(block[1]) if block else -1


def _is_value(name: str) -> bool:
    return name != "output.weight" and any(part in name for part in _VALUES)


def _gets_more_bits(index: int, count: int) -> bool:
    """Returns whether the layer is in the first or last eighth of `count` layers, or is every third in between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _is_quantized(tensor: TensorInfo) -> bool:
    matrix = any(size > 1 for size in tensor.shape[1:])
    excluded = tensor.name in _UNQUANTIZED_NAMES or any(part in tensor.name for part in _UNQUANTIZED_PARTS)
    return matrix and tensor.name.endswith("weight") and not excluded


def _fitting_type(tensor: TensorInfo, kind: str) -> str:
    """Returns `kind` if rows fill its blocks, else a finer type with blocks of 32, or float16."""
    row = tensor.shape[0]
    if row % BLOCKS[kind][1] == 0:
        return kind
    if kind not in FALLBACKS:
        raise ModelError(
            f"tensor '{tensor.name}' has rows of {row}, which {kind}'s blocks of {BLOCKS[kind][1]} do not fill",
            next="Choose the type f16 or bf16",
        )
    finer = FALLBACKS[kind]
    return finer if row % BLOCKS[finer][1] == 0 else "F16"
