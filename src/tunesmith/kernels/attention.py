"""Causal attention over packed examples: one flat row of tokens in which no example attends to another.

`packed` stays on the GPU and needs no list of lengths, as CUDA graphs require. `rows` computes one example at a time,
on a CPU, on a GPU without flash attention, or with capped scores: examples that are short or have a short window by
`forward` and `backward` in stripes of query rows, long ones by the CPU's flash kernel, which saves less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

STRIPE = 128  # queries at a time: fewer waste less on masked scores, more make larger products


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


# Up to this many tokens of an example, or of its window, the weights are saved: a row of them is then no longer than
# what a block saves anyway.
SHORT = 512
_aten: Any = torch.ops.aten


class SequenceBounds(NamedTuple):
    """Boundaries of the examples in a flat row.

    `starts` are the cumulative lengths (examples + 1, int32; `cu_seqlens` in flash attention), `longest` is at least
    the longest example's length, and `listed` are the same numbers on the host, for `rows`.
    """

    starts: Tensor
    longest: int
    listed: tuple[int, ...] = ()


class AttentionRule(NamedTuple):
    """How attention is computed: scale, soft cap c (c tanh(s / c); 0: none), window in tokens (0: all), `way`.

    `way` is "packed" or "rows".
    """

    scale: float
    cap: float = 0.0
    window: int = 0
    way: str = "rows"


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: SequenceBounds, rule: AttentionRule) -> tuple[Tensor, Tensor]:
    """Returns attention's output, shaped as q, and what the backward needs.

    q is tokens x heads x head; k and v are tokens x key heads x head. The second value is the log-sum-exp of the
    scores (heads x tokens), or with `rows` the bytes that hold each example's log-sum-exp or weights.
    """
    if rule.way == "packed":
        window_kwargs = {"window_size_left": rule.window - 1, "window_size_right": 0} if rule.window else {}
        result = _aten._flash_attention_forward(
            q, k, v, bounds.starts, bounds.starts, bounds.longest, bounds.longest, 0.0, True, False,
            scale=rule.scale, **window_kwargs,
        )  # fmt: skip
        return result[0], result[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    spans, size = _spans(q, bounds, rule)
    saved = torch.empty(size, dtype=torch.uint8, device=q.device)
    for rows, span in spans:
        _attend_example(q[rows], k[rows], v[rows], rule, out[rows], saved[span])
    return out, saved


def attend_back(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, saved: Tensor, bounds: SequenceBounds,
    rule: AttentionRule, destinations: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of q, k and v; with `rows` they are written to `destinations` if given."""
    if rule.way == "packed":
        window_kwargs = {"window_size_left": rule.window - 1, "window_size_right": 0} if rule.window else {}
        state = torch.empty(2, dtype=torch.uint64, device=q.device)  # random state of a dropout that is off
        gradients = _aten._flash_attention_backward(
            dout, q, k, v, out, saved, bounds.starts, bounds.starts, bounds.longest, bounds.longest, 0.0, True,
            state, torch.empty(0, dtype=torch.uint64, device=q.device), scale=rule.scale, **window_kwargs,
        )  # fmt: skip
        return gradients[0], gradients[1], gradients[2]
    dq, dk, dv = destinations or (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    for rows, span in _spans(q, bounds, rule)[0]:
        _attend_example_backward(
            dout[rows], q[rows], k[rows], v[rows], out[rows], saved[span], rule, (dq[rows], dk[rows], dv[rows])
        )
    return dq, dk, dv


def _spans(q: Tensor, bounds: SequenceBounds, rule: AttentionRule) -> tuple[list[tuple[slice, slice]], int]:
    """Returns each example's token slice and the byte slice that its forward saves, and the bytes in all."""
    spans, offset, heads = [], 0, q.shape[1]
    for start, end in _example_ranges(bounds):
        length = end - start
        if _keeps_weights(length, rule):
            size = saved_size(length, heads, rule.window) * q.element_size()
        else:
            size = heads * length * _accumulation_dtype(q).itemsize
        spans.append((slice(start, end), slice(offset, offset + size)))
        offset += -(-size // 64) * 64
    return spans, offset


def _keeps_weights(length: int, rule: AttentionRule) -> bool:
    return (length <= SHORT or 0 < rule.window <= SHORT) and not rule.cap


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _example_ranges(bounds: SequenceBounds) -> Sequence[tuple[int, int]]:
    listed = bounds.listed
    return [(start, end) for start, end in pairwise(listed) if end > start]


def _heads_first(x: Tensor, heads: int) -> Tensor:
    """Reshapes tokens x heads x head to 1 x heads x tokens x head; key heads are repeated for their queries."""
    transposed = x.transpose(0, 1)
    return (transposed if x.shape[1] == heads else transposed.repeat_interleave(heads // x.shape[1], dim=0))[None]


def _has_cpu_flash(q: Tensor, rule: AttentionRule) -> bool:
    """Returns whether the CPU's flash kernel supports `rule` (its backward takes the saved log-sum-exp)."""
    return q.device.type == "cpu" and not rule.cap and not (rule.window and rule.window < len(q))


def _attend_example(q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, out: Tensor, saved: Tensor) -> None:
    if _keeps_weights(len(q), rule):
        forward(q, k, v, rule.scale, rule.window, out, saved.view(v.dtype))
        return
    heads, lse = q.shape[1], saved.view(_accumulation_dtype(q)).view(q.shape[1], -1)
    if _has_cpu_flash(q, rule):
        result = _aten._scaled_dot_product_flash_attention_for_cpu(
            _heads_first(q, heads), _heads_first(k, heads), _heads_first(v, heads), 0.0, True, scale=rule.scale
        )
        out.copy_(result[0][0].transpose(0, 1))
        lse.copy_(result[1][0])
        return
    scores, _ = _scores(q, k, rule)
    torch.logsumexp(scores, dim=-1, out=lse)
    weights = torch.exp(scores - lse[..., None]).to(v.dtype)
    out.copy_((weights @ _heads_first(v, heads)[0]).transpose(0, 1))


def _attend_example_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, saved: Tensor, rule: AttentionRule,
    destinations: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    if _keeps_weights(len(q), rule):
        backward(dout, q, k, v, rule.scale, rule.window, saved.view(v.dtype), destinations)
        return
    gradients = _attend_long_backward(dout, q, k, v, out, saved.view(_accumulation_dtype(q)).view(q.shape[1], -1), rule)
    for destination, gradient in zip(destinations, gradients, strict=True):
        destination.copy_(gradient)


def _attend_long_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rule: AttentionRule
) -> tuple[Tensor, Tensor, Tensor]:
    heads = q.shape[1]
    if _has_cpu_flash(q, rule):
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout.transpose(0, 1)[None],
            _heads_first(q, heads),
            _heads_first(k, heads),
            _heads_first(v, heads),
            out.transpose(0, 1)[None],
            lse[None],
            0.0,
            True,
            scale=rule.scale,
        )
        return dq[0].transpose(0, 1), _sum_query_groups(dk[0], k), _sum_query_groups(dv[0], v)
    scores, slope = _scores(q, k, rule)
    weights = torch.exp(scores - lse[..., None])
    do = dout.transpose(0, 1)
    dv = weights.to(do.dtype).mT @ do
    dweights = (do @ _heads_first(v, heads)[0].mT).to(weights.dtype)
    row_sums = (dout.to(weights.dtype) * out.to(weights.dtype)).sum(-1).T[..., None]
    dscores = weights * (dweights - row_sums) * rule.scale
    dscores = (dscores if slope is None else dscores * slope).to(q.dtype)
    dq = dscores @ _heads_first(k, heads)[0]
    dk = dscores.mT @ q.transpose(0, 1)
    return dq.transpose(0, 1), _sum_query_groups(dk, k), _sum_query_groups(dv, v)


def _sum_query_groups(dx: Tensor, x: Tensor) -> Tensor:
    """Sums dx (heads x tokens x head) over the query heads that share a key head, to the shape of `x`."""
    tokens, heads, head = x.shape
    summed = dx if dx.shape[0] == heads else dx.reshape(heads, -1, tokens, head).sum(1)
    return summed.transpose(0, 1)


def _scores(q: Tensor, k: Tensor, rule: AttentionRule) -> tuple[Tensor, Tensor | None]:
    """Returns masked scores (heads x tokens x tokens, float32 or wider) and the derivative of the cap."""
    scores = q.transpose(0, 1) @ _heads_first(k, q.shape[1])[0].mT
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * rule.scale
    slope = None
    if rule.cap:
        squashed = torch.tanh(scores / rule.cap)
        scores, slope = squashed * rule.cap, 1 - squashed * squashed
    positions = torch.arange(len(q), device=q.device)
    distance = positions[:, None] - positions[None]
    hidden = distance < 0 if not rule.window else (distance < 0) | (distance >= rule.window)
    return scores.masked_fill(hidden, float("-inf")), slope


def has_flash(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Returns whether `packed` runs: compute capability 8.0, a 16-bit type, heads of at most 256 in steps of 8."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head % 8 or head > 256:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8
