"""Attention of one short example, or of one with a short window, as batched matrix products with saved weights.

On a CPU, for examples of a few hundred tokens, these products are faster than the flash kernel's small ones
(dev/LOG.md). Query heads that share a key head form one product. Queries are processed in stripes against the keys
that they can see, so half of the masked scores and everything before the window is never computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STRIPE = 128  # queries at a time: fewer waste less on masked scores, more make larger products
_aten: Any = torch.ops.aten


def saved_size(length: int, heads: int, window: int) -> int:
    """Returns how many elements `forward` saves for `backward`."""
    return heads * sum((stop - start) * (stop - first_key) for first_key, start, stop in _stripes(length, window))


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, out: Tensor, weights: Tensor) -> None:
    """Writes the output to `out` (as q) and the weights to `weights` (flat, `saved_size` elements).

    q is tokens x heads x head; k and v are tokens x key heads x head.
    """
    wide_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values = k.transpose(0, 1).to(wide_dtype).contiguous(), v.transpose(0, 1).contiguous()
    head_count, group, offset = q.shape[1], q.shape[1] // k.shape[1], 0
    for first_key, start, stop in _stripes(len(q), window):
        query_stack = _stack_groups(q[start:stop], group).to(wide_dtype) * scale
        scores = torch.bmm(query_stack, keys[:, first_key:stop].mT)
        _mask_(scores.view(head_count, stop - start, stop - first_key), start - first_key, window)
        probs = weights[offset : offset + scores.numel()].view(scores.shape)
        offset += scores.numel()
        probs.copy_(torch.softmax(scores, dim=-1))
        _unstack_groups(torch.bmm(probs, values[:, first_key:stop]), out[start:stop], group)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, weights: Tensor,
    destinations: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """Writes the gradients of q, k and v to `destinations`. With weights p, dscores = p (dp - sum(p dp))."""
    keys, values = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
    group, offset = q.shape[1] // k.shape[1], 0
    wide_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    dkeys, dvalues = torch.zeros_like(keys, dtype=wide_dtype), torch.zeros_like(keys, dtype=wide_dtype)
    for first_key, start, stop in _stripes(len(q), window):
        query_stack, dout_stack = _stack_groups(q[start:stop], group), _stack_groups(dout[start:stop], group)
        columns = stop - first_key
        probs = weights[offset : offset + query_stack.shape[0] * query_stack.shape[1] * columns].view(
            *query_stack.shape[:2], columns
        )
        offset += probs.numel()
        dvalues[:, first_key:stop] += torch.bmm(probs.mT, dout_stack)
        dprobs = torch.bmm(dout_stack, values[:, first_key:stop].mT)
        dscores = _aten._softmax_backward_data(dprobs, probs, -1, probs.dtype)
        dkeys[:, first_key:stop] += torch.bmm(dscores.mT, query_stack)
        _unstack_groups(torch.bmm(dscores, keys[:, first_key:stop]).mul_(scale), destinations[0][start:stop], group)
    destinations[1].copy_(dkeys.mul_(scale).transpose(0, 1))
    destinations[2].copy_(dvalues.transpose(0, 1))


def _stripes(length: int, window: int) -> list[tuple[int, int, int]]:
    """Returns for each stripe the first key that its first query sees, its first query, and the end of both."""
    starts = range(0, length, STRIPE)
    return [(max(0, start - window + 1) if window else 0, start, min(length, start + STRIPE)) for start in starts]


def _stack_groups(x: Tensor, group: int) -> Tensor:
    """Reshapes tokens x heads x head to key heads x (query heads of each, tokens) x head."""
    tokens, _, head = x.shape
    return x.view(tokens, -1, group, head).permute(1, 2, 0, 3).reshape(-1, group * tokens, head)


def _unstack_groups(x: Tensor, out: Tensor, group: int) -> None:
    """Reverses `_stack_groups` into `out`."""
    keys, head = x.shape[0], x.shape[-1]
    out.view(-1, keys, group, head).copy_(x.view(keys, group, -1, head).permute(2, 0, 1, 3))


def _mask_(scores: Tensor, start: int, window: int) -> None:
    """Masks keys after each query or before its window. `scores` is heads x queries of a stripe x keys."""
    rows, columns = scores.shape[1:]
    ahead = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu_(1)
    scores[:, :, start:].masked_fill_(ahead, float("-inf"))
    if window and columns > window:
        behind = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril_(start - window)
        scores.masked_fill_(behind, float("-inf"))
