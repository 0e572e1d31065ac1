"""LoRA initializations by name. Each function takes an `InitLayer` and returns `InitialFactors`: A and B.

All depend only on the seed, the layer's name and its weight, so that a resumed run computes the same ones again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.qlora import FrozenLinear

OVERSAMPLED = 8  # directions beyond the rank in the randomized SVD; Halko et al. advise 5 to 10


class InitLayer(NamedTuple):
    """A layer to initialize an update for.

    `usual` is the default A (rank x in); `original` returns the weight before quantization (out x in, float32).
    """

    name: str
    layer: FrozenLinear
    rank: int
    scale: float
    seed: int
    usual: Tensor
    original: Callable[[], Tensor]


class InitialFactors(NamedTuple):
    """The initial A (rank x in) and B (out x rank); with `taken`, their product is subtracted from the base."""

    a: Tensor
    b: Tensor
    taken: bool = False


def zero(place: InitLayer) -> InitialFactors:
    """Standard LoRA: A uniform in ±1/sqrt(in), B zero, so that training starts at the base (arXiv:2106.09685)."""
    return InitialFactors(place.usual, torch.zeros(place.layer.out_features, place.rank))


def pissa(place: InitLayer, *, iterations: int | None = 8) -> InitialFactors:
    """PiSSA: trains the weight's principal singular vectors and keeps the residual frozen (arXiv:2404.02948).

    `iterations` of the randomized SVD; null computes the exact one, which takes minutes for a large model. With
    W = U S Vᵀ, B₀ = U sqrt(S / s) and A₀ = sqrt(S / s) Vᵀ of the first `rank` values; the residual is W - s B₀ A₀.

    W is the weight that the base multiplies by, dequantized if it is NF4. The paper quantizes the residual again, which
    reduces the quantization error, but the trained model then is no longer the original base plus an adapter. Here the
    base stays unchanged and -s B₀ A₀ is a frozen part of an update of twice the rank, which is saved as the adapter.

    Raises ModelError if the rank exceeds the layer's size, RecipeError for iterations below 0.
    """
    return InitialFactors(*_low_rank(place.layer.matrix().to(torch.float32), place, iterations), taken=True)


def loftq(place: InitLayer, *, iterations: int | None = 8) -> InitialFactors:
    """LoftQ's first step: s B A starts as the best low-rank approximation of the NF4 error (arXiv:2310.08659).

    `iterations` of the randomized SVD; null computes the exact one. The paper then quantizes W - s B A again; here the
    NF4 weight stays Q = NF4(W), so that the adapter fits the plain NF4 base. s B A is the truncated SVD of W - Q, with
    W read from the model's files one layer at a time.

    Raises ModelError if the base is not NF4, the rank exceeds the layer's size, or the files do not hold the weight;
    RecipeError for iterations below 0.
    """
    if place.layer.state is None:
        raise ModelError(
            "loftq needs base.bits: 4; this base is not quantized",
            where="adapter.start",
            next="Set base.bits to 4, or adapter.start to zero or pissa",
        )
    quantized = place.layer.matrix().to(torch.float32)
    return InitialFactors(*_low_rank(place.original().to(quantized.device) - quantized, place, iterations))


def _low_rank(matrix: Tensor, place: InitLayer, iterations: int | None) -> tuple[Tensor, Tensor]:
    """Returns A and B such that s B A is the best approximation of `matrix` (out x in, float32) of that rank."""
    if place.rank > min(matrix.shape):
        raise ModelError(
            f"rank {place.rank} exceeds the rank of '{place.name}', {min(matrix.shape)}",
            where="adapter.rank",
            next="Lower it, choose other adapter.layers, or set adapter.start to zero",
        )
    if iterations is not None and iterations < 0:
        raise RecipeError("iterations must be 0 or more", where="adapter.start", next="Use null for the exact SVD")
    with torch.no_grad():
        u, values, vt = _svd(matrix, place, iterations)
        root = (values / place.scale).sqrt()
        return root[:, None] * vt, u * root


def _svd(matrix: Tensor, place: InitLayer, iterations: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U (out x rank), the singular values and Vᵀ (rank x in).

    The randomized SVD is subspace iteration (Halko, Martinsson & Tropp 2009, arXiv:0909.4061, algorithms 4.4 and 5.1)
    with one QR per iteration. Its random directions are drawn on the CPU, so that they are the same on every device.
    """
    rank, width = place.rank, min(place.rank + OVERSAMPLED, *matrix.shape)
    if iterations is None or width == min(matrix.shape):
        u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], values[:rank], vt[:rank]
    number = int.from_bytes(hashlib.sha256(f"{place.seed}/{place.name}/svd".encode()).digest()[:8], "big") >> 1
    directions = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(number))
    basis = torch.linalg.qr(matrix @ directions.to(matrix.device)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    u, values, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], values[:rank], vt[:rank]
