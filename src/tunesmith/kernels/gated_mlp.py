"""The gated product of a decoder's MLP: activation(gate) times up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("silu", "gelu_tanh")
_aten: Any = torch.ops.aten


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """Returns activation(gate) times up (tokens x inner); `gate_up` is tokens x 2 inner, gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _activation(gate, activation).mul_(up)


def gated_backward(dy: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Returns the gradient of `gate_up` and `gated`'s output; overwrites `dy` (tokens x inner)."""
    gate, up = gate_up.chunk(2, dim=-1)
    dgate_up = torch.empty_like(gate_up)
    dgate, dup = dgate_up.chunk(2, dim=-1)
    value = _activation(gate, activation)
    torch.mul(dy, value, out=dup)
    dy.mul_(up)
    if activation == "silu":
        _aten.silu_backward.grad_input(dy, gate, grad_input=dgate)
    else:
        _aten.gelu_backward.grad_input(dy, gate, approximate="tanh", grad_input=dgate)
    return dgate_up, value.mul_(up)


def _activation(gate: Tensor, activation: str) -> Tensor:
    return functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
