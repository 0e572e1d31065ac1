"""The transformers configuration that a GGUF file's metadata describes.

Every number that the file states about its architecture is either used here or known to carry no information; a key
that is neither is an error, because a value left out changes what the model computes. Key names:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's converters, whose writing is undone here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import ModelError

ADVICE = "Use the same model's .safetensors as base.model: its folder, or its hub name"

# transformers' name for what each key states; the keys stand behind "ARCHITECTURE."
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
_GENERATED = ("vocab_size", "attention.value_length", "rope.dimension_count")  # checked or counted elsewhere
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
_NORMS_BEHIND = {name: module for name, module in _NORMS_AROUND.items() if name not in ("attn_norm", "ffn_norm")}
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
class Architecture:
    """How llama.cpp writes one architecture, and which transformers model it is.

    `sizes` and `block` translate keys and tensor names. `rotated`: query and key rows are reordered by pairs.
    `shifted`: the file's norms are 1 larger than transformers'. `transposed`: matrices are in x out there.
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
    "llama": Architecture("llama", rotated=True),
    "granite": Architecture("granite", sizes=_SIZES | _GRANITE, rotated=True),
    "smollm3": Architecture("smollm3", rotated=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "olmo2": Architecture("olmo2", block=_NORMS_BEHIND),
    "phi3": Architecture("phi3", block=_PHI3),
    "gemma": Architecture("gemma", shifted=True),
    "gemma2": Architecture("gemma2", sizes=_SIZES | _SOFTCAPS, block=_NORMS_AROUND, shifted=True),
    "gemma3": Architecture("gemma3_text", sizes=_SIZES | _SOFTCAPS, block=_NORMS_AROUND, shifted=True),
    "gpt2": Architecture(
        "gpt2",
        sizes=_GPT2_SIZES,
        block=_GPT2_BLOCK,
        outer_module_name=_GPT2_OUTER,
        layers="transformer.h",
        transposed=True,
    ),
}
_FIXED_SCALE = {"gemma2": 46, "gemma3": 62}  # the 27B models, whose scale llama.cpp knows by their count of layers


def architecture_of(metadata: Mapping[str, Any], where: str) -> tuple[str, Architecture]:
    """The file's architecture by llama.cpp's name. Raises ModelError for one that cannot be converted."""
    name, kind = str(metadata.get("general.architecture", "")), metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"is no language model but of the type '{kind}'", where=where, next="Name the model's file")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"GGUF files of the architecture '{name}' cannot be a base; supported: {known}",
            where=where,
            next=ADVICE,
        )
    return name, ARCHITECTURES[name]


def config_values(
    name: str, metadata: Mapping[str, Any], vocabulary: int, factors: Mapping[str, Sequence[float]], where: str
) -> dict[str, Any]:
    """Keyword arguments of the architecture's configuration class; tensors decide about biases and tied embeddings.

    `vocabulary` is the number of rows of the embeddings; `factors` holds the file's rope_freqs, rope_factors_long and
    rope_factors_short where it has them. Raises ModelError for keys and values that have no place in the configuration.
    """
    made, prefix = ARCHITECTURES[name], f"{name}."
    given = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    unknown = [key for key in given if key not in (*made.sizes, *_GENERATED) and not key.startswith(_ROPE)]
    if unknown:
        raise _unsupported(f"{prefix}{unknown[0]}", given.get(unknown[0]), where)
    values = {made.sizes[key]: value for key, value in given.items() if key in made.sizes}
    missing = [key for key, target in made.sizes.items() if _needed(target) and target not in values]
    if missing:
        raise ModelError(f"states no {prefix}{missing[0]}", where=where, next="Fetch or convert the file again")
    values |= {"vocab_size": vocabulary, **_tokens(metadata, vocabulary)}
    if made.transposed:
        return values
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    head = _head(values, given, prefix, where)
    rotated = int(given.get("rope.dimension_count", head))
    if rotated != head and made.model_type not in ("phi3",):
        raise _unsupported(f"{prefix}rope.dimension_count", rotated, where)
    rope = _rope(given, factors, head, prefix, where)
    if made.model_type == "phi3":
        values |= _phi3(values, given, rope, rotated / head, factors)
        return values
    if name.startswith("gemma"):
        values |= _gemma(name, values, given, head, rope)
    if "sliding_window" in values and not name.startswith("gemma"):
        raise _unsupported(f"{prefix}attention.sliding_window", values["sliding_window"], where)
    if name != "gemma3":
        values["rope_parameters"] = rope
    return values


def _needed(target: str) -> bool:
    return target in {
        "max_position_embeddings", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
        "rms_norm_eps", *_GPT2_SIZES.values(),
    } - {"n_inner"}  # fmt: skip


def _head(values: dict[str, Any], given: Mapping[str, Any], prefix: str, where: str) -> int:
    """The width of one head; puts it into `values`. The value heads must be as wide."""
    head = int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])
    if int(given.get("attention.value_length", head)) != head:
        raise _unsupported(f"{prefix}attention.value_length", given["attention.value_length"], where)
    values["head_dim"] = head
    return head


def _tokens(metadata: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """The ids of special tokens; the end of a turn also ends a reply."""
    ids = {
        f"{name}_token_id": metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    if turn is not None and ids["eos_token_id"] not in (None, turn):
        ids["eos_token_id"] = [ids["eos_token_id"], turn]
    return {key: value for key, value in ids.items() if not isinstance(value, int) or value < vocabulary}


def _rope(
    given: Mapping[str, Any], factors: Mapping[str, Sequence[float]], head: int, prefix: str, where: str
) -> dict[str, Any]:
    """transformers' rope_parameters, of the global layers where there are two kinds."""
    base = float(given.get("rope.freq_base", 10000.0))
    scaling = {key.removeprefix("rope.scaling."): value for key, value in given.items() if "rope.scaling." in key}
    kind, theta = str(scaling.pop("type", "none")), {"rope_theta": base}
    scaling.pop("finetuned", None)
    if "rope_freqs" in factors:
        return theta | _llama3(list(factors["rope_freqs"]), base, head, where)
    if "rope_factors_long" in factors or (kind == "none" and set(scaling) <= {"original_context_length"}):
        return theta | {"rope_type": "default"}  # long and short factors are phi3's, see there
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
    """The Llama 3 scaling (arXiv:2407.21783) whose factors, one for each pair of a head, stand in the file."""
    common = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    found = {"rope_type": "llama3", "factor": max(factors), **common}
    wanted = llama3_factors(found, base, head)
    if len(factors) != len(wanted) or any(abs(a / b - 1) > 1e-3 for a, b in zip(factors, wanted, strict=True)):
        raise _unsupported("the tensor rope_freqs.weight", f"{len(factors)} factors up to {max(factors):g}", where)
    return found


def llama3_factors(rope: Mapping[str, Any], base: float, head: int) -> list[float]:
    """What each pair's frequency is divided by."""
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    made = []
    for pair in range(0, head, 2):
        turns = old * base ** (-pair / head) / (2 * math.pi)  # full turns of the pair over the old context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        made.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return made


def _phi3(
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    rope: dict[str, Any],
    share: float,
    factors: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Long and short factors, the rotated share of a head, and a window of 0 that means none."""
    old = int(given.get("rope.scaling.original_context_length", values["max_position_embeddings"]))
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
    name: str, values: Mapping[str, Any], given: Mapping[str, Any], head: int, rope: dict[str, Any]
) -> dict[str, Any]:
    """The scale of the scores, and Gemma 3's two kinds of layers."""
    if name == "gemma":
        return {}
    fixed = values["num_hidden_layers"] == _FIXED_SCALE[name]
    scalar = values["hidden_size"] // values["num_attention_heads"] if fixed else head
    made: dict[str, Any] = {"query_pre_attn_scalar": scalar}
    if name == "gemma3":
        local = {"rope_type": "default", "rope_theta": float(given.get("rope.freq_base_swa", 10000.0))}
        made["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
        if "sliding_window" not in values:
            made["layer_types"] = ["full_attention"] * values["num_hidden_layers"]
    return made


def _unsupported(key: str, value: Any, where: str) -> ModelError:
    return ModelError(
        f"{key} = {value} has no place in transformers' configuration, and the model would compute something else",
        where=where,
        next=ADVICE,
    )
