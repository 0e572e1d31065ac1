"""A model's sizes, counted on its tree of modules before any weight is loaded; and compared with what was loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith.config.recipe import Adapter
from tunesmith.errors import InternalError
from tunesmith.models.architecture import Architecture, decoder_layers, linear_layers, read_architecture, sides
from tunesmith.models.expert_packing import expert_parameters
from tunesmith.models.experts import ExpertShape, ExpertWeights, expert_shapes
from tunesmith.models.qlora import FrozenLinear

GROUPS = ("embeddings", "head", "linear", "experts", "other")
CLOSE = 0.01  # the share by which loaded and planned bytes may differ


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder, in elements; `linears` are the (in, out) of one decoder layer's linear layers.

    Where the layers differ, `linears` are those of the largest; `blocks` has every layer's. `counts` are the
    parameters by group: embeddings, head (0 where it is the embeddings), linear, experts, other. A shape that was
    written by hand has neither, and is taken for layers that are all alike, without experts.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int  # of the gated product; with experts, of all those that one token passes through
    queries: int  # width of all query heads together
    keys: int  # width of all key heads together
    head: int  # width of one head
    vocabulary: int
    tied: bool
    context: int
    linears: tuple[tuple[int, int], ...]
    counts: Mapping[str, int] = field(default_factory=dict, compare=False, hash=False)
    blocks: tuple[tuple[tuple[str, int, int], ...], ...] = field(default=(), compare=False, hash=False)
    outside: tuple[tuple[str, int, int], ...] = field(default=(), compare=False, hash=False)  # not in any block
    stacked: tuple[tuple[str, ExpertShape], ...] = field(default=(), compare=False, hash=False)  # experts' parameters
    used: int = field(default=0, compare=False)  # experts of one token
    recurrent: frozenset[int] = field(default=frozenset(), compare=False)  # blocks with a state-space or linear mixer
    eager: bool = field(default=False, compare=False)  # whether attention keeps its scores

    @property
    def names(self) -> tuple[str, ...]:
        """The last parts of the linear layers' names, in the order of `linears`."""
        if self.blocks:
            return tuple(name for name, _, _ in _largest(self.blocks))
        if self.family == "gpt2":
            return "c_attn", "c_proj", "c_fc", "c_proj"
        if self.family == "phi3":
            return "qkv_proj", "o_proj", "gate_up_proj", "down_proj"
        return "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"

    @property
    def linear(self) -> int:
        """Elements of the linear layers of all decoder layers."""
        return self.counts["linear"] if self.counts else self.layers * sum(inner * out for inner, out in self.linears)

    @property
    def experts(self) -> int:
        """Elements of the experts of all layers."""
        return self.counts.get("experts", 0)

    @property
    def rest(self) -> int:
        """Elements of embeddings, head and norms."""
        if self.counts:
            return self.counts["embeddings"] + self.counts["head"] + self.counts["other"]
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.linear + self.experts + self.rest

    def base_bytes(self, bits: int, number: int) -> dict[str, int]:
        """Bytes of the loaded base by group, with `number` bytes an element of what is not packed in 4 bits."""
        counts = self.counts or {"linear": self.linear, "other": self.rest}
        packed = {name: int(count * number) for name, count in counts.items()}
        if bits == 4:
            packed["linear"] = sum(nf4_bytes(inner * out) for _, inner, out in self.every())
            packed["experts"] = sum(each.experts * nf4_bytes(each.inputs * each.outputs) for _, each in self.stacked)
        return packed

    def every(self) -> tuple[tuple[str, int, int], ...]:
        """(name, in, out) of every linear layer that may be adapted."""
        if self.blocks:
            return (*(each for block in self.blocks for each in block), *self.outside)
        return tuple((name, *size) for name, size in zip(self.names, self.linears, strict=True)) * self.layers

    def adapter(self, rank: int, layers: str | Sequence[str] = "all", experts: str = "all") -> int:
        """Elements of a LoRA adapter of `rank` on the layers, experts among them, whose last names are in `layers`."""
        linear = sum(inner + out for name, inner, out in self.every() if layers == "all" or name in layers)
        if experts == "none":
            return rank * linear
        stacked = [each for name, each in self.stacked if layers == "all" or name in layers]
        return rank * linear + sum(each.adapter_parameters(rank) for each in stacked)


def nf4_bytes(count: int) -> int:
    """Bytes of `count` weights in NF4: codes, an 8-bit scale for 64 of them, a 32-bit scale for 256 scales."""
    scales = -(-count // 64)
    return -(-count // 2) + scales + 4 * (-(-scales // 256))


def read_shape(folder: Path, name: str) -> ModelShape:
    """The shape of the text model that `folder`'s config.json describes.

    Raises ModelError for a configuration that is no decoder's.
    """
    return shape_of(read_architecture(folder, name))


def shape_of(model: Architecture) -> ModelShape:
    """The shape of a model without weights."""
    config, network = model.config, model.network
    hidden = int(network.get_input_embeddings().weight.shape[1])
    heads = _first(config, "num_attention_heads", "n_head", fallback=1)
    head = _first(config, "head_dim", fallback=hidden // heads)
    keys = _first(config, "num_key_value_heads", fallback=heads) * head
    blocks, outside = _blocks(network)
    return ModelShape(
        family=model.family,
        layers=len(blocks),
        hidden=hidden,
        intermediate=_intermediate(config, hidden),
        queries=heads * head,
        keys=keys,
        head=head,
        vocabulary=network.get_input_embeddings().weight.shape[0],
        tied=model.tied,
        context=_first(config, "max_position_embeddings", "n_positions", "n_ctx", fallback=2048),
        linears=tuple((inner, out) for _, inner, out in _largest(blocks)),
        counts=count(network, tied=model.tied),
        blocks=blocks,
        outside=outside,
        used=_first(config, "num_experts_per_tok", "top_k_experts", fallback=0),
        recurrent=frozenset(_recurrent(network)),
        eager=_keeps_scores(network),
        stacked=tuple((name.rsplit(".", 1)[-1], each) for name, each in expert_shapes(network).items()),
    )


def count(network: Any, *, tied: bool) -> dict[str, int]:
    """Parameters of a model by group, on any device; its linear layers must not be packed."""
    return {group: sum(each.numel() for each in members) for group, members in _grouped(network, tied=tied).items()}


def loaded_bytes(network: Any, *, tied: bool) -> dict[str, int]:
    """Bytes of a loaded model by group: weights, codes and the scales of codes."""
    found = {group: sum(each.nbytes for each in members) for group, members in _grouped(network, tied=tied).items()}
    for layer in network.modules():
        if isinstance(layer, FrozenLinear) and layer.state is not None:
            state = layer.state
            found["linear"] += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        if isinstance(layer, ExpertWeights):
            found["experts"] += sum(part.nbytes for name, part in layer.named_buffers() if not name.endswith("book"))
    return found


def check_loaded(shape: ModelShape, model: Any, *, bits: int, number: int) -> dict[str, dict[str, int]]:
    """Planned and loaded bytes by group. Raises InternalError where they differ by more than 1 %.

    `model` is a loaded Model before its adapter; a vector that a family keeps in float32 counts as it is planned, so
    small groups may differ by up to 0.1 % of the whole.
    """
    planned = shape.base_bytes(bits, number)
    loaded = loaded_bytes(model.network, tied=model.tied)
    whole = sum(planned.values())
    for group in sorted({*planned, *loaded}):
        wanted, got = planned.get(group, 0), loaded.get(group, 0)
        if abs(wanted - got) > max(CLOSE * wanted, 0.001 * whole):
            raise InternalError(
                f"the plan counted {wanted:,} bytes of {group} and {got:,} were loaded", where=model.weights.name
            )
    return {group: {"planned": planned.get(group, 0), "loaded": loaded.get(group, 0)} for group in loaded}


def planned_trained(model: Architecture, adapter: Adapter) -> int:
    """Parameters that the recipe's section `adapter` trains in this model.

    Raises ModelError for layers that it does not have.
    """
    layers, stacked = model.covered(adapter.layers, adapter.experts)
    total = sum(each.adapter_parameters(adapter.rank) for each in stacked.values())
    total += sum(adapter.rank * (inner + out) + (out if adapter.dora else 0) for inner, out in layers.values())
    network = model.network
    if adapter.bias == "all":
        total += sum(p.numel() for n, p in network.named_parameters() if n.rsplit(".", 1)[-1] == "bias")
    elif adapter.bias == "lora_only":
        total += sum(getattr(network.get_submodule(n).bias, "numel", int)() for n in layers)
    outer = {"embeddings": network.get_input_embeddings(), "head": network.get_output_embeddings()}
    wanted = list(dict.fromkeys(adapter.train_also))
    total += sum(outer[which].weight.numel() for which in (wanted[:1] if model.tied else wanted))
    return int(total) + sum(_own_bias(outer[which]) for which in wanted if adapter.bias != "all")


def check_trained(model: Architecture, adapter: Adapter, trained: int) -> dict[str, int]:
    """Planned and actual trained parameters. Raises InternalError where they differ by more than 1 %."""
    planned = planned_trained(model, adapter)
    if abs(planned - trained) > CLOSE * planned:
        what = f"the plan counted {planned:,} trained parameters and the model has {trained:,}"
        raise InternalError(what, where=model.family)
    return {"planned": planned, "trained": trained}


# --- counting ----------------------------------------------------------------------------------------------------


def _grouped(network: Any, *, tied: bool) -> dict[str, list[Any]]:
    """Every parameter in its group; a tied head is in none, for it is the embeddings."""
    head, linear = network.get_output_embeddings(), set(linear_layers(network).values())
    made: dict[str, list[Any]] = {group: [] for group in GROUPS}
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        for parameter in own:
            if module is head:
                if not (tied and parameter.dim() == 2):
                    made["head"].append(parameter)
            elif isinstance(module, nn.Embedding):
                made["embeddings"].append(parameter)
            elif module in linear and parameter is module.weight:
                made["linear"].append(parameter)
            elif parameter.dim() == 3 and expert_parameters(module):
                made["experts"].append(parameter)
            else:
                made["other"].append(parameter)
    return made


def _blocks(network: Any) -> tuple[tuple[tuple[tuple[str, int, int], ...], ...], tuple[tuple[str, int, int], ...]]:
    """(last name, in, out) of the linear layers of each block, and of those outside of them."""
    layers = {name: sides(module) for name, module in linear_layers(network).items()}
    blocks, inside = [], set()
    for prefix in decoder_layers(network):
        held = [name for name in layers if name.startswith(f"{prefix}.")]
        inside |= set(held)
        blocks.append(tuple((name.rsplit(".", 1)[-1], *layers[name]) for name in held))
    outside = tuple((name.rsplit(".", 1)[-1], *size) for name, size in layers.items() if name not in inside)
    return tuple(blocks), outside


def _keeps_scores(network: Any) -> bool:
    """Whether attention keeps its scores: no fused kernel has this family's sinks, caps or dropout."""
    names = ("attn_logit_softcapping", "attention_dropout", "attn_pdrop")
    return not getattr(network, "_supports_sdpa", True) or any(getattr(network.config, name, None) for name in names)


def _recurrent(network: Any) -> Iterator[int]:
    """The blocks with a mixer that carries a state along the row."""
    for index, name in enumerate(decoder_layers(network)):
        if any(hasattr(module, "A_log") for module in network.get_submodule(name).modules()):
            yield index


def _largest(blocks: Sequence[Sequence[tuple[str, int, int]]]) -> Sequence[tuple[str, int, int]]:
    return max(blocks, key=lambda block: sum(inner * out for _, inner, out in block), default=())


def _intermediate(config: Any, hidden: int) -> int:
    """The widest gated product that a token passes through in a layer."""
    dense = _first(config, "intermediate_size", "n_inner", fallback=4 * hidden)
    used = _first(config, "num_experts_per_tok", "top_k_experts", fallback=0)
    return max(dense, used * _first(config, "moe_intermediate_size", fallback=dense))


def _first(config: Any, *keys: str, fallback: int) -> int:
    """The first of these settings that is a number; the largest, where each layer has one of its own."""
    for key in keys:
        try:
            value = getattr(config, key, None)
        except Exception:  # transformers refuses to give one value for settings that differ from layer to layer
            value = [getattr(layer, key, None) for layer in config.per_layer_config]
        values = [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, int)]
        if values:
            return max(values)
    return fallback


def _own_bias(module: Any) -> int:
    bias = getattr(module, "bias", None)
    return 0 if bias is None else int(bias.numel())
