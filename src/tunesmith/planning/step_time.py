"""Estimates the time of a training step without the fused decoder.

The estimate adds FLOPs over the measured rate, bytes over the measured bandwidth, and launches per layer. The constants
are fitted to steps of the models in dev/LOG.md on two cores; it should be within a factor of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.hardware import Speed
from tunesmith.models.shape import ModelShape
from tunesmith.planning.autograd import NF4_BYTES, token_bytes

ACTIVATION_PASSES = 6  # over a token's saved activations, forward and backward
LOGIT_PASSES = 6  # over a token's float32 logits: softmax, gradient, and copies
LAYER_LAUNCHES = {"cpu": 500, "cuda": 900}  # per layer and micro-batch, forward and backward
UPDATE_LAUNCHES = 60  # per trained matrix and optimizer step
ATTENTION_EFFICIENCY = 0.5  # share of the FLOP rate for scores and their gradients
DEQUANTIZE_EFFICIENCY = 0.25  # share of the bandwidth for dequantizing NF4


@dataclass(frozen=True)
class MicroBatch:
    """A padded micro-batch: tokens with padding, the longest row, and tokens with loss."""

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
    """Returns the mean seconds of `steps`, each a list of micro-batches. `number` is the bytes of an activation."""
    adapter, again = shape.adapter(rank), 1 if recompute else 0
    update = adapter * 44 / speed.bandwidth + 2 * 7 * shape.layers * UPDATE_LAUNCHES * speed.launch
    total = 0.0
    for batches in steps:
        total += update
        for batch in batches:
            products = batch.tokens * (2.0 * (2 + again) * shape.linear + 6.0 * adapter)
            head = 4.0 * shape.vocabulary * shape.hidden * batch.loss_tokens
            scores = 4.0 * (3 + again) * shape.layers * batch.tokens * batch.longest * shape.queries
            moved = batch.tokens * token_bytes(shape, number, False) * (ACTIVATION_PASSES + 2 * again)
            moved += batch.loss_tokens * shape.vocabulary * 4 * LOGIT_PASSES
            if bits == 4 and not dense:
                moved += (2 + again) * shape.linear * (NF4_BYTES + number) / DEQUANTIZE_EFFICIENCY
            calls = (1 + again / 3) * shape.layers * LAYER_LAUNCHES[device] * speed.launch
            total += (
                (products + head + scores / ATTENTION_EFFICIENCY) / speed.products + moved / speed.bandwidth + calls
            )
    return total / max(1, len(steps))
