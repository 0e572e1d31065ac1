"""Tiny random mixtures of experts, one for each way in which transformers stores or routes experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from tiny import CHATML, make_tokenizer

COMMON: dict[str, Any] = {**tiny.COMMON, "intermediate_size": 96}
FEW: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL: dict[str, Any] = {"num_local_experts": 8, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
ROUTED: dict[str, Any] = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 1, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "shared_expert_intermediate_size": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**FEW, "norm_topk_prob": True},
    "qwen2_moe": {**FEW, "shared_expert_intermediate_size": 32, "mlp_only_layers": [0]},
    "mixtral": LOCAL,
    "olmoe": {**FEW, "intermediate_size": 48},
    "phimoe": LOCAL,
    "gpt_oss": {**LOCAL, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64},
    "granitemoe": LOCAL,
    "deepseek_v3": {**LATENT, **ROUTED},
    "glm4_moe": ROUTED,
    "lfm2_moe": {**FEW, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "qwen3_next": {**FEW, **LINEAR},
    "qwen3_5_moe_text": {**FEW, **LINEAR},
    "gemma4_text": {**FEW, "enable_moe_block": True, "top_k_experts": 2, "global_head_dim": 16,
                    "layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0,
                    "num_kv_shared_layers": 0},
    "llama4_text": {**LOCAL, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1},
    "jetmoe": {**LOCAL, "kv_channels": 16},
}  # fmt: skip


def make_moe(folder: Path, family: str, **changes: Any) -> Path:
    """Writes a random mixture of experts of `family` with a tokenizer to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(CHATML)
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(family, **{**COMMON, **ids, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 or name.endswith(
            "bias"
        ):  # larger than usual, so that a tiny model has something to say
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_mxfp4(folder: Path) -> Path:
    """A tiny gpt-oss whose experts are stored as OpenAI stores them, in MXFP4."""
    import torch
    from safetensors.torch import load_file, save_file

    file = make_moe(folder, "gpt_oss", intermediate_size=64) / "model.safetensors"
    tensors, generator = load_file(file), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, inputs, outputs = tensors.pop(name).shape
        size = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*size, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(121, 124, size, dtype=torch.uint8, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    return folder
