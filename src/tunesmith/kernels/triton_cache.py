# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Triton attention of one new token per slot over the slot's cache, which it also updates.

It reads only the filled part of the cache; scaled_dot_product_attention with a mask reads all of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _attend(q, k, v, keys, values, out, positions, scale, room, q_stride, k_stride, v_stride, key_heads, group, size,
            window, GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + slot).to(tl.int32)
    d = tl.arange(0, SIZE)
    g = tl.arange(0, GROUP)
    inside = (g < group)[:, None] & (d < size)[None]
    of = (head * group + g)[:, None] * size + d[None]
    x = tl.load(q + slot * q_stride + of, mask=inside, other=0.0)
    new_k = tl.load(k + slot * k_stride + head * size + d, mask=d < size, other=0.0)
    new_v = tl.load(v + slot * v_stride + head * size + d, mask=d < size, other=0.0)
    at = (slot * key_heads + head) * room * size
    tl.store(keys + at + position * size + d, new_k, mask=d < size)
    tl.store(values + at + position * size + d, new_v, mask=d < size)
    highest = tl.sum(x.to(tl.float32) * new_k.to(tl.float32)[None], 1) * scale  # the new token begins the softmax
    total = tl.full((GROUP,), 1.0, tl.float32)
    mixed = tl.zeros((GROUP, SIZE), tl.float32) + new_v.to(tl.float32)[None]
    first = tl.maximum(position - window + 1, 0) if window > 0 else 0
    for start in range(first, position, BLOCK):
        t = start + tl.arange(0, BLOCK)
        visible = (t < position)[:, None] & (d < size)[None]
        rows = at + t.to(tl.int64)[:, None] * size + d[None]
        scores = tl.dot(x, tl.trans(tl.load(keys + rows, mask=visible, other=0.0)), input_precision=PRECISION) * scale
        scores = tl.where((t < position)[None], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrunk = tl.exp(highest - higher)
        total = total * shrunk + tl.sum(weights, 1)
        value_block = tl.load(values + rows, mask=visible, other=0.0)
        mixed = tl.dot(
            weights.to(value_block.dtype), value_block, acc=mixed * shrunk[:, None], input_precision=PRECISION
        )
        highest = higher
    attended = mixed / total[:, None]
    tl.store(out + slot * key_heads * group * size + of, attended.to(out.dtype.element_ty), mask=inside)


def attend(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    """Returns attention of each slot's new token (q: slots x heads x head) over the slot so far, shaped as q.

    Stores the token's key and value (slots x key heads x head) in `keys` and `values` (slots x key heads x room x
    head) at `positions` (slots). `window` counts tokens, the new one included (0: all).
    """
    slots, query_heads, size = q.shape
    key_heads, room = keys.shape[1:3]
    group = query_heads // key_heads
    out = torch.empty(slots, query_heads, size, dtype=q.dtype, device=q.device)
    _attend[(slots, key_heads)](
        q, k, v, keys, values, out, positions, scale, room, q.stride(0), k.stride(0), v.stride(0), key_heads, group,
        size, window, GROUP=max(16, triton.next_power_of_2(group)), SIZE=max(16, triton.next_power_of_2(size)),
        BLOCK=64, PRECISION="ieee", num_warps=4,
    )  # fmt: skip
    return out
