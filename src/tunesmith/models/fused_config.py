"""Reads from a model's configuration whether it can be fused, and the attention of each layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

FUSED_FAMILIES = (
    "gemma", "gemma2", "gemma3_text", "gemma4_text", "llama", "ministral", "mistral", "phi3", "qwen2", "qwen3",
    "smollm3",
)  # fmt: skip
LATER_GEMMAS = ("gemma2", "gemma3_text", "gemma4_text")  # norms after attention and MLP, capped logits
LAYER_TYPES = ("full_attention", "sliding_attention")
ROPE_TYPES = (
    "default",
    "linear",
    "llama3",
    "longrope",
    "proportional",
    "yarn",
)  # one or two tables suffice


@dataclass(frozen=True)
class LayerAttention:
    """One layer's attention. `queries` and `keys` are the total widths of query and key heads, `head` that of one.

    `window` is the number of tokens that a query sees, itself included (0: all before it). `rope` is the key of the
    layer's RoPE parameters ("" if all layers share them), None for a layer without RoPE. `switch` is the longest text
    for which LongRoPE uses its short factors (0: other RoPE). With `shared_values` the values are the key projection's
    output; with `norm_values` they are normalized.
    """

    queries: int
    keys: int
    head: int
    window: int
    rope: str | None = ""
    switch: int = 0
    shared_values: bool = False
    norm_values: bool = False


def unfused_config(config: Mapping[str, Any]) -> list[str]:
    """Returns the reasons why a model with this config.json cannot be fused; empty if it can."""
    from huggingface_hub.errors import StrictDataclassError

    family = str(text_config(config).get("model_type", ""))
    if family not in FUSED_FAMILIES:
        return [f"the family {family} has no fused blocks"]
    try:
        return config_reasons(_read(config))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"its config.json cannot be parsed ({str(error).splitlines()[-1].strip()})"]


def fused_layers(config: Mapping[str, Any]) -> list[LayerAttention]:
    """Returns the attention of each layer of a model with this config.json, which `unfused_config` has accepted."""
    return layer_attentions(_read(config))


def _read(config: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    inner = copy.deepcopy(dict(text_config(config)))
    return CONFIG_MAPPING[str(inner["model_type"])].from_dict(inner)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a config.json's `text_config` if only that can be fused, else the whole."""
    inner = config.get("text_config")
    if config.get("model_type") in FUSED_FAMILIES or not isinstance(inner, Mapping):
        return config
    return inner if inner.get("model_type") in FUSED_FAMILIES else config


def config_reasons(config: Any) -> list[str]:
    """Returns the reasons why a model with this transformers `config` cannot be fused; empty if it can."""
    family = str(config.model_type)
    if family not in FUSED_FAMILIES:
        return [f"the family {family} has no fused blocks"]
    reasons = []
    if any(getattr(config, key, None) for key in ("attention_dropout", "resid_pdrop", "embd_pdrop")):
        reasons.append("the model itself has dropout")
    reasons += _activation_reasons(config)
    if getattr(config, "use_bidirectional_attention", None) in (True, "all") or not getattr(config, "is_causal", True):
        reasons.append("its tokens attend to later ones (use_bidirectional_attention)")
    if unknown := sorted(set(_layer_types(config)) - set(LAYER_TYPES)):
        reasons.append(f"it has layers of type {', '.join(unknown)}")
    scalings = {str(_rope(config, kind).get("rope_type", "default")) for kind in _rope_kinds(config)}
    if unknown := sorted(scalings - set(ROPE_TYPES)):
        reasons.append(f"its RoPE frequencies change with the length of the text (rope_type {', '.join(unknown)})")
    if getattr(config, "enable_moe_block", False):
        reasons.append("its feed-forward layers are mixtures of experts")
    if family == "gemma4_text" and config.hidden_size_per_layer_input:
        reasons.append("its layers have per-layer inputs (hidden_size_per_layer_input)")
    if family == "gemma4_text" and config.num_kv_shared_layers:
        reasons.append("its last layers share the keys and values of others (num_kv_shared_layers)")
    return reasons


def _activation_reasons(config: Any) -> list[str]:
    from transformers.activations import ACT2FN

    gemma = config.model_type in LATER_GEMMAS
    name = config.hidden_activation if gemma else config.hidden_act
    if name in ACT2FN and fused_activation(ACT2FN[name]) is not None:
        return []
    return [f"its activation is {name}, neither SiLU nor tanh-approximated GELU"]


def fused_activation(function: Any) -> str | None:
    """Returns the fused activation that equals `function` on sample values; None if there is none."""
    x = torch.linspace(-4, 4, 65)
    values = {"silu": nn.functional.silu(x), "gelu_tanh": nn.functional.gelu(x, approximate="tanh")}
    return next((name for name, value in values.items() if torch.allclose(function(x), value, atol=1e-6)), None)


def layer_attentions(config: Any) -> list[LayerAttention]:
    """Returns the attention of each layer of a model with this transformers `config`, of one of FAMILIES."""
    return [_layer(config, index) for index in range(config.num_hidden_layers)]


def _layer(config: Any, index: int) -> LayerAttention:
    gemma4 = config.model_type == "gemma4_text"
    layer_config = config.per_layer_config[index] if gemma4 else config
    head = int(getattr(layer_config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    types = _layer_types(config)
    if types:
        windowed, kind = types[index] == "sliding_attention", types[index]
    else:
        windowed, kind = config.model_type in ("mistral", "phi3"), ""
    rope: str | None = kind if _nested(config) else ""
    if config.model_type == "smollm3" and not config.no_rope_layers[index]:
        rope = None
    return LayerAttention(
        queries=config.num_attention_heads * head,
        keys=int(layer_config.num_key_value_heads or config.num_attention_heads) * head,
        head=head,
        window=int(config.sliding_window or 0) if windowed else 0,
        rope=rope,
        switch=0 if rope is None else _longrope_switch(config, rope),
        shared_values=bool(gemma4 and config.attention_k_eq_v and not windowed),
        norm_values=gemma4,
    )


def _layer_types(config: Any) -> list[str]:
    """Returns each layer's type if the family's layers differ; other families ignore a `layer_types` entry."""
    return [] if config.model_type in ("gemma", "llama", "mistral", "phi3") else list(config.layer_types)


def _nested(config: Any) -> bool:
    """Whether each layer type has its own RoPE parameters."""
    return config.model_type in ("gemma3_text", "gemma4_text")


def _rope_kinds(config: Any) -> list[str]:
    return sorted(set(_layer_types(config)) & set(LAYER_TYPES)) if _nested(config) else [""]


def _rope(config: Any, kind: str) -> Mapping[str, Any]:
    """Returns the RoPE parameters with the key `kind` (see LayerAttention.rope)."""
    parameters: Mapping[str, Any] = config.rope_parameters[kind] if kind else config.rope_parameters
    return parameters


def _longrope_switch(config: Any, kind: str) -> int:
    rope = _rope(config, kind)
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else 0
