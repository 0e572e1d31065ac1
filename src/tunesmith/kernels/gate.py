"""The gated product of a decoder's feed-forward part: activation(gate) times up."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("silu", "gelu_tanh")


def gated(both: Tensor, activation: str) -> Tensor:
    """`both` (tokens x 2 inner: gate, then up) to tokens x inner."""
    gate, up = _halves(both)
    made = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    return (made * up).to(both.dtype)


def gated_back(dy: Tensor, both: Tensor, activation: str) -> Tensor:
    """The gradient to `both`.

    silu' = s (1 + g (1 - s)), s the logistic function of g; gelu as tanh: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """
    gate, up = _halves(both)
    wide = dy if dy.dtype == torch.float64 else dy.float()
    if activation == "silu":
        share = torch.sigmoid(gate)
        value, slope = gate * share, share * (1 + gate * (1 - share))
    else:
        root = math.sqrt(2 / math.pi)
        bend = torch.tanh(root * (gate + 0.044715 * gate**3))
        value = 0.5 * gate * (1 + bend)
        slope = 0.5 * (1 + bend) + 0.5 * gate * (1 - bend * bend) * root * (1 + 3 * 0.044715 * gate * gate)
    return torch.cat((wide * up * slope, wide * value), dim=-1).to(both.dtype)


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = (both if both.dtype == torch.float64 else both.float()).chunk(2, dim=-1)
    return gate, up
