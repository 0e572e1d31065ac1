"""Decoder blocks that only write: no gradient, nothing kept but keys and values.

The same functions as `block.py`'s forward. Slots are rows that are written side by side, one token a step; a slot's
numbers depend on its own tokens, on how many slots there are and on the cache's room, never on the other slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import gated_mlp, lora_linear, norm, rope
from tunesmith.kernels.attention import AttentionRule, SequenceBounds, attend
from tunesmith.kernels.block import Block, BlockShape, normed_heads
from tunesmith.kernels.rope import RopeTable

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]  # turned q, k, v (tokens x heads x head) -> tokens x queries


class Cache(NamedTuple):
    """One block's keys and values: slots x key heads x room x head."""

    keys: Tensor
    values: Tensor


class Stack(NamedTuple):
    """All blocks with what is constant in each, their caches, and the tables that `Form.table` counts."""

    blocks: Sequence[Block]
    forms: Sequence[BlockShape]
    caches: Sequence[Cache]
    tables: Sequence[RopeTable]


def read(h: Tensor, stack: Stack, slot: int, bounds: SequenceBounds) -> Tensor:
    """One prompt (tokens x hidden) through all blocks; its keys and values go to the beginning of a slot."""
    turns = [table.text(len(h)) for table in stack.tables]
    for block, form, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        h = _forward(h, block, *turns[form.table], form, _read(cache, slot, bounds, form.rule))
    return h


def write(h: Tensor, stack: Stack, places: Tensor) -> Tensor:
    """One new token a slot (slots x hidden) through all blocks; `places` (slots) is where each one stands."""
    rows = [table.next_rows(places) for table in stack.tables]
    turns = [(table.cos[each], table.sin[each]) for table, each in zip(stack.tables, rows, strict=True)]
    room = stack.caches[0].keys.shape[2]
    slots = torch.arange(len(places), device=places.device)
    masks = {
        window: _unseen(places, room, window, h.dtype) for window in {form.rule.window for form in stack.forms}
    }  # fmt: skip
    for block, form, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        mix = _write(cache, slots, places, masks[form.rule.window], form.rule)
        h = _forward(h, block, *turns[form.table], form, mix)
    return h


def _forward(h: Tensor, block: Block, cos: Tensor, sin: Tensor, form: BlockShape, mix: Mix) -> Tensor:
    """`h` (tokens x hidden) through a block; `cos` and `sin` (tokens x turned) are those of each token's place."""
    eps, offset = form.eps, form.offset
    qkv, _ = lora_linear.forward(norm.rms(h, block.norm_1, eps, offset), block.qkv)
    q, k, v = normed_heads(qkv, block, form)
    mixed = mix(rope.rotate_(q, cos, sin), rope.rotate_(k, cos, sin), v)
    made, _ = lora_linear.forward(mixed, block.out)
    h = h + (made if block.after_1 is None else norm.rms(made, block.after_1, eps, offset))
    both, _ = lora_linear.forward(norm.rms(h, block.norm_2, eps, offset), block.gate_up)
    made, _ = lora_linear.forward(gated_mlp.gated(both, form.activation), block.down)
    h = h + (made if block.after_2 is None else norm.rms(made, block.after_2, eps, offset))
    return h if block.scalar is None else h.mul_(block.scalar)


def _read(cache: Cache, slot: int, bounds: SequenceBounds, rule: AttentionRule) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.keys[slot, :, : len(k)] = k.transpose(0, 1)
        cache.values[slot, :, : len(v)] = v.transpose(0, 1)
        return attend(q, k, v, bounds, rule)[0].flatten(1)

    return mix


def _write(cache: Cache, slots: Tensor, places: Tensor, hidden: Tensor, rule: AttentionRule) -> Mix:
    """Attention of one new token a slot over the slot so far; its own key and value go to its place.

    `slots` counts them, `hidden` (slots x 1 x 1 x room) is 0 where a key is seen and minus infinity elsewhere.
    """

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.keys[slots, :, places] = k
        cache.values[slots, :, places] = v
        grouped = q.view(len(q), k.shape[1], -1, q.shape[2])  # queries of a key head together: nothing is repeated
        if not rule.cap and q.is_cuda:
            made = functional.scaled_dot_product_attention(grouped, *cache, attn_mask=hidden, scale=rule.scale)
            return made.flatten(1)
        scores = (grouped @ cache.keys.mT).float() * rule.scale  # on a processor half of what its flash kernel takes
        scores = torch.tanh(scores / rule.cap) * rule.cap if rule.cap else scores
        weights = torch.softmax(scores + hidden, dim=-1)
        return (weights.to(v.dtype) @ cache.values).flatten(1)

    return mix


def _unseen(places: Tensor, room: int, window: int, dtype: torch.dtype) -> Tensor:
    """The mask that `_write` takes: keys behind a slot's place, and those that a window (0: none) has left."""
    keys = torch.arange(room, device=places.device)[None]
    out = keys > places[:, None]
    if window:
        out = out | (keys <= places[:, None] - window)
    return torch.zeros(out.shape, dtype=dtype, device=places.device).masked_fill_(out, float("-inf"))[:, None, None]
