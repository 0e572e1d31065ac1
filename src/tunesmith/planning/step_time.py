"""How long a step takes where the decoder is not fused and gradients come from autograd.

Products over the measured rate, activations over the measured bandwidth, and a fixed cost of each layer of a
micro-batch for the calls themselves. The constants are fitted to steps of the models in dev/LOG.md on two cores;
the estimate is meant to be within a factor of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.hardware import Speed
from tunesmith.models.shape import ModelShape
from tunesmith.planning.autograd import NF4_BYTES, token_bytes

PASSES = 6  # over the saved activations of a token, both directions
LOGITS = 6  # passes over a token's logits in 32 bits: softmax, its gradient, and their copies
CALLS = {"cpu": 500, "cuda": 900}  # launches of a layer in a micro-batch, adapter, both directions
UPDATE = 60  # launches of a trained matrix in an update
ATTENTION = 0.5  # of the products' rate, for scores and their gradients
UNPACK = 0.25  # of the bandwidth, for dequantizing NF4


@dataclass(frozen=True)
class MicroBatch:
    """Padded rows that go through the model together: `tokens` with padding, the `longest` row, `learnt` tokens."""

    tokens: int
    longest: int
    loss_tokens: int


def autograd_seconds(
    shape: ModelShape,
    speed: Speed,
    device: str,
    steps: Sequence[Sequence[MicroBatch]],
    *,
    bits: int,
    rank: int,
    number: int,
    recompute: bool,
    dense: bool,
) -> float:
    """The mean seconds of `steps`, each in its micro-batches. `number` is the bytes of an activation."""
    adapter, again = shape.adapter(rank), 1 if recompute else 0
    update = adapter * 44 / speed.bandwidth + 2 * 7 * shape.layers * UPDATE * speed.launch
    total = 0.0
    for batches in steps:
        total += update
        for batch in batches:
            products = batch.tokens * (2.0 * (2 + again) * shape.linear + 6.0 * adapter)
            head = 4.0 * shape.vocabulary * shape.hidden * batch.loss_tokens
            scores = 4.0 * (3 + again) * shape.layers * batch.tokens * batch.longest * shape.queries
            moved = batch.tokens * token_bytes(shape, number, False) * (PASSES + 2 * again)
            moved += batch.loss_tokens * shape.vocabulary * 4 * LOGITS
            if bits == 4 and not dense:
                moved += (2 + again) * shape.linear * (NF4_BYTES + number) / UNPACK
            calls = (1 + again / 3) * shape.layers * CALLS[device] * speed.launch
            total += (products + head + scores / ATTENTION) / speed.products + moved / speed.bandwidth + calls
    return total / max(1, len(steps))
