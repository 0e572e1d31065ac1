"""Loads a base model, puts frozen layers (and LoRA updates over the wanted ones) in place of its linear layers."""

from __future__ import annotations

import contextlib
import hashlib
import logging as python_logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn

from tunesmith.errors import ModelError, ResourceError
from tunesmith.find import nearest
from tunesmith.model.qlora import FrozenLinear, LoraLinear
from tunesmith.model.weights import Weights

Layers = Literal["all"] | list[str]


class Model:
    """A loaded base with its frozen layers, and the LoRA layers once `add_adapter` was called."""

    def __init__(self, network: Any, weights: Weights, transposed: bool) -> None:
        """`network` is transformers' model; `transposed` says that the family stores its weights in x out (GPT-2)."""
        self.network, self.weights, self.transposed = network, weights, transposed
        self.lora: dict[str, LoraLinear] = {}

    @property
    def device(self) -> torch.device:
        """Where the inputs belong."""
        return cast(torch.device, self.network.get_input_embeddings().weight.device)

    def frozen(self) -> dict[str, FrozenLinear]:
        """Frozen layers without a LoRA update around them, by name."""
        return {name: layer for name, layer in self.network.named_modules() if isinstance(layer, FrozenLinear)}

    def keep_dense(self) -> int:
        """Keeps every NF4 layer dequantised; returns how many there are."""
        layers = [
            layer for layer in self.network.modules() if isinstance(layer, FrozenLinear) and layer.state is not None
        ]
        for layer in layers:
            layer.keep_dense()
        return len(layers)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, in a fixed order."""
        return {
            f"{name}.{part}": getattr(layer, part) for name, layer in self.lora.items() for part in ("lora_A", "lora_B")
        }

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Inside the block the adapter is off: the same loaded weights answer as the base model."""
        before = {name: layer.enabled for name, layer in self.lora.items()}
        for layer in self.lora.values():
            layer.enabled = False
        try:
            yield
        finally:
            for name, layer in self.lora.items():
                layer.enabled = before[name]


def load(weights: Weights, *, bits: int, device: str, precision: str) -> Model:
    """The base model on `device`, its decoder's linear layers frozen in NF4 (`bits` 4) or in `precision` (16).

    Raises ModelError for files that are no causal language model, ResourceError when memory does not suffice.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, precision)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "trust_remote_code": False}
    if bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        with _quiet():
            network = AutoModelForCausalLM.from_pretrained(weights.folder, use_safetensors=True, **options)
    except (torch.OutOfMemoryError, MemoryError) as error:
        advice = "Choose a smaller base.model, base.bits 4, or free some memory"
        raise ResourceError("the model does not fit into memory", where=weights.name, next=advice) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot be loaded: {error}", where=weights.name, next="Choose another base.model") from error
    network.requires_grad_(False)
    transposed = _freeze(network)
    network.config.use_cache = False
    for attribute in ("is_loaded_in_4bit", "is_quantized"):  # the layers are ours now; nothing else may repack them
        if getattr(network, attribute, False):
            setattr(network, attribute, False)
    network.hf_quantizer = network.quantization_method = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.eval()
    return Model(network, weights, transposed)


def add_adapter(model: Model, *, rank: int, alpha: float, layers: Layers, dropout: float, seed: int) -> None:
    """Puts a LoRA update over the wanted layers; each starts from `seed` and its own name.

    Raises ModelError when a name in `layers` fits no layer.
    """
    frozen = model.frozen()
    for name in wanted(frozen, layers):
        layer = LoraLinear(frozen[name], rank, alpha, dropout)
        with torch.no_grad():
            layer.lora_A.copy_(first_a(name, rank, layer.base.in_features, seed))
        model.network.set_submodule(name, layer)
        model.lora[name] = layer


def first_a(name: str, rank: int, features_in: int, seed: int) -> torch.Tensor:
    """Where A (rank x in) of the layer `name` starts: uniform in ±1/sqrt(in), as in PEFT; B at zero."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
    bound = 1 / math.sqrt(features_in)
    return torch.empty(rank, features_in).uniform_(-bound, bound, generator=torch.Generator().manual_seed(number))


def wanted(names: Sequence[str] | dict[str, Any], layers: Layers) -> list[str]:
    """The layers among `names` whose last part is in `layers`."""
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    unknown = [] if layers == "all" else [name for name in layers if name not in leaves]
    if unknown:
        raise ModelError(
            f"no linear layer is called '{unknown[0]}'", where="adapter.layers", next=nearest(unknown[0], leaves)
        )
    return [name for name in names if layers == "all" or name.rsplit(".", 1)[-1] in layers]


def _freeze(network: Any) -> bool:
    """Replaces the decoder's linear layers; the head stays as it is. Returns whether the family transposes."""
    import bitsandbytes as bnb
    from transformers.pytorch_utils import Conv1D

    head, transposed = network.get_output_embeddings(), False
    for name, layer in list(network.named_modules()):
        if layer is head or not isinstance(layer, nn.Linear | Conv1D):
            continue
        if isinstance(layer, bnb.nn.Linear4bit):
            frozen = FrozenLinear.from_nf4(layer.weight.data, layer.weight.quant_state, layer.bias)
            transposed |= layer.source_cls is Conv1D if hasattr(layer, "source_cls") else False
        elif isinstance(layer, Conv1D):
            frozen, transposed = FrozenLinear.from_dense(layer.weight.data.T.contiguous(), layer.bias), True
        else:
            frozen = FrozenLinear.from_dense(layer.weight.data, layer.bias)
        network.set_submodule(name, frozen)
    return transposed or getattr(network.config, "model_type", "") == "gpt2"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(python_logging.ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
