"""Describes a checkpoint's causal language model: class, configuration, modules, and tensor names in its files.

Only the text decoder of an image-text checkpoint is used, as a causal language model; its vision and audio towers are
neither loaded nor counted. Everything here is read from config.json and the headers of the weight files, so a model
can be checked before its weights are loaded.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from tunesmith.config.registry import nearest
from tunesmith.errors import ModelError
from tunesmith.models.expert_packing import merge_mxfp4_names
from tunesmith.models.experts import ExpertShape, expert_shapes
from tunesmith.models.weights import Weights, read_config, tensor_headers

Layers = Literal["all"] | list[str]
MIN_FEATURES = 8  # a linear layer with fewer inputs or outputs is a gate or a mixing table: not quantized, not adapted
TEXT_MODEL_TYPES = {  # text decoders without a causal LM class in transformers: without images they equal these
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# The decoder of an image-text checkpoint: language_model.model. in older files, model.language_model. in newer ones.
_TEXT_PART = re.compile(r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(?!lm_head\.)")
_TEXT_HEAD = re.compile(r"^(?:model\.)?language_model\.lm_head\.")
_OTHER_MODALITIES = (
    "vision",
    "visual",
    "audio",
    "multi_modal",
    "multimodal",
    "embed_vision",
    "embed_audio",
    "connector",
)
_ROUTERS = ("gate", "shared_expert_gate")
_WEIGHT_USED_ELSEWHERE = (
    "x_proj",
    "dt_proj",
    "weights_proj",
)  # read outside of the layer
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Architecture:
    """A causal language model without weights: transformers' configuration, and its modules on the meta device.

    For the text half of an image-text checkpoint, `whole` is the checkpoint's model type and `inside` the name of the
    text decoder in the model that the transformers class `loader` loads; otherwise both are empty.
    """

    config: Any
    network: Any
    whole: str = ""
    loader: str = "AutoModelForCausalLM"
    inside: str = ""

    @property
    def family(self) -> str:
        """The model type of the text model."""
        return str(self.config.model_type)

    @property
    def note(self) -> str:
        """A sentence for users about what is loaded; empty for a text model."""
        if not self.whole:
            return ""
        return f"text half of an image-text model ({self.whole}); the vision tower is not loaded"

    @property
    def tied(self) -> bool:
        """Whether embeddings and head share one matrix."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    @functools.cached_property
    def transposed(self) -> bool:
        """Whether the files hold linear layers in x out (GPT-2)."""
        from transformers.pytorch_utils import Conv1D

        return any(isinstance(module, Conv1D) for module in self.network.modules())

    @functools.cached_property
    def head(self) -> str:
        """The head's module name; empty if there is none."""
        return module_name(self.network, self.network.get_output_embeddings())

    @functools.cached_property
    def decoder(self) -> str:
        """The name of the module that turns token ids into hidden states."""
        return module_name(self.network, decoder_module(self.network))

    def key_mapping(self) -> dict[str, str] | None:
        """The `key_mapping` that `from_pretrained` needs to load the text half; None for a text model."""
        return {_TEXT_HEAD.pattern: "lm_head.", _TEXT_PART.pattern: "model."} if self.whole else None

    def text_name(self, name: str) -> str | None:
        """Returns a tensor's name as in a checkpoint of the text model alone; None for a tensor of another part."""
        if not self.whole:
            return name
        if _TEXT_HEAD.match(name):
            return _TEXT_HEAD.sub("lm_head.", name)
        if _TEXT_PART.match(name):
            return _TEXT_PART.sub("model.", name)
        part = name.removeprefix("model.").split(".", 1)[0]
        return None if any(word in part for word in _OTHER_MODALITIES) else name

    def parameter_names(self, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """Maps each file tensor that the text model uses to its parameter, and whether it is the whole parameter.

        It is only a part where the files have one tensor per expert and the model stacks them in one parameter.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        steps = get_model_conversion_mapping(self.network)
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        converters = [step for step in steps if isinstance(step, WeightConverter)]
        parameters = self.network.state_dict()
        result = {}
        for name in names:
            text = self.text_name(name)
            if text is None:
                continue
            renamed, pattern = rename_source_key(
                text, renamings, converters, self.network.base_model_prefix, parameters
            )
            if renamed in parameters:
                result[name] = renamed, pattern is None
        return result

    def missing(self, folder: Path) -> list[str]:
        """Returns the parameters without a tensor in `folder`'s files, which transformers would initialize randomly."""
        files = [name for name in merge_mxfp4_names(tensor_headers(folder)) if not _is_quantization_state(name)]
        loaded = {name for name, _ in self.parameter_names(files).values()}
        optional = [
            re.compile(pattern) for pattern in getattr(self.network, "_keys_to_ignore_on_load_missing", None) or []
        ]
        head = f"{self.head}." if self.tied and self.head else "\0"
        return [
            name
            for name, _ in self.network.named_parameters()
            if name not in loaded
            and not name.startswith(head)
            and not any(pattern.search(name) for pattern in optional)
        ]

    def linear(self) -> dict[str, tuple[int, int]]:
        """Returns (in, out) of the linear layers that are quantized and may be adapted, by name."""
        return {name: in_out_features(layer) for name, layer in linear_layers(self.network).items()}

    def covered(
        self, layers: Layers, experts: str = "all"
    ) -> tuple[dict[str, tuple[int, int]], dict[str, ExpertShape]]:
        """Returns the linear layers, as (in, out), and expert parameters that `adapter.layers` and `.experts` select.

        Raises ModelError for a name that matches no layer.
        """
        linear, stacked = self.linear(), expert_shapes(self.network) if experts == "all" else {}
        names = select_layers([*linear, *stacked], layers, self.network)
        return {n: linear[n] for n in names if n in linear}, {n: stacked[n] for n in names if n in stacked}

    def target_modules(self, names: Sequence[str]) -> list[str] | str:
        """Returns PEFT's `target_modules` for the layers `names`, in the model that `loader` loads.

        These are the layers' last names, or a regular expression over full names if other layers share a last name.
        """
        leaves = sorted({last_part(name) for name in names})
        if not leaves:
            return []
        candidates = {name for name, _ in self.network.named_modules() if last_part(name) in leaves}
        if not self.whole and candidates == set(names):
            return leaves
        paths = sorted({re.sub(r"\d+", r"\\d+", re.escape(self.outside(name))) for name in names})
        if {name for name in candidates if any(re.fullmatch(path, self.outside(name)) for path in paths)} != set(names):
            paths = sorted(re.escape(self.outside(name)) for name in names)
        return "|".join(paths)

    def outside(self, name: str) -> str:
        """Returns a module's or parameter's name in the model that `loader` loads from the whole checkpoint."""
        prefix = f"{self.decoder}."
        in_decoder = bool(self.inside) and name.startswith(prefix)
        return f"{self.inside}.{name.removeprefix(prefix)}" if in_decoder else name

    def text_module_name(self, name: str) -> str:
        """Returns the name in the text model; the inverse of `outside`."""
        prefix = f"{self.inside}."
        in_decoder = bool(self.inside) and name.startswith(prefix)
        return f"{self.decoder}.{name.removeprefix(prefix)}" if in_decoder else name


def read_architecture(folder: Path, name: str) -> Architecture:
    """Reads the architecture from `folder`'s config.json.

    Raises ModelError if it is not a causal language model, or an image-text model whose text half is not one.
    """
    config = read_config(folder, name)
    head = None
    if any(folder.glob("*.safetensors")) and ("text_config" in config or "vision_config" in config):
        head = any("lm_head." in tensor for tensor in tensor_headers(folder))
    return _architecture(json.dumps(config, sort_keys=True), folder, name, head)


def architecture_from_weights(weights: Weights) -> Architecture:
    """Reads the architecture of fetched weights; see `read_architecture`."""
    return read_architecture(weights.folder, weights.name)


def linear_layers(network: Any) -> dict[str, Any]:
    """Returns the linear layers of `network` that are quantized and may be adapted, by name, in order.

    Excluded are the head, routers of experts, subclasses with their own forward, layers whose weight is also read
    elsewhere, and layers with fewer than NARROW inputs or outputs.
    """
    head, conv1d = network.get_output_embeddings(), _conv1d()
    return {
        name: module
        for name, module in network.named_modules()
        if module is not head
        and (isinstance(module, conv1d) or _is_plain_linear(module))
        and min(in_out_features(module)) >= MIN_FEATURES
        and last_part(name) not in _WEIGHT_USED_ELSEWHERE
        and not _is_router(name, module, network.config)
    }


def layers_to_skip(network: Any) -> list[str]:
    """Returns the names of all other linear layers, which bitsandbytes must skip."""
    linear, conv1d = linear_layers(network), _conv1d()
    return [n for n, m in network.named_modules() if isinstance(m, nn.Linear | conv1d) and n not in linear]


def in_out_features(layer: Any) -> tuple[int, int]:
    """Returns (in, out) of a linear layer; transformers' Conv1D stores its weight as in x out."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    inner, out = layer.weight.shape
    return inner, out


def decoder_module(network: Any) -> Any:
    """Returns the model without its head, which turns token ids into hidden states."""
    base_model = getattr(network, network.base_model_prefix, None)
    if base_model is not None:
        return base_model
    # Llama 4's base_model_prefix names no attribute.
    return next(child for child in network.children() if hasattr(child, "get_input_embeddings"))


def module_name(network: Any, target: Any) -> str:
    """Returns the name of a module in `network`; empty if it is not part of it."""
    return next((str(name) for name, module in network.named_modules() if module is target), "")


def select_layers(names: Iterable[str], layers: Layers, network: Any = None) -> list[str]:
    """Returns the layers in `names` whose last name is in `layers`. Raises ModelError for a name that none has."""
    names = list(names)
    leaves = {last_part(name) for name in names}
    unknown = [] if layers == "all" else [name for name in layers if name not in leaves]
    if unknown:
        message = f"no linear layer of the decoder is called '{unknown[0]}'"
        if network is not None and any(last_part(name) == unknown[0] for name, _ in network.named_modules()):
            message = f"'{unknown[0]}' is not a linear layer that can be adapted"
        raise ModelError(message, where="adapter.layers", next=nearest(unknown[0], leaves))
    return [name for name in names if layers == "all" or last_part(name) in layers]


# --- from config.json --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _architecture(text: str, folder: Path, name: str, head: bool | None) -> Architecture:
    """Builds the architecture from config.json's `text`, which is the cache key as a folder's content may change."""
    plain: dict[str, Any] = json.loads(text)
    _check_packing(plain, name)
    config = _load_config(plain, folder, name)
    text_config = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise _unsupported(name, f"{config.model_type} is an encoder-decoder model, and only decoders can be trained")
    if text_config is config and not _modality_configs(config):
        return Architecture(config, _on_meta(_causal_class(config, name), config, name))
    if text_config is config:
        raise _unsupported(name, f"the text half of the image-text model {config.model_type} is not a separate model")
    text_half = _text_config(plain, text_config, config, head)
    network = _on_meta(_causal_class(text_half, name, config.model_type), text_half, name)
    loader, inside = _find_loader(config, name)
    return Architecture(text_half, network, str(config.model_type), loader, inside)


def _unsupported(name: str, message: str) -> ModelError:
    return ModelError(message, where=name, next="Choose a causal language model as base.model")


def _check_packing(plain: dict[str, Any], name: str) -> None:
    """Raises ModelError for quantized weights other than bitsandbytes' 4-bit ones and gpt-oss' MXFP4."""
    packing = plain.get("quantization_config") or {}
    method = str(packing.get("quant_method", "bitsandbytes" if packing else ""))
    if method == "bitsandbytes" and packing.get("load_in_8bit"):
        method = "bitsandbytes 8-bit"
    if method not in ("", "bitsandbytes") and (method, plain.get("model_type")) != ("mxfp4", "gpt_oss"):
        raise ModelError(
            f"the weights are quantized with {method}, which cannot be trained on",
            where=name,
            next="Choose the model's 16-bit files, often published under a name that ends in BF16; base.bits 4 "
            "quantizes them while loading",
        )


def _load_config(plain: dict[str, Any], folder: Path, name: str) -> Any:
    """Reads config.json as a transformers config. Raises ModelError for unknown types and invalid values."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = str(plain.get("model_type", ""))
    if kind not in CONFIG_MAPPING_NAMES:
        from transformers import __version__

        raise _unsupported(name, f"transformers {__version__} does not know the model type '{kind}'")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its validators may raise anything
        raise _unsupported(name, f"config.json cannot be used: {' '.join(str(error).split())[:200]}") from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _modality_configs(config: Any) -> list[str]:
    """Returns the configurations of image and audio towers."""
    return [key for key in ("vision_config", "audio_config") if getattr(config, key, None) is not None]


def _text_config(plain: dict[str, Any], text_config: Any, whole: Any, head: bool | None) -> Any:
    """Returns the text half's configuration, with tied embeddings and special tokens taken from the whole model's."""
    import copy

    from transformers import AutoConfig

    text = copy.deepcopy(text_config)
    if text_config.model_type in TEXT_MODEL_TYPES:
        values = {
            key: value for key, value in text_config.to_dict().items() if key not in ("model_type", "architectures")
        }
        rope = {k: v for k, v in (values.pop("rope_parameters", None) or {}).items() if not k.startswith("mrope")}
        if rope.get("rope_type") == "mrope" or rope.get("type") == "mrope":
            rope["rope_type"] = "default"
        rope.pop("type", None)
        values.pop("rope_scaling", None)
        text = AutoConfig.for_model(TEXT_MODEL_TYPES[text_config.model_type], **values, rope_parameters=rope or None)
    text_values = plain.get("text_config", {})
    tied = text_values.get(
        "tie_word_embeddings", plain.get("tie_word_embeddings", getattr(text_config, "tie_word_embeddings", False))
    )
    text.tie_word_embeddings = tied if head is None else (not head or bool(tied))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(whole, key, None) is not None:
            setattr(text, key, getattr(whole, key))
    return text


def _causal_class(config: Any, name: str, whole: str = "") -> type:
    """Returns transformers' causal language model class for the configuration. Raises ModelError if there is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        message = f"transformers has no causal language model of type {kind}"
        if whole:
            message = f"the text half of the image-text model {whole} cannot be loaded alone: {message}"
        raise _unsupported(name, message)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise _unsupported(name, f"{kind} is a bidirectional encoder, which cannot generate text")
    classes = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return classes if isinstance(classes, type) else classes[0]


def _on_meta(model: type, config: Any, name: str) -> Any:
    """Builds the model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        try:
            network = model._from_config(config)  # type: ignore[attr-defined]
        except (ImportError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            raise _unsupported(
                name, f"{config.model_type} cannot be built: {' '.join(str(error).split())[:200]}"
            ) from error
    network.eval()
    return network


def _find_loader(config: Any, name: str) -> tuple[str, str]:
    """Returns the class that loads the whole checkpoint, and the name of the text decoder in its model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    for loader, mapping in (
        ("AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING),
        ("AutoModelForImageTextToText", MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ):
        if type(config) in mapping:
            model_class = mapping[type(config)]
            if getattr(model_class, "config_class", None) is type(config.get_text_config(decoder=True)):
                return loader, ""  # the class is the text model's
            try:
                whole = _on_meta(model_class, config, name)
            except ModelError:  # a tower may need a package that the text half does not
                return loader, "model.language_model"
            return loader, module_name(whole, whole.get_decoder())
    raise _unsupported(name, f"transformers has no model class for {config.model_type}")


# --- layers ------------------------------------------------------------------------------------------------------


def _is_router(name: str, module: nn.Module, config: Any) -> bool:
    """Whether this linear layer routes tokens to experts."""
    leaf = last_part(name)
    if any("router" in part for part in name.split(".")[-2:]):
        return True
    counts = {getattr(config, key, None) for key in _EXPERT_COUNTS} | {1}
    return leaf in _ROUTERS and in_out_features(module)[1] in counts


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether it is an nn.Linear, or bitsandbytes' or our subclass with the same product."""
    return type(module) is nn.Linear or type(module).__name__ in ("Linear4bit", "FrozenLinear")


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return cast(type[nn.Module], Conv1D)


def last_part(name: str) -> str:
    """Returns a module's own name, the last part of its dotted name."""
    return name.rsplit(".", 1)[-1]


def _is_quantization_state(name: str) -> bool:
    """Whether this tensor is part of another tensor's 4-bit quantization state."""
    return ".weight." in name


def decoder_layers(network: Any) -> list[str]:
    """Returns the names of the decoder's blocks, in order."""
    lists = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    name, blocks = max(lists, key=lambda item: len(list(item[1].modules())), default=("", ()))
    return [f"{name}.{index}" for index in range(len(blocks))]
