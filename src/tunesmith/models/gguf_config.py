"""Converts a GGUF file's metadata to a transformers configuration.

Every architecture key of the file is either used here or known to be redundant; any other key is an error, because an
ignored value would change what the model computes. Key names:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's converters, whose conversion is reversed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import ModelError

ADVICE = "Use the same model's .safetensors as base.model: its folder, or its Hub name"

# key -> transformers' name; the keys follow "ARCHITECTURE."
_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
}
_GPT2_SIZES = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_CHECKED_ELSEWHERE = ("vocab_size", "attention.value_length", "rope.dimension_count")  # checked or counted elsewhere
_ROPE = ("rope.freq_base", "rope.freq_base_swa", "rope.scaling.")

BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_NORMS_AROUND = BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_AFTER = {name: module for name, module in _NORMS_AROUND.items() if name not in ("attn_norm", "ffn_norm")}
_PHI3 = BLOCK | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GPT2_BLOCK = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
_GPT2_OUTER = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
    "output": "lm_head",
}  # fmt: skip


@dataclass(frozen=True)
class GgufArchitecture:
    """The differences between llama.cpp's and transformers' format of one architecture.

    `sizes` and `block` translate keys and tensor names. `rotated`: query and key rows are reordered by pairs.
    `shifted`: the file's norm weights are 1 larger. `transposed`: transformers stores matrices as in x out.
    """

    model_type: str
    sizes: Mapping[str, str] = field(default_factory=lambda: _SIZES)
    block: Mapping[str, str] = field(default_factory=lambda: BLOCK)
    outer_module_name: Mapping[str, str] = field(default_factory=lambda: OUTER)
    layers: str = "model.layers"
    rotated: bool = False
    shifted: bool = False
    transposed: bool = False


ARCHITECTURES = {
    "llama": GgufArchitecture("llama", rotated=True),
    "granite": GgufArchitecture("granite", sizes=_SIZES | _GRANITE, rotated=True),
    "smollm3": GgufArchitecture("smollm3", rotated=True),
    "qwen2": GgufArchitecture("qwen2"),
    "qwen3": GgufArchitecture("qwen3"),
    "olmo2": GgufArchitecture("olmo2", block=_NORMS_AFTER),
    "phi3": GgufArchitecture("phi3", block=_PHI3),
    "gemma": GgufArchitecture("gemma", shifted=True),
    "gemma2": GgufArchitecture("gemma2", sizes=_SIZES | _SOFTCAPS, block=_NORMS_AROUND, shifted=True),
    "gemma3": GgufArchitecture("gemma3_text", sizes=_SIZES | _SOFTCAPS, block=_NORMS_AROUND, shifted=True),
    "gpt2": GgufArchitecture(
        "gpt2",
        sizes=_GPT2_SIZES,
        block=_GPT2_BLOCK,
        outer_module_name=_GPT2_OUTER,
        layers="transformer.h",
        transposed=True,
    ),
}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}  # llama.cpp selects the scale of the 27B models by the number of layers


def find_architecture(metadata: Mapping[str, Any], where: str) -> tuple[str, GgufArchitecture]:
    """Returns the file's architecture and its name in llama.cpp. Raises ModelError if it cannot be converted."""
    name, kind = str(metadata.get("general.architecture", "")), metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(
            f"is not a language model but of type '{kind}'", where=where, next="Choose the model's own file"
        )
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"GGUF files of the architecture '{name}' cannot be a base; supported: {supported}",
            where=where,
            next=ADVICE,
        )
    return name, ARCHITECTURES[name]


def config_values(
    name: str, metadata: Mapping[str, Any], vocabulary: int, factors: Mapping[str, Sequence[float]], where: str
) -> dict[str, Any]:
    """Returns keyword arguments of the architecture's configuration class, except biases and tied embeddings.

    `vocabulary` is the number of rows of the embeddings; `factors` holds the file's rope_freqs, rope_factors_long and
    rope_factors_short if present. Raises ModelError for keys and values that the configuration cannot express.
    """
    architecture, prefix = ARCHITECTURES[name], f"{name}."
    keys = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    unknown = [
        key for key in keys if key not in (*architecture.sizes, *_CHECKED_ELSEWHERE) and not key.startswith(_ROPE)
    ]
    if unknown:
        raise _unsupported(f"{prefix}{unknown[0]}", keys.get(unknown[0]), where)
    values = {architecture.sizes[key]: value for key, value in keys.items() if key in architecture.sizes}
    missing = [key for key, target in architecture.sizes.items() if _is_required(target) and target not in values]
    if missing:
        raise ModelError(f"has no {prefix}{missing[0]}", where=where, next="Download or convert the file again")
    values |= {"vocab_size": vocabulary, **_tokens(metadata, vocabulary)}
    if architecture.transposed:
        return values
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    head_size = _head_size(values, keys, prefix, where)
    rotated = int(keys.get("rope.dimension_count", head_size))
    if rotated != head_size and architecture.model_type not in ("phi3",):
        raise _unsupported(f"{prefix}rope.dimension_count", rotated, where)
    rope = _rope(keys, factors, head_size, prefix, where)
    if architecture.model_type == "phi3":
        values |= _phi3(values, keys, rope, rotated / head_size, factors)
        return values
    if name.startswith("gemma"):
        values |= _gemma(name, values, keys, head_size, rope)
    if "sliding_window" in values and not name.startswith("gemma"):
        raise _unsupported(f"{prefix}attention.sliding_window", values["sliding_window"], where)
    if name != "gemma3":
        values["rope_parameters"] = rope
    return values


def _is_required(target: str) -> bool:
    return target in {
        "max_position_embeddings", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
        "rms_norm_eps", *_GPT2_SIZES.values(),
    } - {"n_inner"}  # fmt: skip


def _head_size(values: dict[str, Any], keys: Mapping[str, Any], prefix: str, where: str) -> int:
    """Returns the size of one head and adds it to `values`; value heads must have the same size."""
    head = int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])
    if int(keys.get("attention.value_length", head)) != head:
        raise _unsupported(f"{prefix}attention.value_length", keys["attention.value_length"], where)
    values["head_dim"] = head
    return head


def _tokens(metadata: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Returns the ids of special tokens; the end-of-turn token is one of the EOS tokens."""
    ids = {
        f"{name}_token_id": metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    eot = metadata.get("tokenizer.ggml.eot_token_id")
    if eot is not None and ids["eos_token_id"] not in (None, eot):
        ids["eos_token_id"] = [ids["eos_token_id"], eot]
    return {key: value for key, value in ids.items() if not isinstance(value, int) or value < vocabulary}


def _rope(
    keys: Mapping[str, Any], factors: Mapping[str, Sequence[float]], head: int, prefix: str, where: str
) -> dict[str, Any]:
    """Returns transformers' rope_parameters; those of the global layers if there are two kinds of layers."""
    base = float(keys.get("rope.freq_base", 10000.0))
    scaling = {key.removeprefix("rope.scaling."): value for key, value in keys.items() if "rope.scaling." in key}
    kind, theta = str(scaling.pop("type", "none")), {"rope_theta": base}
    scaling.pop("finetuned", None)
    if "rope_freqs" in factors:
        return theta | _llama3(list(factors["rope_freqs"]), base, head, where)
    if "rope_factors_long" in factors or (kind == "none" and set(scaling) <= {"original_context_length"}):
        return theta | {"rope_type": "default"}  # long and short factors: see _phi3
    if kind == "linear" and set(scaling) == {"factor"}:
        return theta | {"rope_type": "linear", "factor": float(scaling["factor"])}
    names = {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_attn_factor": "attention_factor",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    if kind == "yarn" and {"factor", "original_context_length"} <= set(scaling) <= set(names):
        return theta | {"rope_type": "yarn", **{names[key]: value for key, value in scaling.items()}}
    raise _unsupported(f"{prefix}rope.scaling.type", f"{kind} with {', '.join(sorted(scaling)) or 'nothing'}", where)


def _llama3(factors: list[float], base: float, head: int, where: str) -> dict[str, Any]:
    """Returns the Llama 3 scaling (arXiv:2407.21783) that gives the file's factors, one for each pair of a head."""
    common = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    parameters = {"rope_type": "llama3", "factor": max(factors), **common}
    expected = llama3_factors(parameters, base, head)
    if len(factors) != len(expected) or any(abs(a / b - 1) > 1e-3 for a, b in zip(factors, expected, strict=True)):
        raise _unsupported("the tensor rope_freqs.weight", f"{len(factors)} factors up to {max(factors):g}", where)
    return parameters


def llama3_factors(rope: Mapping[str, Any], base: float, head: int) -> list[float]:
    """Returns the divisor of each pair's frequency."""
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for pair in range(0, head, 2):
        turns = old * base ** (-pair / head) / (2 * math.pi)  # full turns of the pair over the old context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors


def _phi3(
    values: Mapping[str, Any],
    keys: Mapping[str, Any],
    rope: dict[str, Any],
    share: float,
    factors: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Returns long and short factors, the rotated share of a head, and the window (0 in the file means none)."""
    old = int(keys.get("rope.scaling.original_context_length", values["max_position_embeddings"]))
    rope = {**rope, "partial_rotary_factor": share}
    if "rope_factors_long" in factors:
        long, short = (list(map(float, factors[f"rope_factors_{which}"])) for which in ("long", "short"))
        rope |= {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        rope["original_max_position_embeddings"] = old
    window = values.get("sliding_window") or None
    return {"original_max_position_embeddings": old, "rope_parameters": rope, "sliding_window": window} | {
        "partial_rotary_factor": share
    }


def _gemma(
    name: str, values: Mapping[str, Any], keys: Mapping[str, Any], head: int, rope: dict[str, Any]
) -> dict[str, Any]:
    """Returns the scale of attention scores, and Gemma 3's two kinds of layers."""
    if name == "gemma":
        return {}
    fixed = values["num_hidden_layers"] == _LAYERS_OF_27B[name]
    scalar = values["hidden_size"] // values["num_attention_heads"] if fixed else head
    gemma_values: dict[str, Any] = {"query_pre_attn_scalar": scalar}
    if name == "gemma3":
        local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10000.0))}
        gemma_values["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
        if "sliding_window" not in values:
            gemma_values["layer_types"] = ["full_attention"] * values["num_hidden_layers"]
    return gemma_values


def _unsupported(key: str, value: Any, where: str) -> ModelError:
    return ModelError(
        f"{key} = {value} cannot be expressed in transformers' configuration, so results would differ",
        where=where,
        next=ADVICE,
    )
