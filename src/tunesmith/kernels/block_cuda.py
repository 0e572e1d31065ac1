"""The decoder block of `block.py` on a GPU with Triton: the same interface, fewer passes over memory.

If a norm or the gated product feeds a linear layer, its rows are padded to hold x Aᵀ, and the weight's rows are
followed by the scaled B: [x, x Aᵀ] [W, s B]ᵀ is the layer with its adapter in one product, and in the backward
dy [W, s B] gives both gradients. On an H200 the wider product costs nothing measurable and saves two thin ones
(dev/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import base_weights
from tunesmith.kernels import triton_parts as parts
from tunesmith.kernels.attention import SequenceBounds, attend, attend_back
from tunesmith.kernels.base_weights import Fp8, Nf4, OneDnnWeight, scaled_matmul
from tunesmith.kernels.block import Block, BlockShape, Keep, RopeTables, SavedActivations, Targets, heads, not_none
from tunesmith.kernels.lora_linear import GradientTarget, JoinedLinear, accumulate_gradients

Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # rotated q, k, v -> output, what backward needs


def forward(
    h: Tensor, block: Block, rope_tables: RopeTables, bounds: SequenceBounds, shape: BlockShape, keep: Keep
) -> tuple[Tensor, SavedActivations]:
    """Returns the block's output for `h` (tokens x hidden) and the saved activations."""
    h2, gate_up, saved = _forward_to_gate(h, block, rope_tables, shape, _packed_attention(bounds, shape))
    mlp_out, inner = _mlp_down(gate_up, block, shape)
    out = h2 + _post_norm(mlp_out, block.after_2, shape)
    if keep in ("input", "host"):
        return out, SavedActivations(h)
    saved = saved._replace(mlp_out=None if block.after_2 is None else mlp_out, inner=(*saved.inner[:3], inner))
    return out, saved._replace(gate_up=None) if keep == "attention" else saved


def forward_only(h: Tensor, block: Block, rope_tables: RopeTables, shape: BlockShape, mix: Attend) -> Tensor:
    """Returns the block's output for `h` (tokens x hidden) with `mix` as attention; nothing is saved."""
    h2, gate_up, _ = _forward_to_gate(h, block, rope_tables, shape, mix)
    return h2.add_(_post_norm(_mlp_down(gate_up, block, shape)[0], block.after_2, shape))


def backward(
    dout: Tensor,
    stack: list[SavedActivations],
    block: Block,
    rope_tables: RopeTables,
    bounds: SequenceBounds,
    shape: BlockShape,
    targets: Targets,
) -> Tensor:
    """Returns the gradient of `h` and adds the adapter's to `targets`. Pops the saved activations off `stack`."""
    saved = _recompute(stack.pop(), block, rope_tables, bounds, shape)
    h2, gate_up_out, mixed = not_none(saved.h2), not_none(saved.gate_up), not_none(saved.mixed)
    dpart = _post_norm_backward(dout, saved.mlp_out, block.after_2, shape)
    dactivated, dinner = _lora_linear_backward(dpart, block.down)
    dgate_up, activated = parts.gated_backward(
        dactivated, gate_up_out, shape.activation, dinner, block.down.a
    )  # overwrites `gate_up_out`
    inner = saved.inner[3]
    if activated is not None and inner is None:
        inner = activated @ not_none(block.down.a).T
    accumulate_gradients(targets[3], dpart, activated, inner, dinner)
    del dactivated, activated, gate_up_out, dpart
    saved = saved._replace(gate_up=None, mlp_out=None)
    dh2 = _norm_linear_backward(dgate_up, dout, h2, block.norm_2, saved.inner[2], block.gate_up, targets[2], shape)
    del dgate_up, h2
    dpart = _post_norm_backward(dh2, saved.attn_out, block.after_1, shape)
    dmixed, dinner = _lora_linear_backward(dpart, block.out, with_b=False)
    if dinner is not None:
        dmixed.addmm_(dinner, not_none(block.out.a))
    accumulate_gradients(targets[1], dpart, mixed, saved.inner[1], dinner)
    del dpart
    dqkv = _attention_backward(dmixed, saved, block, rope_tables, bounds, shape)
    return _norm_linear_backward(dqkv, dh2, saved.h, block.norm_1, saved.inner[0], block.qkv, targets[0], shape)


# --- forward -------------------------------------------------------------------------------------------------


def _packed_attention(bounds: SequenceBounds, shape: BlockShape) -> Attend:
    return lambda q, k, v: attend(q, k, v, bounds, shape.rule)


def _forward_to_gate(
    h: Tensor, block: Block, rope_tables: RopeTables, shape: BlockShape, mix: Attend
) -> tuple[Tensor, Tensor, SavedActivations]:
    _, padded, codes, scales = parts.norm(h, None, block.norm_1, shape.eps, shape.offset, _padding_columns(block.qkv), eight=_is_fp8(block.qkv))  # noqa: E501  # fmt: skip
    qkv, inner_qkv = _lora_linear(padded, codes, scales, block.qkv)
    del padded, codes
    q, k, v = _rotated_qkv(qkv, block, rope_tables, shape)
    mixed, lse = mix(q, k, v)
    mixed = mixed.flatten(1)
    codes, scales = parts.quantize(mixed) if _is_fp8(block.out) else (None, None)
    attn_out, inner_out = _lora_linear(mixed, codes, scales, block.out)
    saved_attn_out = None if block.after_1 is None else attn_out
    attn_out = _post_norm(attn_out, block.after_1, shape)
    h2, padded, codes, scales = parts.norm(h, attn_out, block.norm_2, shape.eps, shape.offset, _padding_columns(block.gate_up), eight=_is_fp8(block.gate_up))  # noqa: E501  # fmt: skip
    del attn_out
    gate_up_out, inner_gate = _lora_linear(padded, codes, scales, block.gate_up)
    return (
        h2,
        gate_up_out,
        SavedActivations(
            h, qkv, mixed, lse, h2, gate_up_out, saved_attn_out, inner=(inner_qkv, inner_out, inner_gate, None)
        ),
    )


def _post_norm(x: Tensor, weight: Tensor | None, shape: BlockShape) -> Tensor:
    """Applies the norm after attention or MLP if the block has one."""
    return x if weight is None else parts.norm(x, None, weight, shape.eps, shape.offset, 0, eight=False)[1]


def _mlp_down(gate_up: Tensor, block: Block, shape: BlockShape) -> tuple[Tensor, Tensor | None]:
    padded, codes, scales = parts.gated(
        gate_up, shape.activation, _padding_columns(block.down), eight=_is_fp8(block.down)
    )
    return _lora_linear(padded, codes, scales, block.down)


def _padding_columns(joined: JoinedLinear) -> int:
    """Returns how many columns pad each input row for x Aᵀ: the ranks, or 0 if the product leaves them out."""
    return 0 if joined.a is None or isinstance(joined.base, Fp8) else joined.a.shape[0]


def _is_fp8(joined: JoinedLinear) -> bool:
    return isinstance(joined.base, Fp8)


def _lora_linear(
    padded: Tensor, codes: Tensor | None, scales: Tensor | None, joined: JoinedLinear
) -> tuple[Tensor, Tensor | None]:
    """Returns the joined layer's output with its adapter, and x Aᵀ."""
    base, a, b = joined.base, joined.a, joined.b
    if isinstance(base, Fp8):
        y = scaled_matmul(not_none(codes), not_none(scales), base.forward, base.forward_scale, padded.dtype)
        y = y if joined.bias is None else y.add_(joined.bias)
        if a is None:
            return y, None
        inner = padded @ a.T
        return y.addmm_(inner, not_none(b).T), inner
    if a is None:
        return functional.linear(padded, _dense_weight(joined, with_b=False), joined.bias), None
    width = a.shape[1]
    inner = padded[:, :width] @ a.T
    if padded.shape[1] == width:  # not padded (attention's output)
        y = (inner @ not_none(b).T).addmm_(
            padded, _dense_weight(joined, with_b=False).T
        )  # rounded once, as `product` says
        return y if joined.bias is None else y.add_(joined.bias), inner
    padded[:, width:] = inner
    return functional.linear(padded, _dense_weight(joined, with_b=True), joined.bias), inner


def _dense_weight(joined: JoinedLinear, *, with_b: bool) -> Tensor:
    """Returns the weight (out x in), followed by the scaled B if `with_b`; a dense base always contains it."""
    base = joined.base
    if isinstance(base, Nf4):
        return base_weights.nf4_matrix(base, joined.pieces if with_b else ())
    if isinstance(base, Fp8 | OneDnnWeight):
        raise AssertionError("an 8-bit or packed weight has no dense form")
    return base if with_b or joined.a is None else base[:, : joined.a.shape[1]]


def _rotated_qkv(
    qkv: Tensor, block: Block, rope_tables: RopeTables, shape: BlockShape
) -> tuple[Tensor, Tensor, Tensor]:
    rotated = parts.rotate(
        qkv, rope_tables.cos, rope_tables.sin, rope_tables.position_ids, shape.queries, shape.keys, shape.head,
        block.norm_q, block.norm_k, shape.eps, shape.offset,
    )  # fmt: skip
    return _split_rotated(rotated, qkv, shape)


def _split_rotated(rotated: Tensor, qkv: Tensor, shape: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    end = shape.queries + shape.keys
    q, k, v = rotated[:, : shape.queries], rotated[:, shape.queries : end], qkv[:, end:]
    return heads(q, shape), heads(k, shape), heads(v, shape)


# --- backward ------------------------------------------------------------------------------------------------


def _recompute(
    saved: SavedActivations, block: Block, rope_tables: RopeTables, bounds: SequenceBounds, shape: BlockShape
) -> SavedActivations:
    """Recomputes what was not saved."""
    if saved.h2 is None:
        _, gate_up_out, saved = _forward_to_gate(saved.h, block, rope_tables, shape, _packed_attention(bounds, shape))
        if block.after_2 is None:
            return saved
        mlp_out, inner = _mlp_down(gate_up_out, block, shape)
        return saved._replace(mlp_out=mlp_out, inner=(*saved.inner[:3], inner))
    if saved.gate_up is None:
        _, padded, codes, scales = parts.norm(saved.h2, None, block.norm_2, shape.eps, shape.offset, _padding_columns(block.gate_up), eight=_is_fp8(block.gate_up))  # noqa: E501  # fmt: skip
        gate_up_out, _ = _lora_linear(padded, codes, scales, block.gate_up)
        return saved._replace(gate_up=gate_up_out)
    return saved


def _lora_linear_backward(dy: Tensor, joined: JoinedLinear, *, with_b: bool = True) -> tuple[Tensor, Tensor | None]:
    """Returns dy W (tokens x in, without the adapter's part) and dy s B (tokens x ranks).

    With `with_b` both come from one product, so the rows of dy W are not contiguous.
    """
    base, a, b = joined.base, joined.a, joined.b
    if isinstance(base, Fp8):
        codes, scales = parts.quantize(dy)
        dx = scaled_matmul(codes, scales, base.backward, base.backward_scale, dy.dtype)
        return dx, None if a is None else dy @ not_none(b)
    if a is None:
        return dy @ _dense_weight(joined, with_b=False), None
    if not with_b:
        return dy @ _dense_weight(joined, with_b=False), dy @ not_none(b)
    padded = dy @ _dense_weight(joined, with_b=True)
    return padded[:, : a.shape[1]], padded[:, a.shape[1] :].contiguous()


def _post_norm_backward(dy: Tensor, x: Tensor | None, weight: Tensor | None, shape: BlockShape) -> Tensor:
    """Returns the gradient of `_post_norm`'s input."""
    return dy if weight is None else parts.norm_back(dy, not_none(x), weight, shape.eps, shape.offset, None)


def _norm_linear_backward(
    dy: Tensor, dresidual: Tensor, h: Tensor, weight: Tensor, inner: Tensor | None, joined: JoinedLinear,
    target: GradientTarget, shape: BlockShape,
) -> Tensor:  # fmt: skip
    """Returns the gradient through a linear layer and the norm before it, with the residual's gradient added."""
    dnormed, dinner = _lora_linear_backward(dy, joined)
    if dinner is not None:
        dnormed.addmm_(dinner, not_none(joined.a))
        _, normed, _, _ = parts.norm(h, None, weight, shape.eps, shape.offset, 0, eight=False)
        accumulate_gradients(target, dy, normed, inner, dinner)
    return parts.norm_back(dnormed, h, weight, shape.eps, shape.offset, dresidual)


def _attention_backward(
    dmixed: Tensor,
    saved: SavedActivations,
    block: Block,
    rope_tables: RopeTables,
    bounds: SequenceBounds,
    shape: BlockShape,
) -> Tensor:
    qkv, mixed, lse = not_none(saved.qkv), not_none(saved.mixed), not_none(saved.lse)
    q, k, v = _split_rotated(qkv, qkv, shape) if block.norm_q is None else _rotated_qkv(qkv, block, rope_tables, shape)
    dq, dk, dv = attend_back(heads(dmixed, shape), q, k, v, heads(mixed, shape), lse, bounds, shape.rule)
    return parts.rotate_backward(
        dq,
        dk,
        dv,
        qkv,
        rope_tables.cos,
        rope_tables.sin,
        rope_tables.position_ids,
        block.norm_q,
        block.norm_k,
        shape.eps,
        shape.offset,
    )
