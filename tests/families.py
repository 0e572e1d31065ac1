"""Tiny random models of every family in docs/families.md, text models and image-text models, made on the spot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tiny import COMMON, FAMILIES, make_tokenizer

Values = dict[str, Any]
EYE: Values = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_EYE: Values = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
}  # fmt: skip
PLAIN: Values = {key: value for key, value in COMMON.items() if key != "head_dim"}
UNTIED: Values = {"tie_word_embeddings": False}
MIXED: Values = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
FOUR: Values = {"num_local_experts": 4, "num_experts_per_tok": 2}
EIGHT: Values = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED: Values = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
LLAMA3: Values = {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}  # fmt: skip
MROPE: Values = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
PARTLY: Values = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}
SCALED: Values = {
    "logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.25,
}  # fmt: skip
GEMMA: Values = {**COMMON, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 16}
BY_LAYER: Values = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 261}
GEMMA3N: Values = {
    **GEMMA, **MIXED, **BY_LAYER, "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0],
    "intermediate_size": [128, 128],
}  # fmt: skip
GEMMA4: Values = {**GEMMA, **MIXED, **BY_LAYER, "global_head_dim": 32}
LINEAR: Values = {  # Qwen 3.5 has three layers of linear attention to one of softmax attention; here one and one
    **COMMON, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_conv_kernel_dim": 4,
    "mtp_num_hidden_layers": 1,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
}  # fmt: skip
MAMBA: Values = {
    **PLAIN, **SCALED, "layer_types": ["mamba", "attention"], "num_local_experts": 0, "num_experts_per_tok": 0,
    "shared_intermediate_size": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16,
    "mamba_expand": 2, "mamba_chunk_size": 16, "position_embedding_type": "nope",
}  # fmt: skip
LATENT: Values = {
    **PLAIN, **ROUTED, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
LLAMA4: Values = {
    **FOUR, "num_experts_per_tok": 1, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2,
    "attention_chunk_size": 64,
}  # fmt: skip
GEMMA3_TOKENS: Values = {"mm_tokens_per_image": 4, "boi_token_index": 4, "eoi_token_index": 5, "image_token_index": 6}


@dataclass(frozen=True)
class Family:
    """A row of the table: what people call it, transformers' model type, and a tiny configuration.

    `vision` is the configuration of a tower for images, where the checkpoint is an image-text model.
    """

    title: str
    kind: str
    text: Values
    vision: Values | None = None
    more: Values = field(default_factory=dict)  # of the whole image-text configuration


FAMILY: dict[str, Family] = {
    "llama2": Family("Llama 2", "llama", {**PLAIN, **UNTIED, "num_key_value_heads": 4}),
    "llama3": Family("Llama 3, 3.1; DeepSeek R1 distills", "llama", {**PLAIN, **UNTIED, **LLAMA3}),
    "llama32": Family("Llama 3.2; SmolLM 2", "llama", {**COMMON, **LLAMA3}),
    "llama4": Family("Llama 4, text", "llama4_text", {**COMMON, **LLAMA4}),
    "llama4_images": Family(
        "Llama 4", "llama4", {**COMMON, **LLAMA4, "model_type": "llama4_text"},
        {**EYE, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        {"image_token_index": 6},
    ),
    "mistral": Family("Mistral 7B", "mistral", {**COMMON, **UNTIED, "sliding_window": None}),
    "mixtral": Family("Mixtral", "mixtral", {**COMMON, **FOUR}),
    "ministral": Family("Ministral 8B", "ministral", {**COMMON, **MIXED}),
    "ministral3": Family("Ministral 3, text", "ministral3", COMMON),
    "mistral3": Family("Mistral Small 3.1", "mistral3", {**COMMON, "model_type": "mistral"}, EYE),
    "qwen2": Family("Qwen 2.5; DeepSeek R1 distills", "qwen2", PLAIN),
    "qwen2_5_vl": Family("Qwen 2.5 VL", "qwen2_5_vl", {**PLAIN, **MROPE}, QWEN_EYE),
    "qwen3": Family("Qwen 3", "qwen3", COMMON),
    "qwen3_vl": Family("Qwen 3 VL", "qwen3_vl", {**COMMON, **MROPE}, {**QWEN_EYE, "deepstack_visual_indexes": [0]}),
    "qwen3_moe": Family("Qwen 3 MoE", "qwen3_moe", {**COMMON, **EIGHT, "norm_topk_prob": True}),
    "qwen3_5": Family("Qwen 3.5, 3.6", "qwen3_5", LINEAR, QWEN_EYE),
    "qwen3_5_text": Family("Qwen 3.5, 3.6, text", "qwen3_5_text", LINEAR),
    "qwen3_5_moe": Family("Qwen 3.5 MoE, text", "qwen3_5_moe_text", {
        **LINEAR, **EIGHT, "shared_expert_intermediate_size": 32,
    }),
    "gemma": Family("Gemma 1", "gemma", FAMILIES["gemma"]),
    "gemma2": Family("Gemma 2", "gemma2", {**GEMMA, "sliding_window": 256}),
    "gemma3_text": Family("Gemma 3 270M, 1B", "gemma3_text", {**GEMMA, **MIXED}),
    "gemma3": Family("Gemma 3 4B, 12B, 27B", "gemma3", {**GEMMA, **MIXED}, EYE, GEMMA3_TOKENS),
    "gemma3n": Family("Gemma 3n, text", "gemma3n_text", GEMMA3N),
    "gemma4": Family("Gemma 4, text", "gemma4_text", GEMMA4),
    "gemma4_images": Family(
        "Gemma 4", "gemma4", GEMMA4, {**EYE, "head_dim": 16, "num_key_value_heads": 2, "position_embedding_size": 64},
        {"audio_config": None},
    ),
    "gemma4_moe": Family("Gemma 4 MoE, text", "gemma4_text", {
        **GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    }),
    "phi3": Family("Phi 3, 3.5", "phi3", {**FAMILIES["phi3"], **UNTIED}),
    "phi4": Family("Phi 4, Phi 4 mini", "phi3", {**FAMILIES["phi3"], **PARTLY}),
    "phimoe": Family("Phi 3.5 MoE", "phimoe", {
        **COMMON, **FOUR, **UNTIED, "attention_bias": True, "lm_head_bias": True,
    }),
    "gpt_oss": Family("gpt-oss", "gpt_oss", {**COMMON, **FOUR, **MIXED, **UNTIED}),
    "olmo2": Family("OLMo 2", "olmo2", {**PLAIN, **UNTIED}),
    "olmo3": Family("OLMo 3", "olmo3", {**PLAIN, **MIXED, **UNTIED}),
    "olmoe": Family("OLMoE", "olmoe", {
        **PLAIN, **UNTIED, "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 2,
    }),
    "smollm3": Family("SmolLM 3", "smollm3", {**PLAIN, "no_rope_layers": [1, 0]}),
    "smolvlm": Family("SmolVLM", "smolvlm", {**COMMON, "model_type": "llama"}, EYE, {"scale_factor": 2}),
    "granite": Family("Granite 3", "granite", {**PLAIN, **SCALED}),
    "granitemoe": Family("Granite 3 MoE", "granitemoe", {**PLAIN, **SCALED, **FOUR}),
    "granite4": Family("Granite 4 H", "granitemoehybrid", MAMBA),
    "granite4_moe": Family("Granite 4 H, with experts", "granitemoehybrid", {**MAMBA, **FOUR}),
    "lfm2": Family("LFM 2", "lfm2", {
        **PLAIN, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False,
    }),
    "glm4": Family("GLM 4", "glm4", COMMON),
    "glm4_moe": Family("GLM 4.5, 4.6", "glm4_moe", {**COMMON, **ROUTED}),
    "deepseek_v3": Family("DeepSeek V3, R1", "deepseek_v3", LATENT),
    "gpt2": Family("GPT-2", "gpt2", FAMILIES["gpt2"]),
}  # fmt: skip


def family_config(name: str, **changes: Any) -> Any:
    """The tiny configuration of a family, with the token ids of tests/tiny.py's tokenizer."""
    from transformers import AutoConfig

    family = FAMILY[name]
    ids = {"bos_token_id": 1, "eos_token_id": 4, "pad_token_id": 0}
    text = {"vocab_size": 261, **ids, **family.text, **changes}
    if family.vision is None:
        return AutoConfig.for_model(family.kind, **text)
    tied = text.get("tie_word_embeddings", True)
    whole = {"text_config": text, "vision_config": family.vision, "tie_word_embeddings": tied, "image_token_id": 6}
    return AutoConfig.for_model(family.kind, **{**whole, **ids, **family.more})


def make_family(folder: Path, name: str, *, seed: int = 0, **changes: Any) -> Path:
    """Writes a random model of the family with its tokenizer to `folder`; an image-text model with its tower."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    config = family_config(name, **changes)
    kind = AutoModelForCausalLM if FAMILY[name].vision is None else AutoModelForImageTextToText
    model = kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the usual 0.02, so that a tiny model has something to say
            if parameter.dim() >= 2:
                parameter.normal_(std=0.08)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
