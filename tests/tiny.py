"""Tiny random models of the supported families, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "mistral": {**COMMON, "sliding_window": None},
    "qwen2": {k: v for k, v in COMMON.items() if k != "head_dim"},
    "qwen3": COMMON,
    "gemma": {**COMMON, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {**COMMON, "sliding_window": 256, "query_pre_attn_scalar": 16},
    "gemma3_text": {**COMMON, "sliding_window": 256, "query_pre_attn_scalar": 24, "sliding_window_pattern": 2},
    "gemma4_text": {
        **COMMON,
        "sliding_window": 256,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "ministral": {**COMMON, "sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": {k: v for k, v in COMMON.items() if k != "head_dim"} | {"no_rope_layer_interval": 2, "pad_token_id": 0},
    "phi3": {k: v for k, v in COMMON.items() if k != "head_dim"} | {"pad_token_id": 0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
}


def make_tokenizer(template: str | None = CHATML, pad: str | None = "<pad>") -> Any:
    """A byte-level tokenizer: 256 bytes and four special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>" if template == CHATML else "</s>",
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = template
    return made


def make_model(
    folder: Path, family: str = "llama", *, seed: int = 0, template: str | None = CHATML, **changes: Any
) -> Path:
    """Writes a random model of `family` with its tokenizer to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(template)
    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **ids, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # larger than the usual 0.02, so that a tiny model has something to say
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_rows(topics: int = 6, phrasings: int = 6) -> list[dict[str, str]]:
    """Rows in the shape of shopsphere, short enough for a byte-level tokenizer."""
    return [
        {"topic": f"t{t}", "prompt": f"how to do {t} way {p}?", "completion": f"1. Open {t}.\n2. Tap Save."}
        for t in range(topics)
        for p in range(phrasings)
    ]
