"""Greedy decoding by a model's own layers, without cache or company: what the decoder is held to."""

from __future__ import annotations

import torch

from tunesmith.models.build import Model


def slowly(model: Model, ids: list[int], limit: int) -> list[int]:
    """The `limit` tokens behind `ids`."""
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < limit:
            given = torch.tensor([ids + written], device=model.device)
            written.append(int(model.network(input_ids=given, use_cache=False).logits[0, -1].argmax()))
    return written


def never(_: object) -> bool:
    """No reply ends before its limit."""
    return False
