"""Loads a base model with frozen linear layers, and adds LoRA updates to it."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import logging as python_logging
import math
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from tunesmith.config.recipe import Adapter, NamedSetting
from tunesmith.config.registry import resolve
from tunesmith.errors import ModelError, ResourceError, TunesmithError
from tunesmith.models.architecture import (
    Architecture,
    Layers,
    architecture_from_weights,
    decoder_module,
    layers_to_skip,
    linear_layers,
    module_name,
    select_layers,
)
from tunesmith.models.expert_packing import loading_options
from tunesmith.models.experts import (
    ExpertWeights,
    FrozenExperts,
    check_experts,
    expert_shapes,
    freeze_experts,
    unsupported_settings,
)
from tunesmith.models.lora_init import InitialFactors, InitLayer
from tunesmith.models.original_weights import OriginalWeights
from tunesmith.models.qlora import FrozenLinear, LoraLinear, TrainedCopy, trainable_copies
from tunesmith.models.weights import Weights

Bias = Literal["none", "lora_only", "all"]
Experts = Literal["all", "none"]
LORA_INIT = "tunesmith.models.lora_init"
ZERO = NamedSetting("zero", {})


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of an adapter that go into PEFT's configuration."""

    rank: int
    alpha: float
    dropout: float
    rs: bool = False
    dora: bool = False
    train_also: tuple[str, ...] = ()
    bias: Bias = "none"


class Model:
    """A loaded base model with frozen layers, and LoRA layers after `add_adapter`."""

    def __init__(self, network: Any, weights: Weights, transposed: bool) -> None:
        """`network` is the transformers model; `transposed` says that its weights are stored as in x out (GPT-2)."""
        self.network, self.weights, self.transposed = network, weights, transposed
        self.lora: dict[str, LoraLinear] = {}
        self.lora_experts: dict[str, ExpertWeights] = {}
        self.whole: dict[str, TrainedCopy] = {}
        self.variant: AdapterSettings | None = None
        self.decoder: Any = None  # generates replies (generation/decoder.py), created on first use

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        embeddings = self.network.get_input_embeddings()
        embeddings = embeddings.base if isinstance(embeddings, TrainedCopy) else embeddings
        return cast(torch.device, getattr(embeddings, "device", embeddings.weight.device))

    @property
    def tied(self) -> bool:
        """Whether embeddings and head share one matrix."""
        pair = [self.network.get_input_embeddings(), self.network.get_output_embeddings()]
        inner, head = (module.base if isinstance(module, TrainedCopy) else module for module in pair)
        return head is not None and inner.weight is head.weight

    def outer_module_name(self, which: str) -> str:
        """Returns the module name of the `embeddings` or the `head`."""
        read = self.network.get_input_embeddings if which == "embeddings" else self.network.get_output_embeddings
        return module_name(self.network, read())

    @property
    def decoder_network(self) -> Any:
        """The network without its head, which returns hidden states."""
        return decoder_module(self.network)

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The model's architecture: modules without weights, and tensor names in the files."""
        return architecture_from_weights(self.weights)

    def frozen(self) -> dict[str, FrozenLinear]:
        """Returns the frozen layers by name; inside a LoRA layer the name ends in `.base`."""
        return {name: layer for name, layer in self.network.named_modules() if isinstance(layer, FrozenLinear)}

    def experts(self) -> dict[str, FrozenExperts]:
        """Returns the expert modules by name."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, FrozenExperts)}

    def keep_dense(self) -> int:
        """Keeps all NF4 layers dequantized, except experts, few of which are used; returns the number of layers."""
        layers = [
            layer for layer in self.network.modules() if isinstance(layer, FrozenLinear) and layer.state is not None
        ]
        for layer in layers:
            layer.keep_dense()
        return len(layers)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Returns the trained parameters by name in a fixed order: updates layer by layer, then full parameters.

        Names are PEFT's without its prefix and ".weight"; a shared parameter appears once.
        """
        parameters: dict[str, nn.Parameter] = {}
        for name, layer in self.lora.items():
            parameters |= {f"{name}.lora_A": layer.lora_A, f"{name}.lora_B": layer.lora_B}
            if layer.lora_magnitude_vector is not None:
                parameters[f"{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector
            if layer.trained_bias is not None:
                parameters[f"{name}.base_layer.bias"] = layer.trained_bias
        for name, experts in self.experts().items():
            parameters |= experts.trainable(name)
        for name, module in self.whole.items():
            for part, copy in module.copies.items():
                if not any(copy is parameter for parameter in parameters.values()):
                    parameters[name if part == "weight" else f"{name}.{part}"] = copy
        return parameters

    def unfused_reasons(self) -> list[str]:
        """Returns the reasons why this adapter cannot be trained with the fused decoder; empty if it can.

        PiSSA, LoftQ, rsLoRA and LoRA+ can: `LoraLinear.factors()` is a layer's whole update for all of them.
        """
        return [] if self.variant is None else unfused_adapter(self.variant)

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Turns the adapter off inside the block, so that the model computes as its base."""
        layers: list[LoraLinear | TrainedCopy | ExpertWeights]
        layers = [*self.lora.values(), *self.whole.values(), *self.lora_experts.values()]
        before = [layer.enabled for layer in layers]
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer, enabled in zip(layers, before, strict=True):
                layer.enabled = enabled


def unfused_adapter(adapter: Adapter | AdapterSettings) -> list[str]:
    """Returns the reasons why an adapter with these settings cannot be trained with the fused decoder."""
    reasons = ["adapter.dropout is above 0"] if adapter.dropout else []
    reasons += ["adapter.dora needs each weight's norm at every step"] if adapter.dora else []
    reasons += [f"adapter.train_also trains the {module}" for module in adapter.train_also]
    return reasons + (["adapter.bias trains biases"] if adapter.bias != "none" else [])


def load_model(weights: Weights, *, bits: int, device: str, precision: str) -> Model:
    """Loads the base model to `device`, with its linear layers frozen in NF4 (`bits` 4) or in `precision` (16).

    Only the text half of an image-text checkpoint is loaded. Raises ModelError for files that are not a causal language
    model or lack a weight, ResourceError if there is not enough memory.
    """
    from safetensors import SafetensorError

    meta_model = architecture_from_weights(weights)
    dtype = getattr(torch, precision)
    if device == "cuda":  # with its index: the loader's threads would use the first GPU
        device = f"cuda:{torch.cuda.current_device()}"
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "trust_remote_code": False}
    if (mapping := meta_model.key_mapping()) is not None:
        options["key_mapping"] = mapping
    try:
        with _quiet():
            options |= loading_options(
                weights, deepcopy(meta_model.config), bits, dtype, skip=layers_to_skip(meta_model.network)
            )
            network, report = type(meta_model.network).from_pretrained(
                weights.folder, use_safetensors=True, output_loading_info=True, **options
            )
    except (torch.OutOfMemoryError, MemoryError) as error:
        advice = "Choose a smaller base.model, set base.bits to 4, or free some memory"
        raise ResourceError("the model does not fit into memory", where=weights.name, next=advice) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        message = f"the model cannot be loaded: {error}"
        raise ModelError(message, where=weights.name, next="Choose another base.model") from error
    check_missing(sorted(report["missing_keys"]), weights.name)
    network.requires_grad_(False)
    if getattr(network.config, "quantization_config", None) is not None:
        _cast(network, dtype)
    transposed = _freeze(network, dtype)
    _disable_fused_mixers(network)
    freeze_experts(network, packed=bits == 4, where=weights.name)
    _release_shared_storage(network)
    network.config.use_cache = False
    for attribute in (
        "is_loaded_in_4bit",
        "is_quantized",
    ):  # the layers were replaced; nothing may repack them
        if getattr(network, attribute, False):
            setattr(network, attribute, False)
    network.hf_quantizer = network.quantization_method = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.eval()
    return Model(network, weights, transposed)


def check_missing(names: Sequence[str], where: str) -> None:
    """Raises ModelError for parameters without a tensor in the files, which would be initialized randomly."""
    if names:
        raise ModelError(
            f"the files have no weight for '{names[0]}' ({len(names)} missing)",
            where=where,
            next="Download the model's files again, or choose another base.model",
        )


def check_adapter(
    adapter: Adapter, weights: Weights, *, engine: str = "native", parallel: str = "auto", targets: Sequence[str] = ()
) -> list[TunesmithError]:
    """Returns an error for each setting in the recipe's `adapter` section that this base does not support.

    Nothing is loaded. It also checks that the base is a causal language model and that its files hold every weight.
    `engine`, `parallel` and `targets` are the recipe's `train.engine`, `train.parallel` and the names in its
    `export.files`, some of which mixtures of experts do not support.
    """
    try:
        meta_model = architecture_from_weights(weights)
        if any(weights.folder.glob("*.safetensors")):
            check_missing(meta_model.missing(weights.folder), weights.name)
        linear, stacked = meta_model.covered(adapter.layers, adapter.experts)
    except ModelError as error:
        return [error]
    if not linear and not stacked:
        message = "the model has no linear layer that can be adapted"
        return [ModelError(message, where="adapter.layers", next="Choose another base.model")]
    network = meta_model.network
    errors = check_experts(
        adapter, network, list(linear), list(stacked), engine=engine, parallel=parallel, targets=targets
    )
    try:
        _check_outer(adapter.train_also, tied=meta_model.tied, head=bool(meta_model.head))
    except ModelError as error:
        errors.append(error)
    updated = any(getattr(network.get_submodule(name), "bias", None) is not None for name in linear)
    anywhere = any(name.rsplit(".", 1)[-1] == "bias" for name, _ in network.named_parameters())
    try:
        _check_bias(adapter.bias, updated=updated, anywhere=anywhere)
    except ModelError as error:
        errors.append(error)
    return errors


def add_adapter(
    model: Model,
    *,
    rank: int,
    alpha: float,
    layers: Layers,
    dropout: float,
    seed: int,
    scaling: Literal["standard", "rs"] = "standard",
    dora: bool = False,
    start: NamedSetting = ZERO,
    train_also: Sequence[str] = (),
    bias: Bias = "none",
    experts: Experts = "all",
) -> None:
    """Adds a LoRA update to the selected layers, each initialized by `start` from `seed` and the layer's name.

    See the recipe's `adapter` section for the settings. Raises ModelError if a name in `layers` matches no layer,
    experts do not support a setting, only one of tied embeddings and head is to be trained, there is no bias to train,
    or the initialization fails; RecipeError for wrong options of the initialization.
    """
    frozen = model.frozen()
    names, parts = select_targets(model, layers, experts)
    check_trainable(model, names, train_also, bias)
    for error in unsupported_settings(model.network, names, parts, dropout=dropout, dora=dora, start=start, bias=bias):
        raise error
    original = OriginalWeights(model.weights, model.architecture)
    for name in names:
        layer = LoraLinear(frozen[name], rank, alpha, dropout, rs=scaling == "rs")
        initial = initial_factors(
            start, name, layer.base, rank, layer.scale, seed, original, transposed=model.transposed
        )
        with torch.no_grad():
            layer.lora_A.copy_(initial.a)
            layer.lora_B.copy_(initial.b)
        if initial.taken:
            layer.subtract_start()
        if dora:
            layer.train_magnitude()
        if bias != "none" and layer.base.bias is not None:
            layer.train_bias()
        model.network.set_submodule(name, layer)
        model.lora[name] = layer
    for name in parts:
        weights = model.network.get_submodule(name)
        first = default_lora_a(name, rank * weights.experts, weights.shape.inputs, seed)
        weights.add_lora(first, rank, alpha / math.sqrt(rank) if scaling == "rs" else alpha / rank)
        model.lora_experts[name] = weights
    if bias == "all":
        _train_biases(model)
    _train_outer(model, train_also)
    also = tuple(which for which in ("embeddings", "head") if which in train_also)
    model.variant = AdapterSettings(rank, alpha, dropout, scaling == "rs", dora, also, bias)


def select_targets(model: Model, layers: Layers, experts: Experts) -> tuple[list[str], list[str]]:
    """Returns the linear layers and expert parameters that an adapter covers. Raises ModelError for an unknown name."""
    frozen, stacked = model.frozen(), expert_shapes(model.network) if experts == "all" else {}
    names = select_layers([*frozen, *stacked], layers)
    return [name for name in names if name in frozen], [name for name in names if name in stacked]


def initial_factors(
    start: NamedSetting,
    name: str,
    layer: FrozenLinear,
    rank: int,
    scale: float,
    seed: int,
    original: OriginalWeights,
    *,
    transposed: bool,
) -> InitialFactors:
    """Returns the initial A and B of the layer `name`, from the function of models/lora_init.py that `start` names.

    Raises what that function raises.
    """
    place = InitLayer(
        name, layer, rank, scale, seed,
        usual=default_lora_a(name, rank, layer.in_features, seed),
        original=lambda: original.matrix(name, (layer.out_features, layer.in_features), transposed=transposed),
    )  # fmt: skip
    start_values: InitialFactors = resolve(LORA_INIT, start.name, where="adapter.start")(place, **start.options)
    return start_values


def check_trainable(model: Model, names: Sequence[str], train_also: Sequence[str], bias: Bias) -> None:
    """Raises ModelError if the model, with updates on the layers `names`, does not support `train_also` or `bias`."""
    _check_outer(train_also, tied=model.tied, head=model.network.get_output_embeddings() is not None)
    frozen = model.frozen()
    updated = any(frozen[name].bias is not None for name in names)
    _check_bias(bias, updated=updated, anywhere=bool(_biases(model)))


def _check_outer(train_also: Sequence[str], *, tied: bool, head: bool) -> None:
    if tied and len(set(train_also)) == 1:
        raise ModelError(
            f"embeddings and head of this model share one matrix, so the {train_also[0]} cannot be trained alone",
            where="adapter.train_also",
            next="Set it to [embeddings, head]",
        )
    if "head" in train_also and not head:
        raise ModelError("this model has no head", where="adapter.train_also", next="Remove head from it")


def _check_bias(bias: Bias, *, updated: bool, anywhere: bool) -> None:
    """Raises ModelError if there is no bias to train in a layer with an update (`updated`) or in any (`anywhere`)."""
    if bias != "none" and not (updated and bias == "lora_only") and not (anywhere and bias == "all"):
        message = "no layer with an update has a bias" if bias == "lora_only" else "this model has no bias"
        raise ModelError(f"{message} to train", where="adapter.bias", next="Set it to none")


def _biases(model: Model) -> list[str]:
    """Returns the modules with a bias, except for frozen layers inside an update."""
    inside = {layer.base for layer in model.lora.values()}
    return [
        name
        for name, module in model.network.named_modules()
        if "bias" in module._parameters and module.bias is not None and module not in inside
    ]


def _train_biases(model: Model) -> None:
    for name in _biases(model):
        _wrap(model, name, trainable_copies(model.network.get_submodule(name), ["bias"]))


def _train_outer(model: Model, train_also: Sequence[str]) -> None:
    """Makes full embeddings and head trainable; tied ones stay one matrix."""
    tied, tied_weight = model.tied, dict[str, nn.Parameter]()
    for key in ("embeddings", "head"):
        if key not in train_also:
            continue
        name = model.outer_module_name(key)
        module = model.network.get_submodule(name)
        existing = dict(module.copies.items()) if isinstance(module, TrainedCopy) else {}  # its bias, with `bias: all`
        module = module.base if isinstance(module, TrainedCopy) else module
        copies = trainable_copies(
            module, [part for part in ("weight", "bias") if part not in {*existing, *tied_weight}]
        )
        _wrap(model, name, {**existing, **tied_weight, **copies})
        tied_weight = {"weight": model.whole[name].copies["weight"]} if tied else {}


def _wrap(model: Model, name: str, copies: dict[str, nn.Parameter]) -> None:
    module = model.network.get_submodule(name)
    model.whole[name] = TrainedCopy(module.base if isinstance(module, TrainedCopy) else module, copies)
    model.network.set_submodule(name, model.whole[name])


def default_lora_a(name: str, rank: int, features_in: int, seed: int) -> torch.Tensor:
    """Returns the initial A (rank x in) of the layer `name`: uniform in ±1/sqrt(in), as in PEFT."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
    bound = 1 / math.sqrt(features_in)
    return torch.empty(rank, features_in).uniform_(-bound, bound, generator=torch.Generator().manual_seed(number))


def _freeze(network: Any, dtype: torch.dtype) -> bool:
    """Replaces the decoder's linear layers with FrozenLinear; returns whether the family stores them as in x out.

    `dtype` is the dtype of products, to which codes are dequantized.
    """
    import bitsandbytes as bnb
    from transformers.pytorch_utils import Conv1D

    transposed = False
    for name, layer in linear_layers(network).items():
        if isinstance(layer, bnb.nn.Linear4bit):
            frozen = FrozenLinear.from_nf4(*_nf4_codes(layer, dtype), layer.bias)
            transposed |= layer.source_cls is Conv1D if hasattr(layer, "source_cls") else False
        elif isinstance(layer, Conv1D):
            frozen, transposed = FrozenLinear.from_dense(layer.weight.data.T.contiguous(), layer.bias), True
        else:
            frozen = FrozenLinear.from_dense(layer.weight.data, layer.bias)
        network.set_submodule(name, frozen)
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.weight.module = None  # breaks a reference cycle that keeps the codes in memory
    return transposed or getattr(network.config, "model_type", "") == "gpt2"


def _nf4_codes(layer: Any, dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
    """Returns a bitsandbytes layer's packed codes as bytes, and its state, set to dequantize to `dtype`.

    A checkpoint's state names the dtype of whoever quantized it, not the recipe's precision.
    """
    state = layer.weight.quant_state
    state.dtype = dtype
    return layer.weight.data.view(torch.uint8), state


def _cast(network: Any, dtype: torch.dtype) -> None:
    """Casts norms, embeddings and biases of a quantized checkpoint to `dtype`; transformers does not."""
    wide = [*(network._keep_in_fp32_modules_strict or ())]  # as transformers does for a 16-bit checkpoint
    wide += [*(network._keep_in_fp32_modules or ())] if dtype == torch.float16 else []
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not any(part in name.split(".") for part in wide):
            parameter.data = parameter.data.to(dtype)


def _disable_fused_mixers(network: Any) -> None:
    """Keeps state-space mixers in evaluation mode; their children follow the model's mode.

    In training mode transformers' mixers pass the weight of their output layer directly to a fused kernel, if one is
    installed. That would multiply packed codes and ignore the update.
    """
    for module in network.modules():
        if hasattr(module, "A_log") and hasattr(module, "out_proj"):
            module.training = False
            module.train = functools.partial(_train_children, module)


def _train_children(module: Any, mode: bool = True) -> Any:
    for child in module.children():
        child.train(mode)
    return module


def _release_shared_storage(network: Any) -> None:
    """Copies tensors that are views of a larger storage, such as a whole file's, so that it can be freed."""
    gc.collect()  # the loader's leftovers hold weights
    tensors = [*network.parameters(), *network.buffers()]
    tensors += [layer.state.absmax for layer in network.modules() if getattr(layer, "state", None) is not None]
    for tensor in tensors:
        if tensor.untyped_storage().nbytes() > 1.5 * tensor.nbytes + 1024:
            tensor.data = tensor.data.clone()


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
