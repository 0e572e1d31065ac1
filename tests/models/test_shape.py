"""Counts before loading, against published sizes of real models and against loaded tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import BASIC, VARIANTS, WITH_BIAS, made
from families import make_family
from tunesmith.config.recipe import Adapter
from tunesmith.errors import InternalError, ModelError
from tunesmith.models.build import Model, check_adapter, load_model
from tunesmith.models.count_parameters import check_loaded, check_trained, planned_trained, read_shape
from tunesmith.models.weights import Weights, fetch_weights
from tunesmith.planning.autograd import NF4_BYTES, token_bytes

GIB = 1 << 30
SWA = ["sliding_attention"] * 5 + ["full_attention"]
CONFIGS: dict[str, dict[str, Any]] = {  # from the Hub, without keys that do not affect the count
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "tie_word_embeddings": False,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "gemma-3-4b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "sliding_window": 1024, "vocab_size": 262208,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 896,
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
        },
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "tie_word_embeddings": False,
    },
    "Phi-3-mini": {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "pad_token_id": 32000,
    },
    "Mistral-7B": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "SmolLM2-135M": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "GPT-2": {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "Mixtral-8x7B": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "tie_word_embeddings": False,
    },
    "OLMoE-1B-7B": {
        "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
PUBLISHED = {  # parameters in all, in billions, as their model cards say
    "Qwen3-30B-A3B": 30.53, "Qwen3-0.6B": 0.596, "Llama-3.2-1B": 1.236, "gemma-3-4b": 3.88, "gpt-oss-20b": 20.91,
    "Phi-3-mini": 3.821, "Mistral-7B": 7.242, "SmolLM2-135M": 0.1345, "GPT-2": 0.1244, "Mixtral-8x7B": 46.70,
    "OLMoE-1B-7B": 6.92,
}  # fmt: skip


def written(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_a_real_models_parameters_are_those_that_are_published(tmp_path: Path, name: str) -> None:
    shape = read_shape(written(tmp_path, CONFIGS[name]), name)
    assert shape.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=2e-3)
    assert sum(shape.counts.values()) == shape.parameters == shape.linear + shape.experts + shape.rest


def test_experts_are_most_of_a_mixture_in_either_number_of_bits(tmp_path: Path) -> None:
    """Computed by hand: 48 layers of 128 experts with three matrices of 2048 x 768."""
    shape = read_shape(written(tmp_path, CONFIGS["Qwen3-30B-A3B"]), "")
    assert shape.experts == 48 * 128 * 3 * 2048 * 768 == shape.counts["experts"]
    assert shape.base_bytes(16, 2)["experts"] / GIB == pytest.approx(54.0, abs=0.05)
    packed = shape.base_bytes(4, 2)
    assert packed["experts"] == pytest.approx(shape.experts * NF4_BYTES, rel=1e-6)
    attention = 2048 * (4096 + 512 + 512) + 4096 * 2048
    other_parameters = 2 * 151936 * 2048 + 48 * (128 * 2048 + 2 * 2048 + 2 * 128) + 2048
    assert sum(packed.values()) == pytest.approx(
        (shape.experts + 48 * attention) * NF4_BYTES + other_parameters * 2, rel=1e-6
    )
    assert shape.linear == 48 * attention and {name for name, _, _ in shape.every()} == {
        "q_proj", "k_proj", "v_proj", "o_proj"
    }  # fmt: skip
    rank = 16
    experts = 128 * rank * (2048 + 1536 + 768 + 2048)
    linear = rank * ((2048 + 4096) + 2 * (2048 + 512) + (4096 + 2048))
    assert shape.adapter(rank) == 48 * (linear + experts)
    assert shape.adapter(rank, experts="none") == 48 * linear
    assert shape.adapter(rank, ["down_proj"]) == 48 * 128 * rank * (768 + 2048)


def test_the_vision_tower_is_not_counted(tmp_path: Path) -> None:
    whole = CONFIGS["gemma-3-4b"]
    text = {"tie_word_embeddings": True, **whole["text_config"]}
    (tmp_path / "text").mkdir()
    assert read_shape(written(tmp_path, whole), "") == read_shape(written(tmp_path / "text", text), "")


def test_layers_that_differ_are_counted_one_by_one(tmp_path: Path) -> None:
    """A layer of linear attention beside one of softmax attention."""
    make_family(tmp_path, "qwen3_5_text")
    shape = read_shape(tmp_path, "")
    first, second = ({name: sizes for name, *sizes in block} for block in shape.blocks)
    assert first["in_proj_qkv"] == [64, 4 * 16 * 2 + 8 * 16] and first["out_proj"] == [128, 64]
    assert second["q_proj"] == [64, 128] and "in_proj_qkv" not in second
    assert shape.linear == sum(inner * out for block in shape.blocks for _, inner, out in block)


# --- after loading -----------------------------------------------------------------------------------------------


def loaded(folder: Path, bits: int, precision: str = "float32") -> Model:
    return load_model(fetch_weights(str(folder)), bits=bits, device="cpu", precision=precision)


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("name", ["llama32", "gemma3", "qwen3_moe", "gpt_oss", "granite4", "gpt2"])
def test_what_is_loaded_is_what_was_planned(family: Callable[[str], Path], name: str, bits: int) -> None:
    shape = read_shape(family(name), name)
    for precision, number in (("float32", 4), ("bfloat16", 2)):
        model = loaded(family(name), bits, precision)
        compared = check_loaded(shape, model, bits=bits, bytes_per_element=number)
        for group, sizes in compared.items():
            assert sizes["loaded"] == pytest.approx(sizes["planned"], rel=0.01, abs=512), group


def test_a_difference_of_more_than_a_hundredth_is_an_internal_error(family: Callable[[str], Path]) -> None:
    model, shape = loaded(family("qwen3_moe"), 16), read_shape(family("qwen3_moe"), "")
    for group in ("experts", "linear", "embeddings"):
        wrong = replace(shape, counts={**shape.counts, group: int(shape.counts[group] * 1.03)})
        with pytest.raises(InternalError, match=rf"bytes of {group}, but .*bug in tunesmith") as caught:
            check_loaded(wrong, model, bits=16, bytes_per_element=4)
        assert f"{shape.counts[group] * 4:,}" in str(caught.value)
    adapter = Adapter(rank=4)
    planned = planned_trained(model.architecture, adapter)
    assert check_trained(model.architecture, adapter, planned) == {"planned": planned, "trained": planned}
    with pytest.raises(InternalError, match=rf"{planned:,} trained parameters, but the model has {planned * 2:,}"):
        check_trained(model.architecture, adapter, planned * 2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama32", "qwen2", "gpt2", "gemma3"])
def test_trained_parameters_are_counted_for_every_variant(
    family: Callable[[str], Path], name: str, variant: str
) -> None:
    changes = {key: value for key, value in VARIANTS[variant].items() if key != "bias" or name in WITH_BIAS}
    model = made(family(name), bits=4 if "loftq" in variant else 16, **changes)
    leaves = {layer.rsplit(".", 1)[-1] for layer in model.lora}
    settings = {**BASIC, **changes}
    adapter = Adapter.model_validate(
        {
            **{key: settings[key] for key in ("rank", "alpha")},
            "layers": settings["layers"] if settings["layers"] == "all" else sorted(leaves),
            "dora": bool(settings.get("dora")), "train_also": settings.get("train_also", []),
            "bias": settings.get("bias", "none"),
        }
    )  # fmt: skip
    counted = sum(parameter.numel() for parameter in model.trainable().values())
    assert planned_trained(model.architecture, adapter) == counted


@pytest.mark.parametrize(
    "name",
    ["llama2", "gemma2", "gemma3n", "gemma4_moe", "gpt2", "gpt_oss", "qwen3_5", "granite4_moe", "deepseek_v3", "lfm2"],
)
def test_planned_activations_cover_what_autograd_saves(family: Callable[[str], Path], name: str) -> None:
    length, model = 192, made(family(name), bits=16)
    model.network.train()
    model_storages = {
        each.untyped_storage().data_ptr() for each in [*model.network.parameters(), *model.network.buffers()]
    }
    saved_tensors: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved_tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.decoder_network(input_ids=torch.arange(length)[None] + 5, use_cache=False).last_hidden_state
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in saved_tensors}
    saved = sum(size for place, size in storages.items() if place not in model_storages) / length
    planned = token_bytes(read_shape(family(name), name), 4, False, longest=length)
    assert hidden.requires_grad and 0.5 * planned < saved < 1.05 * planned


# --- before loading ----------------------------------------------------------------------------------------------


def told(folder: Path, **changes: Any) -> list[str]:
    return [str(error) for error in check_adapter(Adapter.model_validate(changes), fetch_weights(str(folder)))]


def test_unsupported_adapter_settings_are_errors(family: Callable[[str], Path]) -> None:
    [error] = told(family("llama32"), layers=["q_porj"])
    assert "'q_porj'" in error and "adapter.layers" in error and "q_proj" in error
    [error] = told(family("llama32"), layers=["lm_head"])
    assert "'lm_head' is not a linear layer that can be adapted" in error
    [error] = told(family("qwen3_moe"), layers=["gate"])
    assert "'gate' is not a linear layer that can be adapted" in error
    both = told(family("llama32"), train_also=["head"], bias="all")
    assert len(both) == 2 and "one matrix" in both[0] and "no bias to train" in both[1]
    assert told(family("gemma3"), layers=["fc1"]) != []  # of the tower for images
    for name, layers in (("llama32", "all"), ("qwen3_moe", ["gate_up_proj"]), ("gpt2", ["c_attn"]), ("qwen2", "all")):
        assert told(family(name), layers=layers) == []
    assert told(family("qwen2"), bias="lora_only") == []


def test_a_missing_weight_is_an_error_before_loading(family: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers would initialize it randomly."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(family("llama32") / "model.safetensors")
    missing = "model.layers.1.mlp.up_proj.weight"
    save_file({name: value for name, value in tensors.items() if name != missing}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((family("llama32") / "config.json").read_text())
    [error] = told(tmp_path)
    assert missing in error and "no weight" in error
    with pytest.raises(ModelError, match="no weight for"):
        loaded(tmp_path, 16)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "t5", "vocab_size": 64, "d_model": 32, "num_layers": 1}, "encoder-decoder"),
        ({"model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}, "bidirectional encoder"),
        ({"model_type": "unheard_of"}, "does not know the model type 'unheard_of'"),
        ({"model_type": "vit", "hidden_size": 32}, "no causal language model of type vit"),
        ({"model_type": "glm4v", "text_config": {}, "vision_config": {}}, "text half of the image-text model glm4v"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantized with gptq"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}, "quantized with fp8"),
        ({"model_type": "llama", "hidden_size": "many"}, "config.json cannot be used"),
    ],
)
def test_other_models_are_refused_with_the_reason(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        read_shape(written(tmp_path, config), "the/model")
    assert "the/model" in str(caught.value) and caught.value.next
    [error] = check_adapter(Adapter(), Weights("the/model", tmp_path, "0"))
    assert why in str(error)
