"""The block of `block.py` on a card with Triton: the same contract, fewer passes over memory.

Where a norm or the gated product feeds a product, its rows have room behind them for x Aᵀ, and the weight has the
scaled B behind its rows: [x, x Aᵀ] [W, s B]ᵀ is the whole product with its adapter at once, and in the backward
dy [W, s B] gives the gradients to both. On an H200 the wider product costs nothing that can be measured and spares two
thin ones (dev/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from tunesmith.kernels import nf4
from tunesmith.kernels import triton_parts as parts
from tunesmith.kernels.attention import SequenceBounds, attend, attend_back
from tunesmith.kernels.block import Block, BlockShape, Keep, RopeTables, SavedActivations, Targets, given, heads
from tunesmith.kernels.fp8 import Fp8, scaled
from tunesmith.kernels.lora_linear import GradientTarget, JoinedLinear, gather
from tunesmith.kernels.nf4 import Nf4
from tunesmith.kernels.onednn import OneDnnWeight

Mix = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # turned q, k, v -> output as q, what backward wants


def forward(
    h: Tensor, block: Block, turns: RopeTables, bounds: SequenceBounds, form: BlockShape, keep: Keep
) -> tuple[Tensor, SavedActivations]:
    """`h` (tokens x hidden) through the block; `turns` are the tables of cos and sin and each token's place."""
    h2, both, kept = _until_gate(h, block, turns, form, _attending(bounds, form))
    made, inner = _down(both, block, form)
    out = h2 + _after(made, block.after_2, form)
    if keep in ("input", "host"):
        return out, SavedActivations(h)
    kept = kept._replace(made_2=None if block.after_2 is None else made, inner=(*kept.inner[:3], inner))
    return out, kept._replace(both=None) if keep == "attention" else kept


def write(h: Tensor, block: Block, turns: RopeTables, form: BlockShape, mix: Mix) -> Tensor:
    """`h` (tokens x hidden) through the block, where `mix` attends; nothing is kept."""
    h2, both, _ = _until_gate(h, block, turns, form, mix)
    return h2.add_(_after(_down(both, block, form)[0], block.after_2, form))


def backward(
    dout: Tensor,
    stack: list[SavedActivations],
    block: Block,
    turns: RopeTables,
    bounds: SequenceBounds,
    form: BlockShape,
    targets: Targets,
) -> Tensor:
    """The gradient to `h`; those to the adapter are added to `targets`. Takes what was kept from the `stack`'s top."""
    kept = _complete(stack.pop(), block, turns, bounds, form)
    h2, both, mixed = given(kept.h2), given(kept.both), given(kept.mixed)
    dmade = _after_back(dout, kept.made_2, block.after_2, form)
    dactivated, dinner = _back(dmade, block.down)
    dboth, activated = parts.gated_back(dactivated, both, form.activation, dinner, block.down.a)  # over `both`
    inner = kept.inner[3]
    if activated is not None and inner is None:
        inner = activated @ given(block.down.a).T
    gather(targets[3], dmade, activated, inner, dinner)
    del dactivated, activated, both, dmade
    kept = kept._replace(both=None, made_2=None)
    dh2 = _back_norm(dboth, dout, h2, block.norm_2, kept.inner[2], block.gate_up, targets[2], form)
    del dboth, h2
    dmade = _after_back(dh2, kept.made_1, block.after_1, form)
    dmixed, dinner = _back(dmade, block.out, with_b=False)
    if dinner is not None:
        dmixed.addmm_(dinner, given(block.out.a))
    gather(targets[1], dmade, mixed, kept.inner[1], dinner)
    del dmade
    dqkv = _mix_back(dmixed, kept, block, turns, bounds, form)
    return _back_norm(dqkv, dh2, kept.h, block.norm_1, kept.inner[0], block.qkv, targets[0], form)


# --- forward -------------------------------------------------------------------------------------------------


def _attending(bounds: SequenceBounds, form: BlockShape) -> Mix:
    return lambda q, k, v: attend(q, k, v, bounds, form.rule)


def _until_gate(
    h: Tensor, block: Block, turns: RopeTables, form: BlockShape, mix: Mix
) -> tuple[Tensor, Tensor, SavedActivations]:
    _, wide, codes, scales = parts.norm(h, None, block.norm_1, form.eps, form.offset, _room(block.qkv), eight=_eight(block.qkv))  # noqa: E501  # fmt: skip
    qkv, inner_qkv = _product(wide, codes, scales, block.qkv)
    del wide, codes
    q, k, v = _turned(qkv, block, turns, form)
    mixed, total = mix(q, k, v)
    mixed = mixed.flatten(1)
    codes, scales = parts.quantise(mixed) if _eight(block.out) else (None, None)
    made, inner_out = _product(mixed, codes, scales, block.out)
    made_1 = None if block.after_1 is None else made
    made = _after(made, block.after_1, form)
    h2, wide, codes, scales = parts.norm(h, made, block.norm_2, form.eps, form.offset, _room(block.gate_up), eight=_eight(block.gate_up))  # noqa: E501  # fmt: skip
    del made
    both, inner_gate = _product(wide, codes, scales, block.gate_up)
    return (
        h2,
        both,
        SavedActivations(h, qkv, mixed, total, h2, both, made_1, inner=(inner_qkv, inner_out, inner_gate, None)),
    )


def _after(made: Tensor, weight: Tensor | None, form: BlockShape) -> Tensor:
    """The norm after attention or feed-forward, where the block has one."""
    return made if weight is None else parts.norm(made, None, weight, form.eps, form.offset, 0, eight=False)[1]


def _down(both: Tensor, block: Block, form: BlockShape) -> tuple[Tensor, Tensor | None]:
    wide, codes, scales = parts.gated(both, form.activation, _room(block.down), eight=_eight(block.down))
    return _product(wide, codes, scales, block.down)


def _room(joined: JoinedLinear) -> int:
    """Columns behind each row of the input: the ranks, where the product takes them along."""
    return 0 if joined.a is None or isinstance(joined.base, Fp8) else joined.a.shape[0]


def _eight(joined: JoinedLinear) -> bool:
    return isinstance(joined.base, Fp8)


def _product(
    wide: Tensor, codes: Tensor | None, scales: Tensor | None, joined: JoinedLinear
) -> tuple[Tensor, Tensor | None]:
    """The joined product with its adapter, and x Aᵀ."""
    base, a, b = joined.base, joined.a, joined.b
    if isinstance(base, Fp8):
        y = scaled(given(codes), given(scales), base.forward, base.forward_scale, wide.dtype)
        y = y if joined.bias is None else y.add_(joined.bias)
        if a is None:
            return y, None
        inner = wide @ a.T
        return y.addmm_(inner, given(b).T), inner
    if a is None:
        return functional.linear(wide, _dense(joined, with_b=False), joined.bias), None
    width = a.shape[1]
    inner = wide[:, :width] @ a.T
    if wide.shape[1] == width:  # no room (attention's output)
        y = (inner @ given(b).T).addmm_(wide, _dense(joined, with_b=False).T)  # rounded once, as `product` says
        return y if joined.bias is None else y.add_(joined.bias), inner
    wide[:, width:] = inner
    return functional.linear(wide, _dense(joined, with_b=True), joined.bias), inner


def _dense(joined: JoinedLinear, *, with_b: bool) -> Tensor:
    """The weight (out x in), with the scaled B behind its rows when asked; a dense one always has it there."""
    base = joined.base
    if isinstance(base, Nf4):
        return nf4.matrix(base, joined.pieces if with_b else ())
    if isinstance(base, Fp8 | OneDnnWeight):
        raise AssertionError("an 8-bit or packed weight has no dense form")
    return base if with_b or joined.a is None else base[:, : joined.a.shape[1]]


def _turned(qkv: Tensor, block: Block, turns: RopeTables, form: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    turned = parts.turn(
        qkv, turns.cos, turns.sin, turns.places, form.queries, form.keys, form.head,
        block.norm_q, block.norm_k, form.eps, form.offset,
    )  # fmt: skip
    return _split(turned, qkv, form)


def _split(turned: Tensor, qkv: Tensor, form: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    both = form.queries + form.keys
    q, k, v = turned[:, : form.queries], turned[:, form.queries : both], qkv[:, both:]
    return heads(q, form), heads(k, form), heads(v, form)


# --- backward ------------------------------------------------------------------------------------------------


def _complete(
    kept: SavedActivations, block: Block, turns: RopeTables, bounds: SequenceBounds, form: BlockShape
) -> SavedActivations:
    """Makes again what was not kept."""
    if kept.h2 is None:
        _, both, kept = _until_gate(kept.h, block, turns, form, _attending(bounds, form))
        if block.after_2 is None:
            return kept
        made, inner = _down(both, block, form)
        return kept._replace(made_2=made, inner=(*kept.inner[:3], inner))
    if kept.both is None:
        _, wide, codes, scales = parts.norm(kept.h2, None, block.norm_2, form.eps, form.offset, _room(block.gate_up), eight=_eight(block.gate_up))  # noqa: E501  # fmt: skip
        both, _ = _product(wide, codes, scales, block.gate_up)
        return kept._replace(both=both)
    return kept


def _back(dy: Tensor, joined: JoinedLinear, *, with_b: bool = True) -> tuple[Tensor, Tensor | None]:
    """dy W (tokens x in; the adapter's share is still missing) and dy s B (tokens x ranks).

    Made as one product (`with_b`), the rows of dy W lie apart.
    """
    base, a, b = joined.base, joined.a, joined.b
    if isinstance(base, Fp8):
        codes, scales = parts.quantise(dy)
        dx = scaled(codes, scales, base.backward, base.backward_scale, dy.dtype)
        return dx, None if a is None else dy @ given(b)
    if a is None:
        return dy @ _dense(joined, with_b=False), None
    if not with_b:
        return dy @ _dense(joined, with_b=False), dy @ given(b)
    wide = dy @ _dense(joined, with_b=True)
    return wide[:, : a.shape[1]], wide[:, a.shape[1] :].contiguous()


def _after_back(dy: Tensor, made: Tensor | None, weight: Tensor | None, form: BlockShape) -> Tensor:
    """The gradient to what `_after` was given."""
    return dy if weight is None else parts.norm_back(dy, given(made), weight, form.eps, form.offset, None)


def _back_norm(
    dy: Tensor, dresidual: Tensor, h: Tensor, weight: Tensor, inner: Tensor | None,
    joined: JoinedLinear, target: GradientTarget,
    form: BlockShape,
) -> Tensor:  # fmt: skip
    """Through a product and the norm before it, the residual's gradient added."""
    dnormed, dinner = _back(dy, joined)
    if dinner is not None:
        dnormed.addmm_(dinner, given(joined.a))
        _, normed, _, _ = parts.norm(h, None, weight, form.eps, form.offset, 0, eight=False)
        gather(target, dy, normed, inner, dinner)
    return parts.norm_back(dnormed, h, weight, form.eps, form.offset, dresidual)


def _mix_back(
    dmixed: Tensor, kept: SavedActivations, block: Block, turns: RopeTables, bounds: SequenceBounds, form: BlockShape
) -> Tensor:
    qkv, mixed, total = given(kept.qkv), given(kept.mixed), given(kept.total)
    q, k, v = _split(qkv, qkv, form) if block.norm_q is None else _turned(qkv, block, turns, form)
    dq, dk, dv = attend_back(heads(dmixed, form), q, k, v, heads(mixed, form), total, bounds, form.rule)
    return parts.turn_back(
        dq, dk, dv, qkv, turns.cos, turns.sin, turns.places, block.norm_q, block.norm_k, form.eps, form.offset
    )
