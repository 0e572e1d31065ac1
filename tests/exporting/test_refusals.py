"""What is said of export.files before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith.exporting.convert as converting
from gguf_models import make_convertible
from tunesmith.commands.export import check_export, export_warnings
from tunesmith.commands.shared import load_recipe_template, load_weights, silent
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import TunesmithError


@pytest.fixture
def refused(
    tmp_path: Path, recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[TunesmithError]]:
    """refused(files, changes) -> what check_export says of them; the converter is not run unless `convert` is given."""
    base, real = make_convertible(tmp_path / "base"), converting._run_converter

    def check(*files: Any, convert: bool = False, model: Path = base, **changes: Any) -> list[TunesmithError]:
        monkeypatch.setattr(converting, "_run_converter", real if convert else lambda *_: None)
        path = recipe_file(base__model=str(model), export__files=list(files), **changes)
        recipe = read_recipe(str(path))
        weights = load_weights(recipe, silent)
        return check_export(recipe, weights, load_recipe_template(recipe, weights))

    return check


GGUF = {"gguf": {"types": ["q8_0"]}}


@pytest.mark.parametrize(
    ("files", "changes", "said"),
    [
        (["gguf_lora"], {"adapter__dora": True}, "cannot hold the magnitudes of adapter.dora"),
        (
            ["gguf_lora"],
            {"adapter__train_also": ["embeddings", "head"]},
            "the full weights of adapter.train_also (embeddings, head)",
        ),
        (["gguf_lora"], {"adapter__bias": "all"}, "cannot hold the biases that adapter.bias: all trains"),
        ([GGUF, {"ollama": {}}], {}, "ollama needs a GGUF file of type q4_k_m, which no target before it writes"),
        ([{"ollama": {"of": "q8_0"}}, GGUF], {}, "ollama needs a GGUF file of type q8_0"),
        ([{"space": {"quantization": "q8_0"}}], {}, "space needs a GGUF file of type q8_0"),
        ([{"hub": {"repo": "a/b", "what": "merged"}}, "merged"], {}, "hub needs merged, which no target before it"),
        ([GGUF, "gguf"], {}, "'gguf' is named twice"),
        (
            ["merged"],
            {"evaluate__max_new_tokens": 512},
            "a reply of evaluate.max_new_tokens: 512 leaves no room for a prompt",
        ),
    ],
)
def test_what_cannot_work_is_said_before_training(
    refused: Callable[..., list[TunesmithError]], files: list[Any], changes: dict[str, Any], said: str
) -> None:
    [error] = refused(*files, **changes)
    assert said in str(error) and error.where.startswith("export.files") and error.next


def test_what_can_work_is_not_refused(refused: Callable[..., list[TunesmithError]]) -> None:
    hub = {"hub": {"repo": "a/b", "what": "gguf"}}
    files = [
        "adapter",
        "merged",
        GGUF,
        "gguf_lora",
        {"ollama": {"of": "q8_0"}},
        {"space": {"quantization": "q8_0"}},
        hub,
    ]
    assert refused(*files) == []
    assert refused(adapter__dora=True) == []  # nothing is exported


def test_the_original_weights_of_a_base_in_four_bits_are_not_there(
    refused: Callable[..., list[TunesmithError]], tmp_path: Path
) -> None:
    stored = make_convertible(tmp_path / "stored")
    config = json.loads((stored / "config.json").read_text())
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (stored / "config.json").write_text(json.dumps({**config, "quantization_config": four}))
    [error] = refused("merged", model=stored, export__merge_into="original")
    assert "hold 4 bits, not the original weights" in str(error)


def test_a_base_that_the_converter_does_not_know(
    refused: Callable[..., list[TunesmithError]], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    unknown = make_convertible(tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "architectures": ["UnheardOfForCausalLM"]}))
    [error] = refused(GGUF, "gguf_lora", "merged", model=unknown)
    assert "does not know the architecture UnheardOfForCausalLM" in str(error)
    [error] = refused(GGUF, "gguf_lora", "merged", convert=True, model=tiny("llama"))
    assert "BPE pre-tokenizer was not recognized" in str(error) and "another base.model" in error.next


def test_an_adapter_that_the_converter_cannot_write_is_said_before_training(
    refused: Callable[..., list[TunesmithError]], tmp_path: Path
) -> None:
    from gguf_models import make_shippable

    assert refused("gguf_lora", convert=True) == []
    [error] = refused("gguf_lora", convert=True, model=make_shippable(tmp_path / "ministral3", "ministral3"))
    assert "writes no adapter for this family" in str(error) and error.where == "export.files: gguf_lora"


def test_layers_that_llama_cpp_runs_without_an_update_are_named_with_those_that_work(
    refused: Callable[..., list[TunesmithError]], tmp_path: Path
) -> None:
    from gguf_models import make_shippable

    gemma = make_shippable(tmp_path / "gemma4", "gemma4")
    [error] = refused("gguf_lora", model=gemma)
    assert "does not apply an adapter to per_layer_model_projection" in str(error)
    layers = error.next.partition("[")[2].partition("]")[0].split(", ")
    assert "q_proj" in layers and "per_layer_model_projection" not in layers
    assert refused("gguf_lora", model=gemma, adapter__layers=layers) == []
    qwen = make_shippable(tmp_path / "qwen3_5_text", "qwen3_5_text")
    [error] = refused("gguf_lora", model=qwen)
    assert "cannot write an adapter over linear_attn.out_proj" in str(error)


def test_experts_are_refused_before_training(refused: Callable[..., list[TunesmithError]], tmp_path: Path) -> None:
    from gguf_models import make_shippable

    mixtral = make_shippable(tmp_path / "mixtral", "mixtral")
    [error] = refused("gguf_lora", model=mixtral)
    assert "cannot hold updates of experts" in str(error) and "Set adapter.experts to none" in error.next
    assert refused("gguf_lora", model=mixtral, adapter__experts="none") == []


def test_a_family_that_llama_cpp_computes_in_another_way_is_warned_of(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    from gguf_models import make_shippable

    def warned(name: str, *files: Any) -> list[str]:
        folder = tmp_path / name
        base = folder if folder.exists() else make_shippable(folder, name)
        path = recipe_file(base__model=str(base), export__files=list(files), train__precision="float32")
        recipe = read_recipe(str(path))
        weights = load_weights(recipe, silent)
        return export_warnings(recipe, weights, load_recipe_template(recipe, weights))

    [said] = warned("phimoe", GGUF, "merged")
    assert said.startswith("export.files: gguf: llama.cpp computes PhiMoE with other normalizations")
    assert warned("phimoe", "merged") == [] and warned("llama2", GGUF, "adapter") == []
    [said] = warned("phimoe", "adapter")
    assert "transformers does not quantize experts" in said
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    four |= {"bnb_4bit_compute_dtype": "bfloat16"}
    path = tmp_path / "llama2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": four}))
    [said] = warned("llama2", "adapter")
    assert "set computation in bfloat16, but training computes in float32" in said
