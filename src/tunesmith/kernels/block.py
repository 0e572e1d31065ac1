"""One decoder block over a flat row of packed tokens: forward, and the backward that was written by hand.

h2 = h + attention(norm(h)), out = h2 + feed-forward(norm(h2)), with Gemma 2's norms behind both parts and Qwen 3's
norms of queries and keys where the family has them. What is cheap (norms, the gated product) is made again in the
backward; `keep` says which of the dear tensors are kept.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels import gate, norm, product, rotary
from tunesmith.kernels.attention import Bounds, Rule, attend, attend_back
from tunesmith.kernels.product import Joined, Target

Keep = Literal["all", "attention", "input", "host"]  # host: the input waits in the host's memory


class Form(NamedTuple):
    """What is constant in a block. Widths: `queries` and `keys` of all their heads together."""

    queries: int
    keys: int
    head: int
    eps: float
    offset: float
    activation: str
    rule: Rule


class Block(NamedTuple):
    """The tensors of a block. `after_*` are Gemma 2's norms, `norm_q` and `norm_k` Qwen 3's."""

    norm_1: Tensor
    norm_2: Tensor
    qkv: Joined
    out: Joined
    gate_up: Joined
    down: Joined
    after_1: Tensor | None = None
    after_2: Tensor | None = None
    norm_q: Tensor | None = None
    norm_k: Tensor | None = None


class Kept(NamedTuple):
    """What a forward left for its backward; None is made again from `h`."""

    h: Tensor
    qkv: Tensor | None = None  # as the product made it where queries are normed, otherwise turned
    mixed: Tensor | None = None
    total: Tensor | None = None
    h2: Tensor | None = None
    both: Tensor | None = None
    made_1: Tensor | None = None  # before Gemma 2's norms
    made_2: Tensor | None = None
    inner: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None, None, None, None)


class Turns(NamedTuple):
    """Tables of cos and sin (longest x turned), and the place of each token in its example."""

    cos: Tensor
    sin: Tensor
    places: Tensor

    def each(self) -> tuple[Tensor, Tensor]:
        """cos and sin of each token (tokens x turned)."""
        return self.cos[self.places], self.sin[self.places]


Targets = tuple[Target, Target, Target, Target]


def forward(h: Tensor, block: Block, turns: Turns, bounds: Bounds, form: Form, keep: Keep) -> tuple[Tensor, Kept]:
    """`h` (tokens x hidden) through the block."""
    out, kept = _through(h, block, turns, bounds, form, to_the_end=True)
    return given(out), _thin(kept, keep)


def backward(
    dout: Tensor, stack: list[Kept], block: Block, turns: Turns, bounds: Bounds, form: Form, targets: Targets
) -> Tensor:
    """The gradient to `h`; those to the adapter are added to `targets`. Takes what was kept from the `stack`'s top."""
    kept = _complete(stack.pop(), block, turns, bounds, form)
    h, h2, both, mixed, inner = kept.h, given(kept.h2), given(kept.both), given(kept.mixed), kept.inner
    eps, offset = form.eps, form.offset
    dmade = dout if block.after_2 is None else norm.rms_back(dout, given(kept.made_2), block.after_2, eps, offset)
    dactivated, dinner = product.back(dmade, block.down)
    dboth, activated = gate.gated_back(dactivated, both, form.activation)
    product.gather(targets[3], dmade, activated, inner[3], dinner)
    normed, again = norm.rms_again(h2, block.norm_2, eps, offset)
    dnormed = product.backward(dboth, normed, inner[2], block.gate_up, targets[2])
    dh2 = norm.rms_back_of(dnormed, again).add_(dout)
    dmade = dh2 if block.after_1 is None else norm.rms_back(dh2, given(kept.made_1), block.after_1, eps, offset)
    dmixed = product.backward(dmade, mixed, inner[1], block.out, targets[1])
    dqkv = _mix_back(dmixed, kept, block, turns, bounds, form)
    normed, again = norm.rms_again(h, block.norm_1, eps, offset)
    dnormed = product.backward(dqkv, normed, inner[0], block.qkv, targets[0])
    return norm.rms_back_of(dnormed, again).add_(dh2)


def _through(
    h: Tensor, block: Block, turns: Turns, bounds: Bounds, form: Form, *, to_the_end: bool
) -> tuple[Tensor | None, Kept]:
    """Everything that can be kept; the last product only where its result is wanted."""
    normed = norm.rms(h, block.norm_1, form.eps, form.offset)
    qkv, inner_qkv = product.forward(normed, block.qkv)
    q, k, v = _turned(qkv, block, turns, form)
    mixed, total = attend(q, k, v, bounds, form.rule)
    mixed = mixed.flatten(1)
    made_1, inner_out = product.forward(mixed, block.out)
    h2 = h + (made_1 if block.after_1 is None else norm.rms(made_1, block.after_1, form.eps, form.offset))
    both, inner_gate = product.forward(norm.rms(h2, block.norm_2, form.eps, form.offset), block.gate_up)
    out, made_2, inner_down = None, None, None
    if to_the_end or block.after_2 is not None:
        made_2, inner_down = product.forward(gate.gated(both, form.activation), block.down)
        out = h2 + (made_2 if block.after_2 is None else norm.rms(made_2, block.after_2, form.eps, form.offset))
    elif block.down.a is not None:
        inner_down = gate.gated(both, form.activation) @ block.down.a.T
    keep_1, keep_2 = (made_1 if block.after_1 is not None else None), (made_2 if block.after_2 is not None else None)
    inner = (inner_qkv, inner_out, inner_gate, inner_down)
    return out, Kept(h, qkv, mixed, total, h2, both, keep_1, keep_2, inner)


def _thin(kept: Kept, keep: Keep) -> Kept:
    if keep == "all":
        return kept
    return kept._replace(both=None, made_2=None) if keep == "attention" else Kept(kept.h)  # input, host


def _complete(kept: Kept, block: Block, turns: Turns, bounds: Bounds, form: Form) -> Kept:
    """Makes again what was not kept."""
    if kept.h2 is None:
        return _through(kept.h, block, turns, bounds, form, to_the_end=False)[1]
    if kept.both is not None:
        return kept
    normed = norm.rms(kept.h2, block.norm_2, form.eps, form.offset)
    both, _ = product.forward(normed, block.gate_up)
    if block.after_2 is None:
        return kept._replace(both=both)
    made_2, _ = product.forward(gate.gated(both, form.activation), block.down)
    return kept._replace(both=both, made_2=made_2)


def heads(x: Tensor, form: Form) -> Tensor:
    """tokens x width as tokens x heads x head."""
    return x.view(len(x), -1, form.head)


def _split(qkv: Tensor, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.split(qkv, [form.queries, form.keys, form.keys], dim=1)
    return heads(q, form), heads(k, form), heads(v, form)


def _turned(qkv: Tensor, block: Block, turns: Turns, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as attention takes them, from what the product made; not normed, they stand in it."""
    cos, sin = turns.each()
    q, k, v = _split(qkv, form)
    if block.norm_q is None or block.norm_k is None:
        rotary.rotate_(_both(qkv, form), cos, sin)
        return q, k, v
    q, k = norm.rms(q, block.norm_q, form.eps, form.offset), norm.rms(k, block.norm_k, form.eps, form.offset)
    return rotary.rotate_(q, cos, sin), rotary.rotate_(k, cos, sin), v


def _both(qkv: Tensor, form: Form) -> Tensor:
    """The heads of queries and keys together."""
    return heads(qkv[:, : form.queries + form.keys], form)


def _mix_back(dmixed: Tensor, kept: Kept, block: Block, turns: Turns, bounds: Bounds, form: Form) -> Tensor:
    """From the gradient to attention's output to that to the joined queries, keys and values."""
    qkv, mixed, total = given(kept.qkv), given(kept.mixed), given(kept.total)
    raw_q, raw_k, v = _split(qkv, form)
    q, k = (raw_q, raw_k) if block.norm_q is None else _turned(qkv, block, turns, form)[:2]
    dqkv = torch.empty_like(qkv)
    into = _split(dqkv, form)
    made = attend_back(heads(dmixed, form), q, k, v, heads(mixed, form), total, bounds, form.rule, into)
    for part, gradient in zip(into, made, strict=True):
        if part is not gradient:
            part.copy_(gradient)
    rotary.rotate_back_(_both(dqkv, form), *turns.each())
    if block.norm_q is not None and block.norm_k is not None:
        into[0].copy_(norm.rms_back(into[0], raw_q, block.norm_q, form.eps, form.offset))
        into[1].copy_(norm.rms_back(into[1], raw_k, block.norm_k, form.eps, form.offset))
    return dqkv


def given(x: Tensor | None) -> Tensor:
    """`x`, which is there."""
    if x is None:
        raise AssertionError("a tensor that should have been kept is missing")
    return x
