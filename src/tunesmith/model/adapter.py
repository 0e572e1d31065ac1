"""An adapter on disk, as PEFT reads and writes it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import RunError
from tunesmith.model.build import Model

_PREFIX = "base_model.model."


def peft_config(model: Model, *, rank: int, alpha: float, dropout: float, names: list[str]) -> dict[str, object]:
    """adapter_config.json for LoRA on the layers `names`."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in names}),
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.transposed,
        base_model_name_or_path=model.weights.name,
        inference_mode=True,
    ).to_dict()
    plain = json.loads(
        json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )
    plain["target_modules"] = sorted(plain["target_modules"])  # a set: its order would change from run to run
    return dict(sorted(plain.items()))


def write_adapter(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> None:
    """Writes adapter_config.json and adapter_model.safetensors; `tensors` are named layer.lora_A and layer.lora_B."""
    from safetensors.torch import save_file

    named = {f"{_PREFIX}{name}.weight": tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def read_adapter(folder: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The configuration and tensors of an adapter, named as `write_adapter` takes them.

    Raises RunError when it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"the adapter cannot be read: {error}", where=str(folder), next="Train again") from error
    return config, {name.removeprefix(_PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}


def fill(model: Model, tensors: dict[str, Tensor]) -> None:
    """Copies `tensors` into the model's LoRA layers. Raises RunError when a name or a shape does not fit."""
    parameters = model.trainable()
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())[0]
        raise RunError(f"the adapter and the model differ at '{odd}'", next="Was it trained on another base?")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise RunError(f"'{name}' is {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])
