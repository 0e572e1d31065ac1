"""Where an adapter starts, by name. Each function takes a `Place` and returns a `Start`: the first A and B.

All are deterministic in the seed and the layer's name, so that a run that goes on meets the same start again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.qlora import FrozenLinear

OVERSAMPLED = 8  # directions beyond the rank in the randomised SVD; Halko et al. advise 5 to 10


class Place(NamedTuple):
    """A layer that gets an update: its name, itself, the rank, the update's scale, the seed, A's usual start (rank x
    in), and the weight as it was before quantisation (out x in, float32).
    """

    name: str
    layer: FrozenLinear
    rank: int
    scale: float
    seed: int
    usual: Tensor
    original: Callable[[], Tensor]


class Start(NamedTuple):
    """The first A (rank x in) and B (out x rank); `taken`: their product is taken off the base."""

    a: Tensor
    b: Tensor
    taken: bool = False


def zero(place: Place) -> Start:
    """LoRA's own: A uniform in ±1/sqrt(in), B zero, so that the model starts as its base (arXiv:2106.09685)."""
    return Start(place.usual, torch.zeros(place.layer.out_features, place.rank))


def pissa(place: Place, *, iterations: int | None = 8) -> Start:
    """PiSSA: the weight's principal singular vectors are trained, the base keeps the rest (arXiv:2404.02948).

    `iterations` of the randomised SVD; null takes the exact one, which needs minutes for a large model. With
    W = U S Vᵀ, B₀ = U sqrt(S / s) and A₀ = sqrt(S / s) Vᵀ of the first `rank` values, so that W - s B₀ A₀ is the rest.

    W is the weight as the base multiplies by it, dequantised where it is NF4. The paper quantises the rest anew, which
    shrinks the quantisation error, but then neither the untouched base nor its plain NF4 with any adapter is the model
    that was trained. Here the base stays as it is and -s B₀ A₀ runs along as a frozen half of an update of twice the
    rank. That update is what is saved, and the base with it is what was trained, term by term.

    Raises ModelError when the rank is larger than the layer, RecipeError for iterations below 0.
    """
    return Start(*_divided(place.layer.matrix().to(torch.float32), place, iterations), taken=True)


def loftq(place: Place, *, iterations: int | None = 8) -> Start:
    """LoftQ's first step: s B A starts as the best answer of its rank to what NF4 took away (arXiv:2310.08659).

    `iterations` of the randomised SVD; null takes the exact one. The paper goes on and quantises W - s B A anew; here
    the NF4 weight stays Q = NF4(W), so that the adapter fits the plain NF4 base. B A is the truncated SVD of W - Q,
    with W read from the model's files, a layer at a time.

    Raises ModelError when the base is not NF4, the rank is larger than the layer, or the files do not hold the weight;
    RecipeError for iterations below 0.
    """
    if place.layer.state is None:
        raise ModelError(
            "loftq answers the error of NF4, and this base is not quantised",
            where="adapter.start",
            next="Set base.bits to 4, or adapter.start to zero or pissa",
        )
    kept = place.layer.matrix().to(torch.float32)
    return Start(*_divided(place.original().to(kept.device) - kept, place, iterations))


def _divided(matrix: Tensor, place: Place, iterations: int | None) -> tuple[Tensor, Tensor]:
    """A and B with s B A the best approximation of `matrix` (out x in, float32) of the place's rank."""
    if place.rank > min(matrix.shape):
        raise ModelError(
            f"rank {place.rank} is more than '{place.name}' has ({min(matrix.shape)})",
            where="adapter.rank",
            next="Lower it, name other adapter.layers, or set adapter.start to zero",
        )
    if iterations is not None and iterations < 0:
        raise RecipeError("iterations must be 0 or more", where="adapter.start", next="Or null, for the exact SVD")
    with torch.no_grad():
        left, values, right = _svd(matrix, place, iterations)
        root = (values / place.scale).sqrt()
        return root[:, None] * right, left * root


def _svd(matrix: Tensor, place: Place, iterations: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """U (out x rank), the singular values and Vᵀ (rank x in).

    The randomised one is subspace iteration (Halko, Martinsson & Tropp 2009, arXiv:0909.4061, algorithms 4.4 and 5.1)
    with one QR a round, its directions drawn on the processor, so that every device starts from the same.
    """
    rank, width = place.rank, min(place.rank + OVERSAMPLED, *matrix.shape)
    if iterations is None or width == min(matrix.shape):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    number = int.from_bytes(hashlib.sha256(f"{place.seed}/{place.name}/svd".encode()).digest()[:8], "big") >> 1
    drawn = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(number))
    basis = torch.linalg.qr(matrix @ drawn.to(matrix.device)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :rank], values[:rank], right[:rank]
