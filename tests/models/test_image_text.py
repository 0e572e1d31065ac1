"""Image-text checkpoints: only the text half is loaded, adapted, merged and exported, whatever its tensor names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from adapters import logits, made, shaken
from exporting.test_merge import job_of
from families import FAMILY
from tunesmith.exporting.merge import merge, text_model_config
from tunesmith.generation.from_folder import FolderModel
from tunesmith.models.adapter import load_adapter, read_adapter
from tunesmith.models.architecture import architecture_from_weights, read_architecture
from tunesmith.models.build import load_model
from tunesmith.models.weights import fetch_weights

WHOLE = [name for name, family in FAMILY.items() if family.vision is not None]


def old_names(name: str) -> str:
    """Returns the name in checkpoints from before transformers 5: language_model.model.layers…, vision_tower…"""
    name = name.removeprefix("model.")
    if name.startswith("language_model.") and not name.startswith("language_model.model."):
        return f"language_model.model.{name.removeprefix('language_model.')}"
    return f"language_model.{name}" if name.startswith("lm_head.") else name


def new_names(name: str) -> str:
    return name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")


@pytest.mark.parametrize("layout", [old_names, new_names])
@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_every_layout_of_the_files_gives_the_same_text_model(
    family: Callable[[str], Path], tmp_path: Path, name: str, layout: Callable[[str], str]
) -> None:
    base = family(name)
    tensors = {layout(each): tensor for each, tensor in load_file(base / "model.safetensors").items()}
    assert any(each.startswith(("language_model.", "model.language_model.")) for each in tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for file in base.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "chat_template.jinja").write_text((base / "chat_template.jinja").read_text())
    model, usual = shaken(made(tmp_path, bits=16)), shaken(made(base, bits=16))
    assert torch.equal(logits(model.network), logits(usual.network))
    folder = merge(job_of(model, tmp_path, bits=16), tmp_path / "merged", torch.float32)
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(usual.network), rtol=1e-4, atol=1e-4)


def test_a_tower_that_cannot_be_built_does_not_matter(family: Callable[[str], Path], tmp_path: Path) -> None:
    """Gemma 3n's vision tower needs the package timm; its text half does not."""
    text = json.loads((family("gemma3n") / "config.json").read_text())
    config = {"model_type": "gemma3n", "text_config": text, "vision_config": {"model_type": "gemma3n_vision"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "audio_config": {"model_type": "gemma3n_audio"}}))
    tensors = load_file(family("gemma3n") / "model.safetensors")
    assert all(name.startswith("model.") for name in tensors)
    renamed = {f"model.language_model.{name.removeprefix('model.')}": tensor for name, tensor in tensors.items()}
    renamed["model.vision_tower.timm_model.conv_stem.weight"] = torch.zeros(4, 3, 3, 3)
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, usual = (
        load_model(fetch_weights(str(folder)), bits=16, device="cpu", precision="float32")
        for folder in (tmp_path, family("gemma3n"))
    )
    assert torch.equal(logits(model.network), logits(usual.network))
    assert (model.architecture.inside, model.architecture.whole) == ("model.language_model", "gemma3n")


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_but_the_text_half_is_loaded_or_adapted(
    family: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    model = shaken(made(family(name), bits=16))
    loaded = model.architecture
    assert loaded.note == f"text half of an image-text model ({FAMILY[name].kind}); the vision tower is not loaded"
    assert not any(
        "vision" in module_name or "visual" in module_name for module_name, _ in model.network.named_modules()
    )
    assert len(model.lora) == len(loaded.linear()) > 10
    job = job_of(model, tmp_path, bits=16)
    stored = load_file(job.adapter / "adapter_model.safetensors")
    assert not any("vision" in module_name or "visual" in module_name for module_name in stored)
    assert all(module_name.startswith(f"base_model.model.{loaded.inside or 'model'}.") for module_name in stored)
    assert read_adapter(job.adapter, loaded)[1].keys() == model.trainable().keys()
    again = load_model(model.weights, bits=16, device="cpu", precision="float32")
    load_adapter(again, job.adapter)
    assert torch.equal(logits(again.network), logits(model.network))


@pytest.mark.parametrize("name", WHOLE)
def test_a_merge_contains_only_the_text_model(family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    model = shaken(made(family(name), bits=16))
    folder = merge(job_of(model, tmp_path, bits=16), tmp_path / "merged", torch.float32)
    config = json.loads((folder / "config.json").read_text())
    assert "vision_config" not in config and "text_config" not in config
    assert config["architectures"] == [type(model.network).__name__]
    names = set(load_file(folder / "model.safetensors"))
    assert all(tensor_name.startswith(("model.", "lm_head.")) and "vision" not in tensor_name for tensor_name in names)
    assert not read_architecture(folder, "merged").whole  # it is a text model now
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size < sum(file.stat().st_size for file in family(name).glob("*.safetensors"))


@pytest.mark.parametrize("name", ["gemma3", "smolvlm"])
def test_the_adapter_is_verified_over_the_whole_checkpoint(
    family: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """As in the export target `adapter`: transformers and PEFT in a subprocess."""
    model = shaken(made(family(name), bits=16))
    job = job_of(model, tmp_path, bits=16)
    ids = list(range(20, 40))
    log_probs: Any = model.network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    nats = [-log_probs[place, ids[place + 1]].item() for place in range(10, 15)]
    folder = Path(model.weights.folder)
    with FolderModel(folder, adapter=job.adapter, bits=16, stop=(), template=job.template, context=64) as runtime:
        found = list(runtime.scores(ids[:16], start=11))
    assert [score.nats for score in found] == pytest.approx(nats, abs=1e-3)


def test_rope_settings_are_exported_as_in_the_base(family: Callable[[str], Path], tmp_path: Path) -> None:
    """Versions before transformers 5 read rope_theta, not rope_parameters."""
    config = json.loads((family("gemma3") / "config.json").read_text())
    config["text_config"].pop("rope_parameters", None)
    config["text_config"] |= {"rope_theta": 7e5, "rope_local_base_freq": 2e4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in ("model.safetensors", "tokenizer.json"):
        (tmp_path / file).write_bytes((family("gemma3") / file).read_bytes())
    weights = fetch_weights(str(tmp_path))
    shipped = text_model_config(architecture_from_weights(weights), weights)
    assert (shipped["rope_theta"], shipped["rope_local_base_freq"]) == (7e5, 2e4) and "rope_parameters" not in shipped
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "config.json").write_text(json.dumps(shipped))
    again, whole = (read_architecture(folder, "").config for folder in (tmp_path / "shipped", tmp_path))
    assert again.rope_parameters == whole.rope_parameters


@pytest.mark.parametrize("name", ["granite4", "qwen3_5_text"])
def test_a_mixer_does_not_bypass_its_layers(
    family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With kernels installed, transformers passes them the output layer's weight, but only in training mode."""
    model = shaken(made(family(name), bits=16))
    evaluated = logits(model.network)
    model.network.train()
    mixers = [module for module in model.network.modules() if hasattr(module, "A_log")]
    assert mixers and not any(module.training for module in mixers)
    assert all(module.out_proj.training and module.in_proj.training for module in mixers if hasattr(module, "in_proj"))
    with torch.no_grad():
        trained = model.network(input_ids=torch.tensor([list(range(5, 29))]), use_cache=False).logits
    model.network.eval()
    with torch.no_grad():
        without_shortcut = model.network(input_ids=torch.tensor([list(range(5, 29))]), use_cache=False).logits
    assert torch.equal(trained, without_shortcut) and evaluated.isfinite().all()
