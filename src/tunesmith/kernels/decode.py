"""Decoder blocks for generation: no gradients, nothing saved but keys and values.

The same functions as `block.py`'s forward. Slots are sequences that are generated side by side, one token a step; a
slot's result depends on its own tokens, the number of slots and the cache's size, never on the other slots' tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import lora_linear, ops
from tunesmith.kernels.attention import AttentionRule, SequenceBounds, attend
from tunesmith.kernels.block import Block, BlockShape, normed_qkv
from tunesmith.kernels.ops import RopeTable

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # rotated q, k, v (tokens x heads x head) -> tokens x queries


class Cache(NamedTuple):
    """Keys and values of one block: slots x key heads x capacity x head."""

    keys: Tensor
    values: Tensor


class Stack(NamedTuple):
    """All blocks with their constants and caches, and the RoPE tables that `BlockShape.table` indexes."""

    blocks: Sequence[Block]
    forms: Sequence[BlockShape]
    caches: Sequence[Cache]
    tables: Sequence[RopeTable]


def read(h: Tensor, stack: Stack, slot: int, bounds: SequenceBounds) -> Tensor:
    """Prefills a slot: runs one prompt (tokens x hidden) through all blocks and stores its keys and values."""
    cos_sin = [table.text(len(h)) for table in stack.tables]
    for block, shape, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        h = _forward(h, block, *cos_sin[shape.table], shape, _prompt_attention(cache, slot, bounds, shape.rule))
    return h


def write(h: Tensor, stack: Stack, positions: Tensor) -> Tensor:
    """Runs one new token per slot (slots x hidden) at `positions` (slots) through all blocks."""
    rows = [table.next_rows(positions) for table in stack.tables]
    cos_sin = [(table.cos[row], table.sin[row]) for table, row in zip(stack.tables, rows, strict=True)]
    room = stack.caches[0].keys.shape[2]
    slots = torch.arange(len(positions), device=positions.device)
    windows = {shape.rule.window for shape in stack.forms}
    masks = {window: _attention_mask(positions, room, window, h.dtype) for window in windows}
    for block, block_shape, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        mix = _token_attention(cache, slots, positions, masks[block_shape.rule.window], block_shape.rule)
        h = _forward(h, block, *cos_sin[block_shape.table], block_shape, mix)
    return h


def _forward(h: Tensor, block: Block, cos: Tensor, sin: Tensor, shape: BlockShape, mix: Attend) -> Tensor:
    """Returns a block's output for `h` (tokens x hidden); `cos` and `sin` are tokens x rotated width."""
    eps, offset = shape.eps, shape.offset
    qkv, _ = lora_linear.forward(ops.rms(h, block.norm_1, eps, offset), block.qkv)
    q, k, v = normed_qkv(qkv, block, shape)
    mixed = mix(ops.rotate_(q, cos, sin), ops.rotate_(k, cos, sin), v)
    part, _ = lora_linear.forward(mixed, block.out)
    h = h + (part if block.after_1 is None else ops.rms(part, block.after_1, eps, offset))
    gate_up_out, _ = lora_linear.forward(ops.rms(h, block.norm_2, eps, offset), block.gate_up)
    part, _ = lora_linear.forward(ops.gated(gate_up_out, shape.activation), block.down)
    h = h + (part if block.after_2 is None else ops.rms(part, block.after_2, eps, offset))
    return h if block.scalar is None else h.mul_(block.scalar)


def _prompt_attention(cache: Cache, slot: int, bounds: SequenceBounds, rule: AttentionRule) -> Attend:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.keys[slot, :, : len(k)] = k.transpose(0, 1)
        cache.values[slot, :, : len(v)] = v.transpose(0, 1)
        return attend(q, k, v, bounds, rule)[0].flatten(1)

    return mix


def _token_attention(cache: Cache, slots: Tensor, positions: Tensor, mask: Tensor, rule: AttentionRule) -> Attend:
    """Returns attention of one new token per slot over the slot so far; it stores the token's key and value.

    `slots` are the slot indices; `mask` (slots x 1 x 1 x capacity) is 0 for visible keys, else minus infinity.
    """

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.keys[slots, :, positions] = k
        cache.values[slots, :, positions] = v
        grouped = q.view(len(q), k.shape[1], -1, q.shape[2])  # groups the queries of a key head, so no key is repeated
        if not rule.cap and q.is_cuda:
            out = functional.scaled_dot_product_attention(grouped, *cache, attn_mask=mask, scale=rule.scale)
            return out.flatten(1)
        scores = (grouped @ cache.keys.mT).float() * rule.scale  # on a CPU this takes half of its flash kernel's time
        scores = torch.tanh(scores / rule.cap) * rule.cap if rule.cap else scores
        weights = torch.softmax(scores + mask, dim=-1)
        return (weights.to(v.dtype) @ cache.values).flatten(1)

    return mix


def _attention_mask(positions: Tensor, room: int, window: int, dtype: torch.dtype) -> Tensor:
    """Returns `_token_attention`'s mask: it hides keys after a slot's position and before its window (0: none)."""
    keys = torch.arange(room, device=positions.device)[None]
    out = keys > positions[:, None]
    if window:
        out = out | (keys <= positions[:, None] - window)
    return torch.zeros(out.shape, dtype=dtype, device=positions.device).masked_fill_(out, float("-inf"))[:, None, None]
