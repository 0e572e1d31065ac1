"""Computes a model's sizes from its modules before weights are loaded, and compares them with the loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith.config.recipe import Adapter
from tunesmith.errors import InternalError
from tunesmith.models.architecture import (
    Architecture,
    decoder_layers,
    in_out_features,
    linear_layers,
    read_architecture,
)
from tunesmith.models.expert_packing import expert_parameters
from tunesmith.models.experts import ExpertWeights, expert_shapes
from tunesmith.models.qlora import FrozenLinear
from tunesmith.models.shape import PARAMETER_GROUPS, ModelShape, largest_block

TOLERANCE = 0.01  # the relative tolerance between loaded and planned bytes


def read_shape(folder: Path, name: str) -> ModelShape:
    """Reads the shape of the text model in `folder`. Raises ModelError for a model that is not a decoder."""
    return shape_of(read_architecture(folder, name))


def shape_of(model: Architecture) -> ModelShape:
    """Returns the shape of a model without weights."""
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
        linears=tuple((inner, out) for _, inner, out in largest_block(blocks)),
        counts=count_parameters(network, tied=model.tied),
        blocks=blocks,
        outside=outside,
        used=_first(config, "num_experts_per_tok", "top_k_experts", fallback=0),
        recurrent=frozenset(_recurrent(network)),
        eager=_keeps_scores(network),
        stacked=tuple((name.rsplit(".", 1)[-1], expert_shape) for name, expert_shape in expert_shapes(network).items()),
    )


def count_parameters(network: Any, *, tied: bool) -> dict[str, int]:
    """Returns the number of parameters by group, for a model on any device with unpacked linear layers."""
    return {
        group: sum(parameter.numel() for parameter in members)
        for group, members in _parameters_by_group(network, tied=tied).items()
    }


def loaded_bytes(network: Any, *, tied: bool) -> dict[str, int]:
    """Returns bytes of a loaded model by group: weights, codes and their scales."""
    totals = {
        group: sum(parameter.nbytes for parameter in members)
        for group, members in _parameters_by_group(network, tied=tied).items()
    }
    for layer in network.modules():
        if isinstance(layer, FrozenLinear) and layer.state is not None:
            state = layer.state
            totals["linear"] += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        if isinstance(layer, ExpertWeights):
            totals["experts"] += sum(part.nbytes for name, part in layer.named_buffers() if not name.endswith("book"))
    return totals


def check_loaded(shape: ModelShape, model: Any, *, bits: int, bytes_per_element: int) -> dict[str, dict[str, int]]:
    """Returns planned and loaded bytes by group. Raises InternalError if they differ by more than 1 %.

    `model` is a loaded Model without adapter. A group may also differ by 0.1 % of the total, because some families keep
    small vectors in float32.
    """
    planned = shape.base_bytes(bits, bytes_per_element)
    loaded = loaded_bytes(model.network, tied=model.tied)
    planned_total = sum(planned.values())
    for group in sorted({*planned, *loaded}):
        expected, actual = planned.get(group, 0), loaded.get(group, 0)
        if abs(expected - actual) > max(TOLERANCE * expected, 0.001 * planned_total):
            raise InternalError(
                f"the plan has {expected:,} bytes of {group}, but {actual:,} were loaded", where=model.weights.name
            )
    return {group: {"planned": planned.get(group, 0), "loaded": loaded.get(group, 0)} for group in loaded}


def planned_trained(model: Architecture, adapter: Adapter) -> int:
    """Returns the number of parameters that the recipe's `adapter` section trains.

    Raises ModelError for layers that the model does not have.
    """
    layers, stacked = model.covered(adapter.layers, adapter.experts)
    total = sum(expert_shape.adapter_parameters(adapter.rank) for expert_shape in stacked.values())
    total += sum(adapter.rank * (inner + out) + (out if adapter.dora else 0) for inner, out in layers.values())
    network = model.network
    if adapter.bias == "all":
        total += sum(p.numel() for n, p in network.named_parameters() if n.rsplit(".", 1)[-1] == "bias")
    elif adapter.bias == "lora_only":
        total += sum(getattr(network.get_submodule(n).bias, "numel", int)() for n in layers)
    outer = {"embeddings": network.get_input_embeddings(), "head": network.get_output_embeddings()}
    names = list(dict.fromkeys(adapter.train_also))
    total += sum(outer[name].weight.numel() for name in (names[:1] if model.tied else names))
    return int(total) + sum(_bias_size(outer[name]) for name in names if adapter.bias != "all")


def check_trained(model: Architecture, adapter: Adapter, trained: int) -> dict[str, int]:
    """Returns planned and actual trained parameters. Raises InternalError if they differ by more than 1 %."""
    planned = planned_trained(model, adapter)
    if abs(planned - trained) > TOLERANCE * planned:
        message = f"the plan has {planned:,} trained parameters, but the model has {trained:,}"
        raise InternalError(message, where=model.family)
    return {"planned": planned, "trained": trained}


# --- counting ----------------------------------------------------------------------------------------------------


def _parameters_by_group(network: Any, *, tied: bool) -> dict[str, list[Any]]:
    """Returns the parameters by group; a tied head counts as embeddings only."""
    head, linear = network.get_output_embeddings(), set(linear_layers(network).values())
    grouped: dict[str, list[Any]] = {group: [] for group in PARAMETER_GROUPS}
    for module in network.modules():
        direct = list(module.parameters(recurse=False))
        for parameter in direct:
            if module is head:
                if not (tied and parameter.dim() == 2):
                    grouped["head"].append(parameter)
            elif isinstance(module, nn.Embedding):
                grouped["embeddings"].append(parameter)
            elif module in linear and parameter is module.weight:
                grouped["linear"].append(parameter)
            elif parameter.dim() == 3 and expert_parameters(module):
                grouped["experts"].append(parameter)
            else:
                grouped["other"].append(parameter)
    return grouped


def _blocks(network: Any) -> tuple[tuple[tuple[tuple[str, int, int], ...], ...], tuple[tuple[str, int, int], ...]]:
    """Returns (last name, in, out) of the linear layers in each block, and of those outside all blocks."""
    layers = {name: in_out_features(module) for name, module in linear_layers(network).items()}
    blocks, inside = [], set()
    for prefix in decoder_layers(network):
        names = [name for name in layers if name.startswith(f"{prefix}.")]
        inside |= set(names)
        blocks.append(tuple((name.rsplit(".", 1)[-1], *layers[name]) for name in names))
    outside = tuple((name.rsplit(".", 1)[-1], *size) for name, size in layers.items() if name not in inside)
    return tuple(blocks), outside


def _keeps_scores(network: Any) -> bool:
    """Whether attention saves its scores, because no fused kernel supports the family's sinks, caps or dropout."""
    names = ("attn_logit_softcapping", "attention_dropout", "attn_pdrop")
    return not getattr(network, "_supports_sdpa", True) or any(getattr(network.config, name, None) for name in names)


def _recurrent(network: Any) -> Iterator[int]:
    """Yields the indices of blocks with a state-space or linear mixer."""
    for index, name in enumerate(decoder_layers(network)):
        if any(hasattr(module, "A_log") for module in network.get_submodule(name).modules()):
            yield index


def _intermediate(config: Any, hidden: int) -> int:
    """Returns the width of a layer's MLP, or of all experts of one token together."""
    dense = _first(config, "intermediate_size", "n_inner", fallback=4 * hidden)
    used = _first(config, "num_experts_per_tok", "top_k_experts", fallback=0)
    return max(dense, used * _first(config, "moe_intermediate_size", fallback=dense))


def _first(config: Any, *keys: str, fallback: int) -> int:
    """Returns the first of these settings that is a number; the largest, if it differs by layer."""
    for key in keys:
        try:
            value = getattr(config, key, None)
        except Exception:  # transformers raises for settings that differ by layer
            value = [getattr(layer, key, None) for layer in config.per_layer_config]
        values = [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, int)]
        if values:
            return max(values)
    return fallback


def _bias_size(module: Any) -> int:
    bias = getattr(module, "bias", None)
    return 0 if bias is None else int(bias.numel())
