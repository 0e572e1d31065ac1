"""One decoder block over a flat row of packed tokens: forward, and the backward that was written by hand.

h2 = h + attention(norm(h)), out = h2 + feed-forward(norm(h2)), with norms after both parts (Gemma 2 to 4), norms of
queries and keys (Qwen 3, Gemma 3 and 4), norms of values and a scalar times the output (Gemma 4) where the family has
them. What is cheap (norms, the gated product) is made again in the backward; `keep` says which of the dear tensors are
kept.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels import gated_mlp, lora_linear, norm, rope
from tunesmith.kernels.attention import AttentionRule, SequenceBounds, attend, attend_back
from tunesmith.kernels.lora_linear import GradientTarget, JoinedLinear

Keep = Literal["all", "attention", "input", "host"]  # host: the input waits in the host's memory


class BlockShape(NamedTuple):
    """What is constant in a block. Widths: `queries` and `keys` of all their heads together.

    `table` is the index of its RoPE table. `shared_values`: the product makes no values, the keys' rows are the values,
    too, before they are normalized and rotated.
    """

    queries: int
    keys: int
    head: int
    eps: float
    offset: float
    activation: str
    rule: AttentionRule
    table: int = 0
    shared_values: bool = False
    norm_values: bool = False


class Block(NamedTuple):
    """The tensors of a block. `after_*` are the norms after both parts, `scalar` multiplies the block's output."""

    norm_1: Tensor
    norm_2: Tensor
    qkv: JoinedLinear
    out: JoinedLinear
    gate_up: JoinedLinear
    down: JoinedLinear
    after_1: Tensor | None = None
    after_2: Tensor | None = None
    norm_q: Tensor | None = None
    norm_k: Tensor | None = None
    scalar: Tensor | None = None


class SavedActivations(NamedTuple):
    """What a forward left for its backward; None is made again from `h`."""

    h: Tensor
    qkv: Tensor | None = None  # as the product made it where queries are normed, otherwise turned
    mixed: Tensor | None = None
    total: Tensor | None = None
    h2: Tensor | None = None
    both: Tensor | None = None
    made_1: Tensor | None = None  # before the norms after both parts
    made_2: Tensor | None = None
    inner: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None, None, None, None)


class RopeTables(NamedTuple):
    """Tables of cos and sin (rows x turned), and the row of each token, which is its place in its example."""

    cos: Tensor
    sin: Tensor
    places: Tensor

    def each(self) -> tuple[Tensor, Tensor]:
        """cos and sin of each token (tokens x turned)."""
        return self.cos[self.places], self.sin[self.places]


Targets = tuple[GradientTarget, GradientTarget, GradientTarget, GradientTarget]


def forward(
    h: Tensor, block: Block, turns: RopeTables, bounds: SequenceBounds, form: BlockShape, keep: Keep
) -> tuple[Tensor, SavedActivations]:
    """`h` (tokens x hidden) through the block."""
    out, kept = _through(h, block, turns, bounds, form, to_the_end=True)
    return given(out), _thin(kept, keep)


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
    h, h2, both, mixed, inner = kept.h, given(kept.h2), given(kept.both), given(kept.mixed), kept.inner
    eps, offset = form.eps, form.offset
    dout = dout if block.scalar is None else dout * block.scalar
    dmade = dout if block.after_2 is None else norm.rms_back(dout, given(kept.made_2), block.after_2, eps, offset)
    dactivated, dinner = lora_linear.input_gradient(dmade, block.down)
    dboth, activated = gated_mlp.gated_back(dactivated, both, form.activation)
    lora_linear.gather(targets[3], dmade, activated, inner[3], dinner)
    normed, again = norm.rms_again(h2, block.norm_2, eps, offset)
    dnormed = lora_linear.backward(dboth, normed, inner[2], block.gate_up, targets[2])
    dh2 = norm.rms_back_of(dnormed, again).add_(dout)
    dmade = dh2 if block.after_1 is None else norm.rms_back(dh2, given(kept.made_1), block.after_1, eps, offset)
    dmixed = lora_linear.backward(dmade, mixed, inner[1], block.out, targets[1])
    dqkv = _mix_back(dmixed, kept, block, turns, bounds, form)
    normed, again = norm.rms_again(h, block.norm_1, eps, offset)
    dnormed = lora_linear.backward(dqkv, normed, inner[0], block.qkv, targets[0])
    return norm.rms_back_of(dnormed, again).add_(dh2)


def _through(
    h: Tensor, block: Block, turns: RopeTables, bounds: SequenceBounds, form: BlockShape, *, to_the_end: bool
) -> tuple[Tensor | None, SavedActivations]:
    """Everything that can be kept; the last product only where its result is wanted."""
    normed = norm.rms(h, block.norm_1, form.eps, form.offset)
    qkv, inner_qkv = lora_linear.forward(normed, block.qkv)
    q, k, v = _turned(qkv, block, turns, form)
    mixed, total = attend(q, k, v, bounds, form.rule)
    mixed = mixed.flatten(1)
    made_1, inner_out = lora_linear.forward(mixed, block.out)
    h2 = h + (made_1 if block.after_1 is None else norm.rms(made_1, block.after_1, form.eps, form.offset))
    both, inner_gate = lora_linear.forward(norm.rms(h2, block.norm_2, form.eps, form.offset), block.gate_up)
    out, made_2, inner_down = None, None, None
    if to_the_end or block.after_2 is not None:
        made_2, inner_down = lora_linear.forward(gated_mlp.gated(both, form.activation), block.down)
        out = h2 + (made_2 if block.after_2 is None else norm.rms(made_2, block.after_2, form.eps, form.offset))
        out = out if block.scalar is None else out.mul_(block.scalar)
    elif block.down.a is not None:
        inner_down = gated_mlp.gated(both, form.activation) @ block.down.a.T
    keep_1, keep_2 = (made_1 if block.after_1 is not None else None), (made_2 if block.after_2 is not None else None)
    inner = (inner_qkv, inner_out, inner_gate, inner_down)
    return out, SavedActivations(h, qkv, mixed, total, h2, both, keep_1, keep_2, inner)


def _thin(kept: SavedActivations, keep: Keep) -> SavedActivations:
    if keep == "all":
        return kept
    return kept._replace(both=None) if keep == "attention" else SavedActivations(kept.h)  # input, host


def _complete(
    kept: SavedActivations, block: Block, turns: RopeTables, bounds: SequenceBounds, form: BlockShape
) -> SavedActivations:
    """Makes again what was not kept."""
    if kept.h2 is None:
        return _through(kept.h, block, turns, bounds, form, to_the_end=False)[1]
    if kept.both is not None:
        return kept
    normed = norm.rms(kept.h2, block.norm_2, form.eps, form.offset)
    return kept._replace(both=lora_linear.forward(normed, block.gate_up)[0])


def heads(x: Tensor, form: BlockShape) -> Tensor:
    """tokens x width as tokens x heads x head."""
    return x.view(len(x), -1, form.head)


def split(qkv: Tensor, form: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (tokens x heads x head) in the product's output; shared values are the keys."""
    q, k = qkv[:, : form.queries], qkv[:, form.queries : form.queries + form.keys]
    v = k if form.shared_values else qkv[:, form.queries + form.keys :]
    return heads(q, form), heads(k, form), heads(v, form)


def _turned(qkv: Tensor, block: Block, turns: RopeTables, form: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as attention takes them, from what the product made; not normed, they stand in it."""
    cos, sin = turns.each()
    if block.norm_q is None:
        rope.rotate_(_both(qkv, form), cos, sin)
        return split(qkv, form)
    q, k, v = normed_heads(qkv, block, form)
    return rope.rotate_(q, cos, sin), rope.rotate_(k, cos, sin), v


def normed_heads(qkv: Tensor, block: Block, form: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    """`split`, each part in a new tensor after its norm where the block has one."""
    q, k, v = split(qkv, form)
    if block.norm_q is None:
        return q, k, v
    q, k_normed = (norm.rms(x, w, form.eps, form.offset) for x, w in ((q, block.norm_q), (k, given(block.norm_k))))
    return q, k_normed, norm.rms(v, None, form.eps, 0.0) if form.norm_values else v


def _both(qkv: Tensor, form: BlockShape) -> Tensor:
    """The heads of queries and keys together."""
    return heads(qkv[:, : form.queries + form.keys], form)


def _mix_back(
    dmixed: Tensor, kept: SavedActivations, block: Block, turns: RopeTables, bounds: SequenceBounds, form: BlockShape
) -> Tensor:
    """From the gradient to attention's output to that to the joined queries, keys and values."""
    qkv, mixed, total = given(kept.qkv), given(kept.mixed), given(kept.total)
    raw_q, raw_k, raw_v = split(qkv, form)
    q, k, v = (raw_q, raw_k, raw_v) if block.norm_q is None else _turned(qkv, block, turns, form)
    dqkv = torch.empty_like(qkv)
    into = split(dqkv, form)
    into = (*into[:2], torch.empty_like(v)) if form.shared_values else into
    made = attend_back(heads(dmixed, form), q, k, v, heads(mixed, form), total, bounds, form.rule, into)
    for part, gradient in zip(into, made, strict=True):
        if part is not gradient:
            part.copy_(gradient)
    rope.rotate_back_(_both(dqkv, form), *turns.each())
    if block.norm_q is not None and block.norm_k is not None:
        into[0].copy_(norm.rms_back(into[0], raw_q, block.norm_q, form.eps, form.offset))
        into[1].copy_(norm.rms_back(into[1], raw_k, block.norm_k, form.eps, form.offset))
    if form.norm_values:
        into[2].copy_(norm.rms_back(into[2], raw_v, None, form.eps, 0.0))
    if form.shared_values:
        into[1].add_(into[2])
    return dqkv


def given(x: Tensor | None) -> Tensor:
    """`x`, which is there."""
    if x is None:
        raise AssertionError("a tensor that should have been kept is missing")
    return x
