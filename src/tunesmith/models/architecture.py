"""Which model a checkpoint is trained as: its class and configuration, its modules, and how its files name them.

Of an image-text checkpoint only the text decoder is used, as a causal language model of its own; the towers for images
and sound are neither loaded nor counted. Everything here is read from config.json and the headers of the weight files,
so that it can be checked before a weight is loaded.
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
from tunesmith.models.expert_packing import without_halves
from tunesmith.models.experts import ExpertShape, expert_shapes
from tunesmith.models.weights import Weights, headers, read_config

Layers = Literal["all"] | list[str]
NARROW = 8  # a linear layer with a side below this is a gate or a mixing table: it is neither quantized nor adapted
TEXT_AS = {  # text decoders without a causal language model of their own: without images they compute as these do
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# The decoder of an image-text checkpoint: older files say language_model.model., newer ones model.language_model.
_TEXT_PART = re.compile(r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(?!lm_head\.)")
_TEXT_HEAD = re.compile(r"^(?:model\.)?language_model\.lm_head\.")
_ELSEWHERE = ("vision", "visual", "audio", "multi_modal", "multimodal", "embed_vision", "embed_audio", "connector")
_ROUTERS = ("gate", "shared_expert_gate")
_READ_ELSEWHERE = ("x_proj", "dt_proj", "weights_proj")  # whose weight the family multiplies by outside of the layer
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Architecture:
    """A causal language model without its weights: transformers' class and configuration, and its tree of modules.

    `network` is on the meta device. `whole` is the model type of the image-text checkpoint of which this is the text
    half, or empty. `loader` is the transformers class that loads the whole checkpoint, and `inside` is where the text
    decoder lies in what that class returns; empty where that is the same model.
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
        """What a user should know about what is loaded; empty for a checkpoint that is a text model."""
        if not self.whole:
            return ""
        return f"text half of an image-text model ({self.whole}); the vision tower is not loaded"

    @property
    def tied(self) -> bool:
        """Whether embeddings and head are one matrix."""
        return bool(getattr(self.config, "tie_word_embeddings", False))

    @functools.cached_property
    def head(self) -> str:
        """The head's module name, or an empty string."""
        return name_of(self.network, self.network.get_output_embeddings())

    @functools.cached_property
    def decoder(self) -> str:
        """The name of the module that turns token ids into hidden states."""
        return name_of(self.network, decoder_of(self.network))

    def key_mapping(self) -> dict[str, str] | None:
        """The renaming of file names that `from_pretrained` needs to load the text half."""
        return {_TEXT_HEAD.pattern: "lm_head.", _TEXT_PART.pattern: "model."} if self.whole else None

    def text_name(self, name: str) -> str | None:
        """A file's tensor name as a file of the text model alone has it; None for tensors of another part."""
        if not self.whole:
            return name
        if _TEXT_HEAD.match(name):
            return _TEXT_HEAD.sub("lm_head.", name)
        if _TEXT_PART.match(name):
            return _TEXT_PART.sub("model.", name)
        part = name.removeprefix("model.").split(".", 1)[0]
        return None if any(word in part for word in _ELSEWHERE) else name

    def parameter_names(self, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """For each file name of a tensor that the text model uses: its parameter, and whether that is all of it.

        A tensor is not all of a parameter where the files hold one tensor an expert and the model all in one.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        steps = get_model_conversion_mapping(self.network)
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        converters = [step for step in steps if isinstance(step, WeightConverter)]
        own = self.network.state_dict()
        found = {}
        for name in names:
            text = self.text_name(name)
            if text is None:
                continue
            renamed, pattern = rename_source_key(text, renamings, converters, self.network.base_model_prefix, own)
            if renamed in own:
                found[name] = renamed, pattern is None
        return found

    def missing(self, folder: Path) -> list[str]:
        """Parameters that `folder`'s files hold no tensor for: transformers would fill them with random numbers."""
        files = [name for name in without_halves(headers(folder)) if not _packing(name)]
        held = {name for name, _ in self.parameter_names(files).values()}
        optional = [re.compile(each) for each in getattr(self.network, "_keys_to_ignore_on_load_missing", None) or []]
        head = f"{self.head}." if self.tied and self.head else "\0"
        return [
            name
            for name, _ in self.network.named_parameters()
            if name not in held and not name.startswith(head) and not any(each.search(name) for each in optional)
        ]

    def linear(self) -> dict[str, tuple[int, int]]:
        """The linear layers that are quantized and may be adapted: (in, out) by name."""
        return {name: sides(layer) for name, layer in linear_layers(self.network).items()}

    def covered(
        self, layers: Layers, experts: str = "all"
    ) -> tuple[dict[str, tuple[int, int]], dict[str, ExpertShape]]:
        """The linear layers, (in, out), and the expert parameters that `adapter.layers` and `adapter.experts` name.

        Raises ModelError for a name that fits none.
        """
        linear, stacked = self.linear(), expert_shapes(self.network) if experts == "all" else {}
        names = layers_called([*linear, *stacked], layers, self.network)
        return {n: linear[n] for n in names if n in linear}, {n: stacked[n] for n in names if n in stacked}

    def target_modules(self, names: Sequence[str]) -> list[str] | str:
        """PEFT's `target_modules` for the layers `names`, in the model that `loader` loads.

        The layers' last names where they fit those layers alone; otherwise a regular expression of the whole paths.
        """
        leaves = sorted({_leaf(name) for name in names})
        if not leaves:
            return []
        others = {name for name, _ in self.network.named_modules() if _leaf(name) in leaves}
        if not self.whole and others == set(names):
            return leaves
        paths = sorted({re.sub(r"\d+", r"\\d+", re.escape(self.outside(name))) for name in names})
        if {name for name in others if any(re.fullmatch(path, self.outside(name)) for path in paths)} != set(names):
            paths = sorted(re.escape(self.outside(name)) for name in names)
        return "|".join(paths)

    def outside(self, name: str) -> str:
        """A module's or parameter's name in the model that `loader` loads from the whole checkpoint."""
        prefix = f"{self.decoder}."
        moved = bool(self.inside) and name.startswith(prefix)
        return f"{self.inside}.{name.removeprefix(prefix)}" if moved else name

    def within(self, name: str) -> str:
        """The reverse of `outside`."""
        prefix = f"{self.inside}."
        moved = bool(self.inside) and name.startswith(prefix)
        return f"{self.decoder}.{name.removeprefix(prefix)}" if moved else name


def read_architecture(folder: Path, name: str) -> Architecture:
    """What `folder`'s config.json says is trained.

    Raises ModelError where that is no causal language model, or where the text half of an image-text model cannot be
    had as one.
    """
    config = read_config(folder, name)
    head = None
    if any(folder.glob("*.safetensors")) and ("text_config" in config or "vision_config" in config):
        head = any("lm_head." in tensor for tensor in headers(folder))
    return _architecture(json.dumps(config, sort_keys=True), folder, name, head)


def architecture(weights: Weights) -> Architecture:
    """The same for fetched weights."""
    return read_architecture(weights.folder, weights.name)


def linear_layers(network: Any) -> dict[str, Any]:
    """The linear layers of `network` that are frozen in 4 bits or adapted, by name, in order.

    Not the head, not the router of a mixture of experts, no subclass with a forward of its own, no layer whose weight
    is also read elsewhere, and none with a side below NARROW.
    """
    head, conv1d = network.get_output_embeddings(), _conv1d()
    return {
        name: module
        for name, module in network.named_modules()
        if module is not head
        and (isinstance(module, conv1d) or _plain(module))
        and min(sides(module)) >= NARROW
        and _leaf(name) not in _READ_ELSEWHERE
        and not _routes(name, module, network.config)
    }


def unquantized(network: Any) -> list[str]:
    """Every other linear layer's name: what bitsandbytes has to leave alone."""
    known, conv1d = linear_layers(network), _conv1d()
    return [n for n, m in network.named_modules() if isinstance(m, nn.Linear | conv1d) and n not in known]


def sides(layer: Any) -> tuple[int, int]:
    """(in, out) of a linear layer; transformers' Conv1D stores its weight in x out."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    inner, out = layer.weight.shape
    return inner, out


def decoder_of(network: Any) -> Any:
    """The model without its head: what turns token ids into hidden states."""
    own = getattr(network, network.base_model_prefix, None)
    if own is not None:
        return own
    return next(
        child for child in network.children() if hasattr(child, "get_input_embeddings")
    )  # Llama 4's prefix lies


def name_of(network: Any, wanted: Any) -> str:
    """The name of a module of `network`, or an empty string."""
    return next((str(name) for name, module in network.named_modules() if module is wanted), "")


def layers_called(names: Iterable[str], layers: Layers, network: Any = None) -> list[str]:
    """The layers among `names` whose last part is in `layers`. Raises ModelError for a part that no layer has."""
    names = list(names)
    leaves = {_leaf(name) for name in names}
    unknown = [] if layers == "all" else [name for name in layers if name not in leaves]
    if unknown:
        what = f"no linear layer of the decoder is called '{unknown[0]}'"
        if network is not None and any(_leaf(name) == unknown[0] for name, _ in network.named_modules()):
            what = f"'{unknown[0]}' is not a linear layer that can be adapted"
        raise ModelError(what, where="adapter.layers", next=nearest(unknown[0], leaves))
    return [name for name in names if layers == "all" or _leaf(name) in layers]


# --- from config.json --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _architecture(text: str, folder: Path, name: str, head: bool | None) -> Architecture:
    """`text`, config.json's own, is there for the cache: the same folder may come to hold another model."""
    plain: dict[str, Any] = json.loads(text)
    _check_packing(plain, name)
    config = _configured(plain, folder, name)
    own = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise _refused(name, f"{config.model_type} is an encoder-decoder model, and only decoders can be trained")
    if own is config and not _other_halves(config):
        return Architecture(config, _on_meta(_causal(config, name), config, name))
    if own is config:
        raise _refused(name, f"the text half of the image-text model {config.model_type} is not a model of its own")
    half = _text_config(plain, own, config, head)
    network = _on_meta(_causal(half, name, config.model_type), half, name)
    loader, inside = _placed(config, name)
    return Architecture(half, network, str(config.model_type), loader, inside)


def _refused(name: str, what: str) -> ModelError:
    return ModelError(what, where=name, next="Choose a causal language model as base.model")


def _check_packing(plain: dict[str, Any], name: str) -> None:
    """Raises ModelError for weights that were packed by another method than bitsandbytes' 4 bits, gpt-oss' apart."""
    packing = plain.get("quantization_config") or {}
    method = str(packing.get("quant_method", "bitsandbytes" if packing else ""))
    if method == "bitsandbytes" and packing.get("load_in_8bit"):
        method = "bitsandbytes 8-bit"
    if method not in ("", "bitsandbytes") and (method, plain.get("model_type")) != ("mxfp4", "gpt_oss"):
        raise ModelError(
            f"the files hold weights quantized by {method}, which cannot be trained on",
            where=name,
            next="Choose the model's 16-bit files, often published under a name that ends in BF16; base.bits 4 "
            "quantizes them while loading",
        )


def _configured(plain: dict[str, Any], folder: Path, name: str) -> Any:
    """config.json as transformers' object. Raises ModelError for types and values that it does not know."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = str(plain.get("model_type", ""))
    if kind not in CONFIG_MAPPING_NAMES:
        from transformers import __version__

        raise _refused(name, f"transformers {__version__} does not know the model type '{kind}'")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # its validators raise what they like
        raise _refused(name, f"config.json cannot be used: {' '.join(str(error).split())[:200]}") from error
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _other_halves(config: Any) -> list[str]:
    """Parts for other inputs than text."""
    return [key for key in ("vision_config", "audio_config") if getattr(config, key, None) is not None]


def _text_config(plain: dict[str, Any], own: Any, whole: Any, head: bool | None) -> Any:
    """The configuration of the text half, with what only the whole one says: tied embeddings and special tokens."""
    import copy

    from transformers import AutoConfig

    text = copy.deepcopy(own)
    if own.model_type in TEXT_AS:
        values = {key: value for key, value in own.to_dict().items() if key not in ("model_type", "architectures")}
        rope = {k: v for k, v in (values.pop("rope_parameters", None) or {}).items() if not k.startswith("mrope")}
        if rope.get("rope_type") == "mrope" or rope.get("type") == "mrope":
            rope["rope_type"] = "default"
        rope.pop("type", None)
        values.pop("rope_scaling", None)
        text = AutoConfig.for_model(TEXT_AS[own.model_type], **values, rope_parameters=rope or None)
    written = plain.get("text_config", {})
    tied = written.get(
        "tie_word_embeddings", plain.get("tie_word_embeddings", getattr(own, "tie_word_embeddings", False))
    )
    text.tie_word_embeddings = tied if head is None else (not head or bool(tied))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(whole, key, None) is not None:
            setattr(text, key, getattr(whole, key))
    return text


def _causal(config: Any, name: str, whole: str = "") -> type:
    """transformers' causal language model for this configuration. Raises ModelError where there is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = f"transformers has no causal language model of type {kind}"
        if whole:
            what = f"the text half of the image-text model {whole} cannot be had by itself: {what}"
        raise _refused(name, what)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise _refused(name, f"{kind} reads in both directions and writes no text")
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found if isinstance(found, type) else found[0]


def _on_meta(model: type, config: Any, name: str) -> Any:
    """The model's modules without memory for its weights."""
    with torch.device("meta"):
        try:
            network = model._from_config(config)  # type: ignore[attr-defined]
        except (ImportError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            raise _refused(
                name, f"{config.model_type} cannot be built: {' '.join(str(error).split())[:200]}"
            ) from error
    network.eval()
    return network


def _placed(config: Any, name: str) -> tuple[str, str]:
    """The class that loads the whole checkpoint, and the name of the text decoder in it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    for loader, mapping in (
        ("AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING),
        ("AutoModelForImageTextToText", MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            if getattr(found, "config_class", None) is type(config.get_text_config(decoder=True)):
                return loader, ""  # the class is the text model's own already
            try:
                whole = _on_meta(found, config, name)
            except ModelError:  # a tower may need a package that its text half does not
                return loader, "model.language_model"
            return loader, name_of(whole, whole.get_decoder())
    raise _refused(name, f"transformers has no model that loads {config.model_type}")


# --- layers ------------------------------------------------------------------------------------------------------


def _routes(name: str, module: nn.Module, config: Any) -> bool:
    """Whether this linear layer chooses experts."""
    leaf = _leaf(name)
    if any("router" in part for part in name.split(".")[-2:]):
        return True
    counts = {getattr(config, key, None) for key in _EXPERT_COUNTS} | {1}
    return leaf in _ROUTERS and sides(module)[1] in counts


def _plain(module: nn.Module) -> bool:
    """Whether it is nn.Linear as it came, or one whose product is the same (bitsandbytes' and our own)."""
    return type(module) is nn.Linear or type(module).__name__ in ("Linear4bit", "FrozenLinear")


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return cast(type[nn.Module], Conv1D)


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _packing(name: str) -> bool:
    """Whether this tensor belongs to the packing of another in 4 bits."""
    return ".weight." in name


def decoder_layers(network: Any) -> list[str]:
    """The names of the decoder's blocks, in order."""
    lists = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    name, blocks = max(lists, key=lambda each: len(list(each[1].modules())), default=("", ()))
    return [f"{name}.{index}" for index in range(len(blocks))]
