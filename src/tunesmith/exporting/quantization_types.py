"""Which type each tensor of a model gets in a mix such as q4_k_m.

The rule is llama.cpp's (src/llama-quant.cpp, without an importance matrix), so that a file is what its users know under
that name: weights that a model's quality hangs on get more bits, and rows that no block fits fall back to a finer type.
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
class Mix:
    """A mix's usual type, and the number that files of it carry as general.file_type."""

    type: str
    number: int


MIXES = {
    "f32": Mix("F32", 0),
    "f16": Mix("F16", 1),
    "bf16": Mix("BF16", 32),
    "q8_0": Mix("Q8_0", 7),
    "q6_k": Mix("Q6_K", 18),
    "q5_k_m": Mix("Q5_K", 17),
    "q5_k_s": Mix("Q5_K", 16),
    "q4_k_m": Mix("Q4_K", 15),
    "q4_k_s": Mix("Q4_K", 14),
}

FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # blocks of 256 -> a finer type with blocks of 32

# Of the families with a "70B" in llama.cpp's table, its blocks: eight heads share a value there, so it gets more bits.
_SEVENTY = {"llama": 80, "llama-embed": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}

# Matrices that stay as they are: small, or read by code that knows no quantised form of them.
_KEPT_NAMES = {"position_embd.weight", "token_types.weight"}
_KEPT_PARTS = (
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
class Facts:
    """What the rule asks of a model besides its tensors; `heads` and `heads_kv` are the first block's."""

    architecture: str
    blocks: int
    heads: int = 0
    heads_kv: int = 0
    experts: int = 0

    @property
    def seventy(self) -> bool:
        """Whether this is one of the models that llama.cpp calls 70B."""
        if self.architecture.startswith("llama") and (self.heads == self.heads_kv or self.experts == 8):
            return False  # 65B has as many keys as queries, and eight experts make another size
        return _SEVENTY.get(self.architecture) == self.blocks


def facts(metadata: Mapping[str, Any], where: str = "") -> Facts:
    """The facts in a GGUF header's metadata.

    Raises ModelError when it names no architecture or block count. `where` is the file, for the error.
    """
    architecture = metadata.get("general.architecture")

    def first(key: str, default: int) -> int:
        found = metadata.get(f"{architecture}.{key}", default)
        if isinstance(found, tuple):  # one for each block
            found = found[0] if found else default
        return found if isinstance(found, int) else -1

    heads = first("attention.head_count", 0)
    kept = Facts(
        str(architecture), first("block_count", -1), heads, first("attention.head_count_kv", heads),
        first("expert_count", 0),
    )  # fmt: skip
    if not isinstance(architecture, str) or min(kept.blocks - 1, kept.heads, kept.heads_kv, kept.experts) < 0:
        raise ModelError(
            "its metadata names no architecture, or no sane number of blocks, heads and experts",
            where=where,
            next="Convert the model again",
        )
    return kept


def in_order(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Tensors as llama.cpp's quantiser writes and counts them: those of no block first, then by block and name."""
    return sorted(tensors, key=lambda tensor: (_block(tensor.name), tensor.name))


def types(tensors: Iterable[TensorInfo], known: Facts, mix: str) -> dict[str, str]:
    """The type (a key of BLOCKS) of each tensor in `mix` (a key of MIXES), in the order of `in_order`.

    Raises RecipeError for an unknown mix, ModelError when a tensor fits neither its type nor a fallback.
    """
    if mix not in MIXES:
        raise RecipeError(f"unknown mix '{mix}'", next=nearest(mix, MIXES))
    ordered = in_order(tensors)
    rule = _Rule(mix, known, [tensor.name for tensor in ordered])
    return {tensor.name: rule.type(tensor) for tensor in ordered}


class _Rule:
    """The rule with what it counts: it takes the tensors one by one, in order."""

    def __init__(self, mix: str, known: Facts, names: list[str]) -> None:
        self.mix, self.known, self.usual = mix, known, MIXES[mix].type
        self.tied = "output.weight" not in names
        self.values = sum(_is_value(name) for name in names)
        self.seen: Counter[str] = Counter()

    def type(self, tensor: TensorInfo) -> str:
        if not _is_quantised(tensor):
            return tensor.type
        if BLOCKS[self.usual][1] == 1:
            return self.usual
        return _fitting(tensor, self.wanted(tensor))

    def wanted(self, tensor: TensorInfo) -> str:
        """The type by the tensor's part in the model, whether or not its rows fit."""
        name, usual = tensor.name, self.usual
        embeds = name in ("token_embd.weight", "per_layer_token_embd.weight")
        if name == "output.weight" or (self.tied and embeds):
            falls = self.known.architecture == "falcon" or tensor.shape[0] % BLOCKS[usual][1]
            return "Q8_0" if falls or usual == "Q8_0" else "Q6_K"
        if embeds:
            return usual
        if _is_value(name):
            return self.value()
        if "attn_k.weight" in name:
            return "Q8_0" if self.known.experts == 8 else usual
        if "attn_q.weight" in name:
            return usual
        if "attn_output.weight" in name:
            more = self.known.experts == 8 and usual == "Q4_K" and self.known.architecture != "falcon"
            return "Q5_K" if more else usual
        if "ffn_down" in name and "ffn_up" not in name and "ffn_gate" not in name:
            return self.down(name)
        return usual

    def value(self) -> str:
        """The type of the next matrix of values, or of queries, keys and values in one."""
        at = self.seen["value"]
        self.seen["value"] += 1
        if self.known.experts == 8:
            return "Q8_0"
        kind = self.usual
        if self.mix in ("q4_k_m", "q5_k_m") and _gets_more_bits(at, self.values):
            kind = "Q6_K"
        elif self.mix == "q4_k_s" and at < 4:
            kind = "Q5_K"
        return "Q5_K" if kind == "Q4_K" and self.known.seventy else kind

    def down(self, name: str) -> str:
        """The type of the next matrix that leads back from a feed-forward layer."""
        at, of, falcon = self.seen["down"], self.known.blocks, self.known.architecture == "falcon"
        self.seen["down"] += 1
        if self.known.experts > 1:  # its matrices may stand in any order, so the name counts
            at = _block(name)
            if not 0 <= at < of:
                raise ModelError(f"tensor '{name}' belongs to no block of {of}", next="Convert the model again")
        if self.mix == "q4_k_m" and falcon:
            return "Q6_K" if at < of // 16 else "Q5_K" if _gets_more_bits(at, of) else "Q4_K"
        if self.mix in ("q4_k_m", "q5_k_m") and _gets_more_bits(at, of):
            return "Q6_K"
        return "Q5_K" if self.mix == "q4_k_s" and not falcon and at < of // 8 else self.usual


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)", name)
    return int(found[1]) if found else -1


def _is_value(name: str) -> bool:
    return name != "output.weight" and any(part in name for part in _VALUES)


def _gets_more_bits(at: int, of: int) -> bool:
    """The first and the last eighth of `of` layers, and every third between."""
    return at < of // 8 or at >= 7 * of // 8 or (at - of // 8) % 3 == 2


def _is_quantised(tensor: TensorInfo) -> bool:
    matrix = any(size > 1 for size in tensor.shape[1:])
    kept = tensor.name in _KEPT_NAMES or any(part in tensor.name for part in _KEPT_PARTS)
    return matrix and tensor.name.endswith("weight") and not kept


def _fitting(tensor: TensorInfo, wanted: str) -> str:
    """`wanted`, or what its rows allow: a finer type with blocks of 32, or float16."""
    row = tensor.shape[0]
    if row % BLOCKS[wanted][1] == 0:
        return wanted
    if wanted not in FALLBACKS:
        raise ModelError(
            f"tensor '{tensor.name}' has rows of {row}, which {wanted}'s blocks of {BLOCKS[wanted][1]} do not fill",
            next="Choose the mix f16 or bf16",
        )
    finer = FALLBACKS[wanted]
    return finer if row % BLOCKS[finer][1] == 0 else "F16"
