"""Every way of training an adapter, and what tests ask of the models that have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.config.recipe import NamedSetting
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.weights import fetch_weights

IDS = torch.tensor([[index % 250 + 5 for index in range(start, start + 24)] for start in (3, 90)])
BASIC: dict[str, Any] = {"rank": 4, "alpha": 8, "layers": "all", "dropout": 0.0, "seed": 3}
PISSA, LOFTQ = NamedSetting("pissa", {}), NamedSetting("loftq", {})
WHOLE = ["embeddings", "head"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rs": {"scaling": "rs"},
    "dora": {"dora": True},
    "pissa": {"start": PISSA},
    "pissa-rs-dora": {"start": PISSA, "scaling": "rs", "dora": True},
    "loftq": {"start": LOFTQ},
    "whole": {"train_also": WHOLE},
    "bias": {"bias": "all"},
    "bias-and-few-updates": {"bias": "all", "layers": ["v_proj", "c_attn", "qkv_proj"]},
    "bias-of-updates": {"bias": "lora_only", "layers": ["q_proj", "v_proj", "c_attn"]},
    "all": {"dora": True, "train_also": WHOLE, "bias": "all", "dropout": 0.1, "start": PISSA},
}
WITH_BIAS = {"qwen2", "gpt2"}


def made(folder: Path, *, bits: int = 4, **changes: Any) -> Model:
    model = load_model(fetch_weights(str(folder)), bits=bits, device="cpu", precision="float32")
    settings = {**BASIC, **changes}
    if settings["layers"] != "all":
        leaves = {name.rsplit(".", 1)[-1] for name in model.frozen()}
        settings["layers"] = [name for name in settings["layers"] if name in leaves]
    add_adapter(model, **settings)
    return model


def logits(network: Any) -> Tensor:
    network.eval()
    with torch.no_grad():
        found: Tensor = network(input_ids=IDS).logits
    return found


def grad_of(parameter: Tensor | None) -> Tensor:
    assert parameter is not None and parameter.grad is not None
    return parameter.grad


def shaken(model: Model) -> Model:
    """Moves every trained parameter away from its start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model
