"""Attention of one example, short or with a short window, as plain batched products; weights are kept for the backward.

On a processor, for examples of some hundred tokens, these products run faster than the flash kernel's small ones
(dev/LOG.md). Query heads that share a key head are one product; queries go in stripes, each against the keys that one
of its queries sees: half of what lies behind the causal mask is never computed, and nothing left of the window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STRIPE = 128  # queries at a time: fewer make less that is masked, more make larger products
_aten: Any = torch.ops.aten


def size(length: int, heads: int, window: int) -> int:
    """Numbers that `forward` leaves for `backward`."""
    return heads * sum((stop - start) * (stop - left) for left, start, stop in _stripes(length, window))


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, out: Tensor, weights: Tensor) -> None:
    """q (tokens x heads x head), k and v (tokens x key heads x head) to `out` as q, and `weights` (flat, as `size`)."""
    number = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values = k.transpose(0, 1).to(number).contiguous(), v.transpose(0, 1).contiguous()
    many, each, at = q.shape[1], q.shape[1] // k.shape[1], 0
    for left, start, stop in _stripes(len(q), window):
        asked = _stacked(q[start:stop], each).to(number) * scale
        scores = torch.bmm(asked, keys[:, left:stop].mT)
        _hide(scores.view(many, stop - start, stop - left), start - left, window)
        share = weights[at : at + scores.numel()].view(scores.shape)
        at += scores.numel()
        share.copy_(torch.softmax(scores, dim=-1))
        _unstack(torch.bmm(share, values[:, left:stop]), out[start:stop], each)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, weights: Tensor,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """The gradients to q, k and v, written to `into`. With weights p, dscores = p (dp - sum(p dp))."""
    keys, values = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
    each, at = q.shape[1] // k.shape[1], 0
    number = torch.float64 if q.dtype == torch.float64 else torch.float32
    dkeys, dvalues = torch.zeros_like(keys, dtype=number), torch.zeros_like(keys, dtype=number)
    for left, start, stop in _stripes(len(q), window):
        asked, given = _stacked(q[start:stop], each), _stacked(dout[start:stop], each)
        columns = stop - left
        share = weights[at : at + asked.shape[0] * asked.shape[1] * columns].view(*asked.shape[:2], columns)
        at += share.numel()
        dvalues[:, left:stop] += torch.bmm(share.mT, given)
        dshare = torch.bmm(given, values[:, left:stop].mT)
        dscores = _aten._softmax_backward_data(dshare, share, -1, share.dtype)
        dkeys[:, left:stop] += torch.bmm(dscores.mT, asked)
        _unstack(torch.bmm(dscores, keys[:, left:stop]).mul_(scale), into[0][start:stop], each)
    into[1].copy_(dkeys.mul_(scale).transpose(0, 1))
    into[2].copy_(dvalues.transpose(0, 1))


def _stripes(length: int, window: int) -> list[tuple[int, int, int]]:
    """Of each stripe the first key that its first query sees, its first query, and the end of both."""
    starts = range(0, length, STRIPE)
    return [(max(0, start - window + 1) if window else 0, start, min(length, start + STRIPE)) for start in starts]


def _stacked(x: Tensor, each: int) -> Tensor:
    """tokens x heads x head to key heads x (heads of each, tokens) x head."""
    tokens, _, head = x.shape
    return x.view(tokens, -1, each, head).permute(1, 2, 0, 3).reshape(-1, each * tokens, head)


def _unstack(x: Tensor, into: Tensor, each: int) -> None:
    """Back from the shape of `_stacked`."""
    keys, head = x.shape[0], x.shape[-1]
    into.view(-1, keys, each, head).copy_(x.view(keys, each, -1, head).permute(2, 0, 1, 3))


def _hide(scores: Tensor, start: int, window: int) -> None:
    """Takes away what lies ahead of each query, or too far behind it. `scores`: heads x a stripe's queries x keys."""
    rows, columns = scores.shape[1:]
    ahead = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu_(1)
    scores[:, :, start:].masked_fill_(ahead, float("-inf"))
    if window and columns > window:
        behind = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril_(start - window)
        scores.masked_fill_(behind, float("-inf"))
