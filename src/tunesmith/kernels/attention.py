"""Causal attention over packed examples: one flat row of tokens, no example sees another.

`packed` keeps everything on the card and needs no list of lengths (what a captured graph wants); `rows` goes through
the examples one by one (a processor, a card without flash attention, or scores that are capped): those that are short,
or have a short window, by `attention_rows`, long ones by the processor's flash kernel, which keeps less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels import attention_rows

SHORT = 512  # tokens of an example, or of its window, whose weights are kept: a row of them is no longer than what a
# block keeps besides
_aten: Any = torch.ops.aten


class SequenceBounds(NamedTuple):
    """Where the examples of a flat row begin: `starts` (examples + 1, int32, the last one the row's length).

    `longest` is at least the longest example's length; `listed` are the same numbers on the host, for `rows`.
    """

    starts: Tensor
    longest: int
    listed: tuple[int, ...] = ()


class AttentionRule(NamedTuple):
    """How scores are made: their scale, a cap c (c tanh(s / c); 0: none), a window of tokens (0: all), the way."""

    scale: float
    cap: float = 0.0
    window: int = 0
    way: str = "rows"


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: SequenceBounds, rule: AttentionRule) -> tuple[Tensor, Tensor]:
    """q (tokens x heads x head), k and v (tokens x key heads x head) -> output as q, and what the backward wants.

    The second is the logarithm of the softmax's sum (heads x tokens), or with `rows` the bytes in which each example's
    sums or weights lie.
    """
    if rule.way == "packed":
        left = {"window_size_left": rule.window - 1, "window_size_right": 0} if rule.window else {}
        made = _aten._flash_attention_forward(
            q, k, v, bounds.starts, bounds.starts, bounds.longest, bounds.longest, 0.0, True, False,
            scale=rule.scale, **left,
        )  # fmt: skip
        return made[0], made[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    spans, size = _spans(q, bounds, rule)
    saved = torch.empty(size, dtype=torch.uint8, device=q.device)
    for rows, span in spans:
        _one(q[rows], k[rows], v[rows], rule, out[rows], saved[span])
    return out, saved


def attend_back(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor,
    bounds: SequenceBounds, rule: AttentionRule,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients to q, k and v, shaped as they are; with `rows` written to `into` where that is given."""
    if rule.way == "packed":
        left = {"window_size_left": rule.window - 1, "window_size_right": 0} if rule.window else {}
        state = torch.empty(2, dtype=torch.uint64, device=q.device)  # of the dropout that there is none of
        made = _aten._flash_attention_backward(
            dout, q, k, v, out, total, bounds.starts, bounds.starts, bounds.longest, bounds.longest, 0.0, True,
            state, torch.empty(0, dtype=torch.uint64, device=q.device), scale=rule.scale, **left,
        )  # fmt: skip
        return made[0], made[1], made[2]
    dq, dk, dv = into or (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    for rows, span in _spans(q, bounds, rule)[0]:
        _one_back(dout[rows], q[rows], k[rows], v[rows], out[rows], total[span], rule, (dq[rows], dk[rows], dv[rows]))
    return dq, dk, dv


def _spans(q: Tensor, bounds: SequenceBounds, rule: AttentionRule) -> tuple[list[tuple[slice, slice]], int]:
    """Of each example its tokens and the bytes of what its forward leaves, and all bytes."""
    found, at, heads = [], 0, q.shape[1]
    for start, end in _pairs(bounds):
        length = end - start
        if _short(length, rule):
            size = attention_rows.size(length, heads, rule.window) * q.element_size()
        else:
            size = heads * length * _number(q).itemsize
        found.append((slice(start, end), slice(at, at + size)))
        at += -(-size // 64) * 64
    return found, at


def _short(length: int, rule: AttentionRule) -> bool:
    return (length <= SHORT or 0 < rule.window <= SHORT) and not rule.cap


def _number(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _pairs(bounds: SequenceBounds) -> Sequence[tuple[int, int]]:
    listed = bounds.listed
    return [(start, end) for start, end in pairwise(listed) if end > start]


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """tokens x some heads x head to 1 x heads x tokens x head, key heads repeated for their queries."""
    made = x.transpose(0, 1)
    return (made if x.shape[1] == heads else made.repeat_interleave(heads // x.shape[1], dim=0))[None]


def _own_kernel(q: Tensor, rule: AttentionRule) -> bool:
    """Whether the processor's flash kernel does what is asked (its backward takes the saved sums)."""
    return q.device.type == "cpu" and not rule.cap and not (rule.window and rule.window < len(q))


def _one(q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, out: Tensor, saved: Tensor) -> None:
    if _short(len(q), rule):
        attention_rows.forward(q, k, v, rule.scale, rule.window, out, saved.view(v.dtype))
        return
    heads, sums = q.shape[1], saved.view(_number(q)).view(q.shape[1], -1)
    if _own_kernel(q, rule):
        made = _aten._scaled_dot_product_flash_attention_for_cpu(
            _heads_first(q, heads), _heads_first(k, heads), _heads_first(v, heads), 0.0, True, scale=rule.scale
        )
        out.copy_(made[0][0].transpose(0, 1))
        sums.copy_(made[1][0])
        return
    scores, _ = _scores(q, k, rule)
    torch.logsumexp(scores, dim=-1, out=sums)
    weights = torch.exp(scores - sums[..., None]).to(v.dtype)
    out.copy_((weights @ _heads_first(v, heads)[0]).transpose(0, 1))


def _one_back(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, saved: Tensor, rule: AttentionRule,
    into: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    if _short(len(q), rule):
        attention_rows.backward(dout, q, k, v, rule.scale, rule.window, saved.view(v.dtype), into)
        return
    made = _long_back(dout, q, k, v, out, saved.view(_number(q)).view(q.shape[1], -1), rule)
    for each, gradient in zip(into, made, strict=True):
        each.copy_(gradient)


def _long_back(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, rule: AttentionRule
) -> tuple[Tensor, Tensor, Tensor]:
    heads = q.shape[1]
    if _own_kernel(q, rule):
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout.transpose(0, 1)[None],
            _heads_first(q, heads),
            _heads_first(k, heads),
            _heads_first(v, heads),
            out.transpose(0, 1)[None],
            total[None],
            0.0,
            True,
            scale=rule.scale,
        )
        return dq[0].transpose(0, 1), _gathered(dk[0], k), _gathered(dv[0], v)
    scores, slope = _scores(q, k, rule)
    weights = torch.exp(scores - total[..., None])
    do = dout.transpose(0, 1)
    dv = weights.to(do.dtype).mT @ do
    dweights = (do @ _heads_first(v, heads)[0].mT).to(weights.dtype)
    inner = (dout.to(weights.dtype) * out.to(weights.dtype)).sum(-1).T[..., None]
    dscores = weights * (dweights - inner) * rule.scale
    dscores = (dscores if slope is None else dscores * slope).to(q.dtype)
    dq = dscores @ _heads_first(k, heads)[0]
    dk = dscores.mT @ q.transpose(0, 1)
    return dq.transpose(0, 1), _gathered(dk, k), _gathered(dv, v)


def _gathered(dx: Tensor, x: Tensor) -> Tensor:
    """heads x tokens x head summed over the queries that share a key head, to the shape of `x`."""
    tokens, heads, head = x.shape
    summed = dx if dx.shape[0] == heads else dx.reshape(heads, -1, tokens, head).sum(1)
    return summed.transpose(0, 1)


def _scores(q: Tensor, k: Tensor, rule: AttentionRule) -> tuple[Tensor, Tensor | None]:
    """Masked scores (heads x tokens x tokens, 32 bits at least), and the slope of the cap."""
    scores = q.transpose(0, 1) @ _heads_first(k, q.shape[1])[0].mT
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * rule.scale
    slope = None
    if rule.cap:
        bend = torch.tanh(scores / rule.cap)
        scores, slope = bend * rule.cap, 1 - bend * bend
    place = torch.arange(len(q), device=q.device)
    behind = place[:, None] - place[None]
    hidden = behind < 0 if not rule.window else (behind < 0) | (behind >= rule.window)
    return scores.masked_fill(hidden, float("-inf")), slope


def has_flash(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether `packed` runs there: CUDA 8.0 or newer, 16-bit numbers, heads of at most 256 in steps of 8."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head % 8 or head > 256:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8
