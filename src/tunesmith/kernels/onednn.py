"""Frozen weights in oneDNN's blocked layout, for products of few rows on a CPU.

A plain product converts the weight at every call; here that is done once. With 16 rows in bfloat16 a product takes two
thirds of the time (dev/LOG.md); with the hundreds of rows of a training step it makes no difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_ops: Any = torch.ops.mkldnn


class OneDnnWeight(NamedTuple):
    """A weight (out x in) in oneDNN's blocked layout; `out` and `width` are its sizes."""

    blocks: Tensor
    out: int
    width: int


def can_pack(weight: Tensor) -> bool:
    """Returns whether oneDNN can pack `weight`: bfloat16 on a CPU."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def pack(weight: Tensor, rows: int) -> OneDnnWeight:
    """Returns a packed copy of `weight` (out x in) for products of about `rows` rows."""
    return OneDnnWeight(_ops._reorder_linear_weight(weight.contiguous(), rows), *weight.shape)


def linear(x: Tensor, packed: OneDnnWeight, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """Returns `x` (rows x in) times the transposed weight plus `bias` (out) and `add` (rows x out), rounded once."""
    if add is not None:
        out: Tensor = _ops._linear_pointwise.binary(x, add, packed.blocks, bias, "add")
        return out
    out = _ops._linear_pointwise(x, packed.blocks, bias, "none", [], "")
    return out
