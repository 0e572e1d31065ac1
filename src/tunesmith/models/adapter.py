"""Reads and writes adapters in PEFT's format."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import RunError
from tunesmith.models.architecture import Architecture, last_part
from tunesmith.models.build import Bias, Model, add_adapter
from tunesmith.models.experts import expert_shapes, peft_targets

_PREFIX = "base_model.model."
_WITHOUT_WEIGHT_SUFFIX = (".bias", ".lora_magnitude_vector")  # PEFT writes these names without ".weight"
_UNSUPPORTED_KEYS = ("rank_pattern", "alpha_pattern", "trainable_token_indices", "lora_bias", "layers_to_transform")


def peft_config(
    model: Model,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    names: list[str],
    rs: bool = False,
    dora: bool = False,
    train_also: Sequence[str] = (),
    bias: Bias = "none",
    double_rank: bool = False,
    parts: Sequence[str] = (),
) -> dict[str, object]:
    """Returns adapter_config.json for LoRA on the linear layers `names` and the expert parameters `parts`.

    `double_rank` is for PiSSA, whose update also holds its initial factors: rank 2 · `rank`, with alpha raised so that
    the scale stays the same.
    """
    from peft import LoraConfig

    if double_rank:
        rank, alpha = 2 * rank, alpha * (math.sqrt(2) if rs else 2)
    modules, parameters = peft_targets(names, parts, moe=bool(model.experts()))
    targets = model.architecture.target_modules([name for name in names if last_part(name) in modules])
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        target_parameters=parameters or None,
        bias=bias,
        use_rslora=rs,
        use_dora=dora,
        modules_to_save=[last_part(model.outer_module_name(which)) for which in train_also] or None,
        ensure_weight_tying=bool(train_also) and model.tied,
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.transposed,
        base_model_name_or_path=model.weights.name,
        inference_mode=True,
    ).to_dict()
    values = json.loads(
        json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()  # a set, whose order changes from run to run
    return dict(sorted(values.items()))


def adapter_state(model: Model) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Returns the configuration and tensors of the model's adapter, as `write_adapter` takes them.

    A PiSSA update is written as a plain LoRA of twice the rank: A over A₀, B beside -B₀, with alpha raised so that the
    scale stays the same. It then fits the original base and gives the same numbers as in training.

    For the text half of an image-text model the tensors have the names of the whole checkpoint, so that PEFT can load
    the adapter onto what `Architecture.loader` loads.
    """
    variant = model.variant
    if variant is None:
        raise AssertionError("the model has no adapter")
    double_rank = any(layer.start_A is not None for layer in model.lora.values())
    config = peft_config(
        model, rank=variant.rank, alpha=variant.alpha, dropout=variant.dropout, names=list(model.lora),
        rs=variant.rs, dora=variant.dora, train_also=variant.train_also, bias=variant.bias, double_rank=double_rank,
        parts=list(model.lora_experts),
    )  # fmt: skip
    tensors = {name: value.detach() for name, value in model.trainable().items()}
    for name, layer in model.lora.items():
        tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"] = (part.detach() for part in layer.factors())
    if variant.train_also and model.tied:  # PEFT expects both
        tensors[model.outer_module_name("head")] = tensors[model.outer_module_name("embeddings")]
    return config, {model.architecture.outside(name): tensor for name, tensor in tensors.items()}


def write_adapter(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> None:
    """Writes adapter_config.json and adapter_model.safetensors (float32), given what `adapter_state` returns."""
    from safetensors.torch import save_file

    copies = {  # copies, because safetensors refuses two names for the same memory
        _key(name): tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    save_file(copies, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def read_adapter(folder: Path, model: Architecture | None = None) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Reads an adapter's configuration and tensors; given `model`, with names mapped to the text model's modules.

    Raises RunError if the adapter is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"the adapter cannot be read: {error}", where=str(folder), next="Train again") from error
    tensors = from_peft_names(tensors)
    return config, {model.text_module_name(name): tensor for name, tensor in tensors.items()} if model else tensors


def from_peft_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps PEFT's tensor names (of its files or get_peft_model_state_dict) to the names of `Model.trainable`."""
    return {name.removeprefix(_PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}


def load_adapter(model: Model, folder: Path) -> None:
    """Adds the adapter in `folder` to `model` and loads its tensors.

    Raises RunError if it is missing, damaged, of an unsupported type, or does not fit the model.
    """
    config, tensors = read_adapter(folder, model.architecture)
    unsupported = [key for key in _UNSUPPORTED_KEYS if config.get(key)]
    if config.get("peft_type") != "LORA" or unsupported or config.get("init_lora_weights", True) is not True:
        kind = unsupported[0] if unsupported else f"{config.get('peft_type')}, {config.get('init_lora_weights')}"
        raise RunError(f"adapters of this type are not supported ({kind})", where=str(folder), next="Train again")
    saved = {last_part(str(name)) for name in _as_list(config.get("modules_to_save"))}
    train_also = [
        which for which in ("embeddings", "head") if saved and last_part(model.outer_module_name(which)) in saved
    ]
    if train_also and model.tied:
        train_also = ["embeddings", "head"]
    layers, experts = _targets(model, config, tensors)
    try:
        rank, alpha, dropout = int(str(config["r"])), float(str(config["lora_alpha"])), config["lora_dropout"]
        add_adapter(
            model,
            rank=rank,
            alpha=alpha,
            layers=layers,
            dropout=float(str(dropout)),
            seed=0,
            scaling="rs" if config.get("use_rslora") else "standard",
            dora=bool(config.get("use_dora")),
            train_also=train_also,
            bias=_bias(config.get("bias")),
            experts="all" if experts else "none",
        )
    except (KeyError, ValueError) as error:
        raise RunError(
            f"the adapter's configuration is damaged: {error}", where=str(folder), next="Train again"
        ) from error
    load_adapter_tensors(model, tensors)


def _targets(model: Model, config: dict[str, object], tensors: dict[str, Tensor]) -> tuple[list[str], bool]:
    """Returns the last names of the layers that an adapter covers, and whether experts are among them."""
    stacked = expert_shapes(model.network)
    parameters = [str(name) for name in _as_list(config.get("target_parameters"))]
    parts = {last_part(part) for part in stacked for name in parameters if part.endswith(f".{name}")}
    updated = {name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")}
    return sorted(parts | {last_part(name) for name in updated & model.frozen().keys()}), bool(parts)


def load_adapter_tensors(model: Model, tensors: dict[str, Tensor]) -> None:
    """Copies `tensors` into the model's adapter. Raises RunError if a name or a shape does not fit."""
    parameters = model.trainable()
    if model.whole and model.tied:
        tensors = {name: tensor for name, tensor in tensors.items() if name != model.outer_module_name("head")}
    if parameters.keys() != tensors.keys():
        differing = sorted(parameters.keys() ^ tensors.keys())[0]
        raise RunError(
            f"the adapter does not fit this model: they differ at '{differing}'",
            next="Use the base model that the adapter was trained on",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise RunError(
                    f"the adapter does not fit this model: '{name}' has shape {tuple(tensors[name].shape)}, not "
                    f"{tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def _key(name: str) -> str:
    return f"{_PREFIX}{name}" if name.endswith(_WITHOUT_WEIGHT_SUFFIX) else f"{_PREFIX}{name}.weight"


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _bias(value: object) -> Bias:
    if value in ("none", "lora_only", "all"):
        return value
    raise ValueError(f"bias is {value!r}")
