"""The models that are measured, as transformers' configurations, and a folder of each with random NF4 weights.

Weights are made and quantized layer by layer, so a folder takes no more memory to make than its largest layer. What
is written is what `save_pretrained` of a bitsandbytes 4-bit model writes, and every engine reads the same folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

SHARD = 2 << 30  # bytes a file of weights
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "llama3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {**LLAMA3_ROPE, "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA3_ROPE,
        "tie_word_embeddings": False,
    },
}


def make_folder(shape: str, target: Path, device: str, tokenizer: Path | None = None) -> Path:
    """Makes the model `shape` in `target` if it is not there.

    With `tokenizer`, a folder, the vocabulary is that tokenizer's, rounded up to a multiple of 64 with room for one
    more token: an engine that adds its own padding token need not resize the embedding.
    """
    if not (target / "config.json").exists():  # written last
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        _make(SHAPES[shape], target, device, tokenizer)
    return target


def _make(sizes: dict[str, Any], target: Path, device: str, tokenizer: Path | None) -> None:
    from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig

    if tokenizer is None:
        words, vocabulary = _byte_tokenizer(), sizes["vocab_size"]
    else:
        words = AutoTokenizer.from_pretrained(tokenizer)
        vocabulary = -(-(len(words) + 1) // 64) * 64
    words.save_pretrained(target)
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = LlamaConfig(**{**sizes, **ids, "vocab_size": vocabulary, "dtype": torch.bfloat16})
    config.architectures = ["LlamaForCausalLM"]
    config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    _write_shards(_tensors(config, device), target)
    config.save_pretrained(target)


def _tensors(config: Any, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the file, by name: packed codes with their scales for the decoder's linear layers."""
    from bitsandbytes.functional import quantize_4bit
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    head = network.get_output_embeddings()
    linear = {
        f"{n}.weight" for n, layer in network.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    }
    for name, parameter in network.named_parameters():  # a tied head is no parameter of its own
        if parameter.dim() == 1:
            yield name, torch.ones(parameter.shape, dtype=torch.bfloat16)
            continue
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
        if name not in linear:
            yield name, weight.cpu()
            continue
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        yield name, packed.cpu()
        for part, value in state.as_dict(packed=True).items():
            yield f"{name}.{part}", value.cpu()


def _write_shards(tensors: Iterator[tuple[str, torch.Tensor]], target: Path) -> None:
    from safetensors.torch import save_file

    shards: list[dict[str, torch.Tensor]] = [{}]
    places: dict[str, str] = {}
    total = size = 0

    def write() -> None:
        file = f"model-{len(places_of):05d}.safetensors"
        save_file(shards.pop(), target / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
        places_of.append(file)
        names.clear()
        shards.append({})

    places_of: list[str] = []
    names: list[str] = []
    for name, tensor in tensors:
        if size > SHARD and "." not in name.partition(".weight")[2]:  # a layer's codes and scales lie in one file
            write()
            size = 0
        shards[-1][name] = tensor.contiguous()
        names.append(name)
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _byte_tokenizer() -> Any:
    """256 bytes and the special tokens; enough for random ids, and for engines that insist on a tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = TEMPLATE
    return made


if __name__ == "__main__":
    make_folder(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]) if len(sys.argv) > 4 else None)
