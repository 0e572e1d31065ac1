"""Prompts, and greedy decoding by a model's own layers without a cache: the reference for every decoder."""

from __future__ import annotations

import torch

from tunesmith.data.conversation import Turn
from tunesmith.models.build import Model

PROMPTS = [
    (Turn("user", "how do I return a blender that wobbles?"),),
    (Turn("user", "hi"),),
    (Turn("system", "Be kind."), Turn("user", "où est 日本?"), Turn("assistant", "Là."), Turn("user", "and now")),
    (Turn("user", "hi!"),),
    (Turn("user", ""),),
]


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
