# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Triton kernels for the parts of a decoder block.

Each computes what the function of the same name in this package does, in one pass over GPU memory. If a linear layer
follows, each row is padded by `room` columns for the adapter. torch installs Triton with CUDA on Linux.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BYTES = 1024  # packed bytes of one program of `dequantise`: 2,048 elements, the fastest of 256 to 4,096 on an H200


@triton.jit
def _norm(h, add, weight, summed, out, codes, scales, eps, offset, width, room,
          ADD: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    x = tl.load(h + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(add + row * width + cols, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(summed.dtype.element_ty)
        tl.store(summed + row * width + cols, rounded, mask=inside)
        x = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    y = x * inverse * (tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32) + offset)
    rounded_out = y.to(out.dtype.element_ty)
    tl.store(out + row * (width + room) + cols, rounded_out, mask=inside)
    if FP8:
        y = rounded_out.to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-12) / 448.0
        tl.store(scales + row, scale)
        tl.store(codes + row * width + cols, (y / scale).to(tl.float8e4nv), mask=inside)


def norm(
    h: Tensor, add: Tensor | None, weight: Tensor, eps: float, offset: float, room: int, *, eight: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Returns h + add (h without `add`), its norm (tokens x width + room), and the norm as e4m3 codes and scales."""
    tokens, width = h.shape
    summed = h if add is None else torch.empty_like(h)
    out = h.new_empty(tokens, width + room)
    codes = h.new_empty(tokens, width, dtype=torch.float8_e4m3fn) if eight else None
    scales = h.new_empty(tokens, 1, dtype=torch.float32) if eight else None
    _norm[(tokens,)](
        h, add, weight, summed, out, codes, scales, eps, offset, width, room,
        ADD=add is not None, FP8=eight, BLOCK=triton.next_power_of_2(width), num_warps=8 if width > 2048 else 4,
    )  # fmt: skip
    return summed, out, codes, scales


@triton.jit
def _norm_backward(dy, h, weight, add, out, eps, offset, width, dy_stride, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < width
    x = tl.load(h + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + row * dy_stride + cols, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32) + offset
    inverse = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    n = x * inverse
    dx = inverse * (g - n * (tl.sum(g * n, 0) / width))
    if ADD:
        dx += tl.load(add + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + cols, dx.to(out.dtype.element_ty), mask=inside)


def norm_back(dy: Tensor, h: Tensor, weight: Tensor, eps: float, offset: float, add: Tensor | None) -> Tensor:
    """Returns the gradient of `h` through the norm, plus `add` if given; rows of `dy` may be longer than `h`'s."""
    out = torch.empty_like(h)
    width = h.shape[1]
    _norm_backward[(len(h),)](
        dy, h, weight, add, out, eps, offset, width, dy.stride(0), ADD=add is not None,
        BLOCK=triton.next_power_of_2(width), num_warps=8 if width > 2048 else 4,
    )  # fmt: skip
    return out


@triton.jit
def _halves(table, row, d, half):
    """Returns both halves of a table's row (rows x 2 half) in float32, broadcastable over heads."""
    at = table + row * 2 * half + d
    first = tl.load(at, mask=d < half, other=0.0).to(tl.float32)[None]
    return first, tl.load(at + half, mask=d < half, other=0.0).to(tl.float32)[None]


@triton.jit
def _rotate(source, target, cos, sin, position_ids, norm_q, norm_k, eps, offset, source_stride, target_stride,
          queries, heads, size, half, NORM: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, HALF)
    inside = (head < heads)[:, None] & (d < half)[None]
    position = tl.load(position_ids + token)
    c1, c2 = _halves(cos, position, d, half)
    s1, s2 = _halves(sin, position, d, half)
    at = head[:, None] * size + d[None]
    x1 = tl.load(source + token * source_stride + at, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(source + token * source_stride + at + half, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        inverse = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / size + eps)[:, None]
        first = (head < queries)[:, None]
        q1, q2 = _halves(norm_q, 0, d, half)
        k1, k2 = _halves(norm_k, 0, d, half)
        w1, w2 = tl.where(first, q1, k1) + offset, tl.where(first, q2, k2) + offset
        x1 = (x1 * inverse * w1).to(target.dtype.element_ty).to(tl.float32)
        x2 = (x2 * inverse * w2).to(target.dtype.element_ty).to(tl.float32)
    tl.store(target + token * target_stride + at, (x1 * c1 - x2 * s1).to(target.dtype.element_ty), mask=inside)
    tl.store(target + token * target_stride + at + half, (x2 * c2 + x1 * s2).to(target.dtype.element_ty), mask=inside)


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor, queries: int, keys: int, size: int,
    norm_q: Tensor | None, norm_k: Tensor | None, eps: float, offset: float,
) -> Tensor:  # fmt: skip
    """Returns normalized (if the family does so) and rotated queries and keys: in place, or new if normalized.

    `cos` and `sin` are longest x rotated width; `position_ids` are the tokens' rows in them. Heads are normalized as a
    whole, so a normalized head must also be rotated as a whole.
    """
    heads = (queries + keys) // size
    target = qkv if norm_q is None else qkv.new_empty(len(qkv), queries + keys)
    half = cos.shape[1] // 2
    together = min(16, triton.next_power_of_2(heads))
    _rotate[(len(qkv), triton.cdiv(heads, together))](
        qkv, target, cos, sin, position_ids, norm_q, norm_k, eps, offset, qkv.stride(0), target.stride(0),
        queries // size, heads, size, half, NORM=norm_q is not None, HEADS=together,
        HALF=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip
    return target


@triton.jit
def _rotate_backward(dq, dk, dv, raw, out, cos, sin, position_ids, norm_q, norm_k, eps, offset, raw_stride,
               query_heads, key_heads, size, half, tail,
               NORM: tl.constexpr, REST: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, HALF)
    heads = query_heads + 2 * key_heads
    inside = (head < heads)[:, None] & (d < half)[None]
    is_q, is_v = (head < query_heads)[:, None], (head >= query_heads + key_heads)[:, None]
    of_q = dq + token * query_heads * size + head[:, None] * size
    of_k = dk + token * key_heads * size + (head[:, None] - query_heads) * size
    of_v = dv + token * key_heads * size + (head[:, None] - query_heads - key_heads) * size
    source = tl.where(is_q, of_q.to(tl.int64), tl.where(is_v, of_v.to(tl.int64), of_k.to(tl.int64))).to(of_q.dtype)
    position = tl.load(position_ids + token)
    c1, c2 = _halves(cos, position, d, half)
    s1, s2 = _halves(sin, position, d, half)
    g1 = tl.load(source + d[None], mask=inside, other=0.0).to(tl.float32)
    g2 = tl.load(source + half + d[None], mask=inside, other=0.0).to(tl.float32)
    x1 = tl.where(is_v, g1, g1 * c1 + g2 * s2)
    x2 = tl.where(is_v, g2, g2 * c2 - g1 * s1)
    at = token * heads * size + head[:, None] * size + d[None]
    if NORM:
        q1, q2 = _halves(norm_q, 0, d, half)
        k1, k2 = _halves(norm_k, 0, d, half)
        w1, w2 = tl.where(is_q, q1, k1) + offset, tl.where(is_q, q2, k2) + offset
        of = raw + token * raw_stride + head[:, None] * size + d[None]
        r1 = tl.load(of, mask=inside, other=0.0).to(tl.float32)
        r2 = tl.load(of + half, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt((tl.sum(r1 * r1, 1) + tl.sum(r2 * r2, 1)) / size + eps)[:, None]
        n1, n2 = r1 * inverse, r2 * inverse
        y1, y2 = x1 * w1, x2 * w2
        mean = ((tl.sum(y1 * n1, 1) + tl.sum(y2 * n2, 1)) / size)[:, None]
        x1 = tl.where(is_v, x1, inverse * (y1 - n1 * mean))
        x2 = tl.where(is_v, x2, inverse * (y2 - n2 * mean))
    tl.store(out + at, x1.to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + half, x2.to(out.dtype.element_ty), mask=inside)
    if REST:
        r = tl.arange(0, REST)
        inside = (head < heads)[:, None] & (r < tail)[None]
        passed = tl.load(source + 2 * half + r[None], mask=inside, other=0.0)
        tl.store(out + token * heads * size + head[:, None] * size + 2 * half + r[None], passed, mask=inside)


def rotate_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, raw: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor,
    norm_q: Tensor | None, norm_k: Tensor | None, eps: float, offset: float,
) -> Tensor:  # fmt: skip
    """Returns the gradient of `qkv` from those of rotated queries, keys and values (tokens x heads x head)."""
    tokens, query_heads, size = dq.shape
    key_heads, half = dk.shape[1], cos.shape[1] // 2
    heads = query_heads + 2 * key_heads
    out = dq.new_empty(tokens, heads * size)
    tail = size - 2 * half
    together = min(16, triton.next_power_of_2(heads))
    _rotate_backward[(tokens, triton.cdiv(heads, together))](
        dq.contiguous(), dk.contiguous(), dv.contiguous(), raw, out, cos, sin, position_ids, norm_q, norm_k, eps,
        offset, raw.stride(0), query_heads, key_heads, size, half, tail,
        NORM=norm_q is not None, REST=triton.next_power_of_2(tail) if tail else 0, HEADS=together,
        HALF=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _activate(gate, GELU: tl.constexpr):
    """Returns the activation and its derivative."""
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        bend = 2 * tl.sigmoid(2 * inner) - 1
        value = 0.5 * gate * (1 + bend)
        slope = 0.5 * (1 + bend) + 0.5 * gate * (1 - bend * bend) * 0.7978845608028654 * (1 + 0.134145 * gate * gate)
    else:
        share = tl.sigmoid(gate)
        value = gate * share
        slope = share * (1 + gate * (1 - share))
    return value, slope


@triton.jit
def _gated(both, out, inner, room, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < inner
    gate = tl.load(both + row * 2 * inner + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * inner + inner + cols, mask=inside, other=0.0).to(tl.float32)
    value, _ = _activate(gate, GELU)
    tl.store(out + row * (inner + room) + cols, (value * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_fp8(both, out, codes, scales, inner, room, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < inner
    gate = tl.load(both + row * 2 * inner + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * inner + inner + cols, mask=inside, other=0.0).to(tl.float32)
    value, _ = _activate(gate, GELU)
    rounded = (value * up).to(out.dtype.element_ty)
    tl.store(out + row * (inner + room) + cols, rounded, mask=inside)
    y = rounded.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(codes + row * inner + cols, (y / scale).to(tl.float8e4nv), mask=inside)


def gated(both: Tensor, activation: str, room: int, *, eight: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the gated product (tokens x inner + room), and if `eight` also as e4m3 codes and scales."""
    tokens, inner = both.shape[0], both.shape[1] // 2
    out = both.new_empty(tokens, inner + room)
    gelu = activation == "gelu_tanh"
    if not eight:
        _gated[(tokens, triton.cdiv(inner, 2048))](both, out, inner, room, GELU=gelu, BLOCK=2048, num_warps=8)
        return out, None, None
    codes = both.new_empty(tokens, inner, dtype=torch.float8_e4m3fn)
    scales = both.new_empty(tokens, 1, dtype=torch.float32)
    block = triton.next_power_of_2(inner)
    _gated_fp8[(tokens,)](both, out, codes, scales, inner, room, GELU=gelu, BLOCK=block, num_warps=_warps(block))
    return out, codes, scales


@triton.jit
def _gated_backward(dy, both, dinner, a, dboth, value_out, tokens, inner, dy_stride, ranks,
                LORA: tl.constexpr, GELU: tl.constexpr, RANKS: tl.constexpr,
                ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (rows < tokens)[:, None] & (cols < inner)[None]
    g = tl.load(dy + rows[:, None] * dy_stride + cols[None], mask=inside, other=0.0).to(tl.float32)
    if LORA:
        r = tl.arange(0, RANKS)
        lhs = tl.load(
            dinner + rows[:, None] * ranks + r[None], mask=(rows < tokens)[:, None] & (r < ranks)[None], other=0.0
        )
        rhs = tl.load(a + r[:, None] * inner + cols[None], mask=(r < ranks)[:, None] & (cols < inner)[None], other=0.0)
        g = tl.dot(lhs, rhs, acc=g)
    at = rows[:, None] * 2 * inner + cols[None]
    gate = tl.load(both + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + at + inner, mask=inside, other=0.0).to(tl.float32)
    value, slope = _activate(gate, GELU)
    tl.store(dboth + at, (g * up * slope).to(dboth.dtype.element_ty), mask=inside)
    tl.store(dboth + at + inner, (g * value).to(dboth.dtype.element_ty), mask=inside)
    if LORA:
        to = value_out + rows[:, None] * inner + cols[None]
        tl.store(to, (value * up).to(value_out.dtype.element_ty), mask=inside)


def gated_backward(
    dy: Tensor, both: Tensor, activation: str, dinner: Tensor | None, a: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Overwrites `both` with its gradient from dy + dinner a; returns it and, with an adapter, the gated product."""
    tokens, inner = both.shape[0], both.shape[1] // 2
    value = None if a is None else both.new_empty(tokens, inner)
    ranks = 0 if a is None else a.shape[0]
    grid = (triton.cdiv(tokens, 16), triton.cdiv(inner, 128))  # the fastest tile of nine on an H200
    _gated_backward[grid](
        dy, both, dinner, a, both, value, tokens, inner, dy.stride(0), ranks,
        LORA=a is not None, GELU=activation == "gelu_tanh", RANKS=max(16, triton.next_power_of_2(ranks)),
        ROWS=16, COLS=128, num_warps=4,
    )  # fmt: skip
    return both, value


@triton.jit
def _quantize(x, codes, scales, width, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    y = tl.load(x + row * stride + cols, mask=cols < width, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(codes + row * width + cols, (y / scale).to(tl.float8e4nv), mask=cols < width)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `x` (rows x width) as e4m3 codes and float32 scales (rows x 1)."""
    rows, width = x.shape
    codes = x.new_empty(rows, width, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    _quantize[(rows,)](x, codes, scales, width, x.stride(0), BLOCK=block, num_warps=_warps(block))
    return codes, scales


def _warps(block: int) -> int:
    """Returns the warps that keep a row in registers: 32 to 64 elements per thread."""
    return max(4, min(32, block // 1024))


@triton.jit
def _head_loss(
    logits, targets, losses, share, vocabulary, cap, CAP: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    at = logits + row * vocabulary
    largest = -float("inf")
    total = 0.0
    for start in range(0, vocabulary, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z = tl.load(at + cols, mask=cols < vocabulary, other=-float("inf")).to(tl.float32)
        if CAP:
            z = tl.where(cols < vocabulary, cap * (2 * tl.sigmoid(2 * z / cap) - 1), -float("inf"))
        new_largest = tl.maximum(largest, tl.max(z, 0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(z - new_largest), 0)
        largest = new_largest
    norm = largest + tl.log(total)
    has_loss = target >= 0
    target_logit = tl.load(at + tl.maximum(target, 0)).to(tl.float32)
    if CAP:
        target_logit = cap * (2 * tl.sigmoid(2 * target_logit / cap) - 1)
    tl.store(losses + row, tl.where(has_loss, norm - target_logit, 0.0))
    if GRADIENT:
        factor = tl.where(has_loss, tl.load(share).to(tl.float32), 0.0)
        tl.debug_barrier()  # every thread must read its target's logit before it is overwritten
        for start in range(0, vocabulary, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            z = tl.load(at + cols, mask=cols < vocabulary, other=-float("inf")).to(tl.float32)
            slope = factor
            if CAP:
                bend = 2 * tl.sigmoid(2 * z / cap) - 1
                z = cap * bend
                slope = factor * (1 - bend * bend)
            g = (tl.exp(z - norm) - tl.where(cols == target, 1.0, 0.0)) * slope
            tl.store(at + cols, g.to(logits.dtype.element_ty), mask=cols < vocabulary)


def head(logits: Tensor, targets: Tensor, cap: float, share: Tensor | None) -> Tensor:
    """Returns the token losses of `logits` (tokens x vocabulary); with `share`, overwrites them by share x gradient."""
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    _head_loss[(len(logits),)](
        logits, targets, losses, share, logits.shape[1], cap,
        CAP=bool(cap), GRADIENT=share is not None, BLOCK=8192, num_warps=16,
    )  # fmt: skip
    return losses


@triton.jit
def _rows(table, ids, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    values = tl.load(table + tl.load(ids + row) * width + cols, mask=inside)
    tl.store(out + row * width + cols, values, mask=inside)


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """Returns the rows `ids` (on the GPU) of `table` (rows x width), which may be in pinned host memory."""
    width = table.shape[1]
    out = torch.empty(len(ids), width, dtype=table.dtype, device=ids.device)
    _rows[(len(ids), triton.cdiv(width, 1024))](table, ids, out, width, BLOCK=1024, num_warps=4)
    return out


@triton.jit
def _dequantize(out, codes, scales, nested, offset, book, scale_book, total, width, stride, size: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    inside = place < total
    packed = tl.load(codes + place, mask=inside, other=0).to(tl.int32)
    block = place // 32  # 64 elements in 32 bytes
    code = tl.load(scales + block, mask=inside, other=0).to(tl.int32)
    scale = tl.load(scale_book + code) * tl.load(nested + block // 256, mask=inside, other=0.0) + tl.load(offset)
    high = tl.load(book + (packed >> 4)) * scale
    low = tl.load(book + (packed & 15)) * scale
    both = tl.interleave(high, low)
    two = tl.program_id(0) * (2 * size) + tl.arange(0, 2 * size)
    row = two // width
    tl.store(out + row.to(tl.int64) * stride + (two - row * width), both.to(out.dtype.element_ty), mask=two < 2 * total)


def dequantise(
    out: Tensor, codes: Tensor, scales: Tensor, nested: Tensor, offset: Tensor, book: Tensor, scale_book: Tensor
) -> None:
    """Dequantizes NF4 with both levels of scales in one launch into `out` (rows x width; rows may be strided)."""
    total = codes.numel()
    _dequantize[(triton.cdiv(total, BYTES),)](
        out, codes, scales, nested, offset, book, scale_book, total, out.shape[1], out.stride(0), BYTES, num_warps=4
    )
