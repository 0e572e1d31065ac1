"""The gated product of a decoder's feed-forward part: activation(gate) times up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("silu", "gelu_tanh")
_aten: Any = torch.ops.aten


def gated(both: Tensor, activation: str) -> Tensor:
    """`both` (tokens x 2 inner: gate, then up) to tokens x inner."""
    gate, up = both.chunk(2, dim=-1)
    return _activated(gate, activation).mul_(up)


def gated_back(dy: Tensor, both: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradient to `both`, and what `gated` made; `dy` (tokens x inner) is spent."""
    gate, up = both.chunk(2, dim=-1)
    made = torch.empty_like(both)
    dgate, dup = made.chunk(2, dim=-1)
    value = _activated(gate, activation)
    torch.mul(dy, value, out=dup)
    dy.mul_(up)
    if activation == "silu":
        _aten.silu_backward.grad_input(dy, gate, grad_input=dgate)
    else:
        _aten.gelu_backward.grad_input(dy, gate, approximate="tanh", grad_input=dgate)
    return made, value.mul_(up)


def _activated(gate: Tensor, activation: str) -> Tensor:
    return functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
