"""A frozen base of which each process keeps a part: torch's FSDP2 over the decoder's layers.

A layer's parameters, its packed NF4 codes among them, are gathered before its forward and again before its backward,
and given back after each. FSDP2 wants one number type of the parameters that are trained, not of the frozen ones: it
gathers codes and norms of different types as bytes in one collective. The adapter is small, stays whole on each process
and is left out of FSDP2; its gradients are added up as without sharding (`spread`). Embeddings, head and the codes'
scales (1/32 of them) stay whole, too: the loss reads the head outside of any layer's forward.

The fused decoder reads the codes behind FSDP2's back, so a sharded base is trained by autograd. Since every forward and
backward is a collective, all processes must make the same number of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.models.build import Model
from tunesmith.models.qlora import FrozenLinear
from tunesmith.training import distributed


def shard(model: Model) -> None:
    """Moves `model` with its adapter to this process's device, keeping 1/N of each decoder layer's frozen weights.

    A model that is on the processor reaches the card layer by layer, so that it need never stand there as a whole.
    """
    if model.experts():
        raise RecipeError(
            "experts are not divided over processes", where="train.spread", next="Set train.spread to ddp"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device("cpu")
    mesh = init_device_mesh(kind, (distributed.world_size(),))
    decoder = model.decoder_network
    trained = set(model.trainable().values())
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    for layer in _layers(decoder):
        _move_scales(layer, device)
        _rename_codes(layer)
        fully_shard(layer, mesh=mesh, ignored_params=trained, reshard_after_forward=True)
    held = {p for p in decoder.parameters() if not hasattr(p, "to_local")}
    for owner in model.network.modules():
        _move(owner, device)
    fully_shard(decoder, mesh=mesh, ignored_params=held | trained)  # the root: it lets layers be gathered ahead


def _layers(decoder: Any) -> nn.ModuleList:
    return next(child for child in decoder.children() if isinstance(child, nn.ModuleList))


def _move_scales(layer: nn.Module, device: torch.device) -> None:
    """A layer's scales and code books are no parameters."""
    for module in layer.modules():
        if isinstance(module, FrozenLinear) and module.state is not None:
            module.state.to(device)


def _rename_codes(layer: nn.Module) -> None:
    """Calls the codes float8: before torch 2.13 FSDP2 makes its parts as if they had gradients, which bytes cannot."""
    for module in layer.modules():
        if isinstance(module, FrozenLinear) and module.state is not None:
            module.weight = nn.Parameter(module.weight.detach().view(torch.float8_e4m3fn), requires_grad=False)


def _move(module: nn.Module, device: torch.device) -> None:
    """Moves a module's own parameters and buffers, those apart that FSDP2 holds."""
    for parameter in module.parameters(recurse=False):
        if not hasattr(parameter, "to_local"):
            parameter.data = parameter.data.to(device)
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))
