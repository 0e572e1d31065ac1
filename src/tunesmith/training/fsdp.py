"""Shards the frozen base over the processes with torch's FSDP2.

A layer's parameters, packed NF4 codes included, are gathered before its forward and its backward and freed after each.
FSDP2 requires one dtype for trained parameters only; it gathers frozen codes and norms of different types as bytes in
one collective. The small adapter is replicated and ignored by FSDP2; its gradients are summed as without sharding
(distributed.py). Embeddings, head and the codes' scales (1/32 of their size) are replicated too: the loss reads the
head outside of any layer's forward.

The fused decoder reads codes without FSDP2's hooks, so a sharded base is trained by autograd. Every forward and
backward is a collective, so all processes must run the same number of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.build import Model
from tunesmith.models.qlora import FrozenLinear
from tunesmith.training import distributed


def shard_base(model: Model) -> None:
    """Moves `model` to this process's device, keeping 1/N of each decoder layer's frozen weights.

    A model on the CPU is moved layer by layer, so the GPU never holds all of it. Raises RecipeError for experts.
    """
    if model.experts():
        raise RecipeError(
            "a mixture of experts cannot be sharded", where="train.parallel", next="Set train.parallel to ddp"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_type, torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")
    mesh = init_device_mesh(device_type, (distributed.world_size(),))
    decoder = model.decoder_network
    trained = set(model.trainable().values())
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    for layer in _decoder_layers(decoder):
        _move_scales(layer, device)
        _view_codes_as_float8(layer)
        fully_shard(layer, mesh=mesh, ignored_params=trained, reshard_after_forward=True)
    unsharded = {p for p in decoder.parameters() if not hasattr(p, "to_local")}
    for owner in model.network.modules():
        _move_unsharded(owner, device)
    fully_shard(decoder, mesh=mesh, ignored_params=unsharded | trained)  # the root enables prefetching of layers


def _decoder_layers(decoder: Any) -> nn.ModuleList:
    return next(child for child in decoder.children() if isinstance(child, nn.ModuleList))


def _move_scales(layer: nn.Module, device: torch.device) -> None:
    """Moves a layer's scales and code books, which are not parameters."""
    for module in layer.modules():
        if isinstance(module, FrozenLinear) and module.state is not None:
            module.state.to(device)


def _view_codes_as_float8(layer: nn.Module) -> None:
    """Views the codes as float8: before torch 2.13 FSDP2's shards require gradients, which uint8 cannot have."""
    for module in layer.modules():
        if isinstance(module, FrozenLinear) and module.state is not None:
            module.weight = nn.Parameter(module.weight.detach().view(torch.float8_e4m3fn), requires_grad=False)


def _move_unsharded(module: nn.Module, device: torch.device) -> None:
    """Moves a module's own parameters and buffers except those that FSDP2 manages."""
    for parameter in module.parameters(recurse=False):
        if not hasattr(parameter, "to_local"):
            parameter.data = parameter.data.to(device)
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))
