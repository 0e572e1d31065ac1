"""One decoder block over a flat row of packed tokens: the forward and a hand-written backward.

h2 = h + attention(norm(h)), out = h2 + mlp(norm(h2)), with norms after both parts (Gemma 2 to 4), norms of queries and
keys (Qwen 3, Gemma 3 and 4), norms of values and a scalar times the output (Gemma 4) if the family has them. Cheap
parts (norms, the gated product) are recomputed in the backward; `keep` says which of the expensive tensors are saved.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tunesmith.kernels import lora_linear, ops
from tunesmith.kernels.attention import AttentionRule, SequenceBounds, attend, attend_back
from tunesmith.kernels.lora_linear import GradientTarget, JoinedLinear

Keep = Literal["all", "attention", "input", "host"]  # host: the input is offloaded to host memory


class BlockShape(NamedTuple):
    """Constants of a block. `queries` and `keys` are the widths of all their heads together.

    `table` is the index of the block's RoPE table. With `shared_values` there is no value projection: the keys before
    their norm and rotation are also the values.
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
    """Tensors of a block. `after_*` are the norms after attention and MLP; `scalar` multiplies the block's output."""

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
    """What a forward saved for its backward; a tensor that is None is recomputed from `h`."""

    h: Tensor
    qkv: Tensor | None = None  # before rotation if queries are normalized, otherwise rotated
    mixed: Tensor | None = None
    lse: Tensor | None = None
    h2: Tensor | None = None
    gate_up: Tensor | None = None
    attn_out: Tensor | None = None  # before the norms after both parts
    mlp_out: Tensor | None = None
    inner: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None, None, None, None)


class RopeTables(NamedTuple):
    """cos and sin (rows x rotated width), and each token's row, which is its position in its example."""

    cos: Tensor
    sin: Tensor
    position_ids: Tensor

    def cos_sin(self) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of each token (tokens x rotated width)."""
        return self.cos[self.position_ids], self.sin[self.position_ids]


Targets = tuple[GradientTarget, GradientTarget, GradientTarget, GradientTarget]


class BlockKernels(Protocol):
    """A module that computes decoder blocks: this one, or block_cuda."""

    def forward(
        self, h: Tensor, block: Block, rope_tables: RopeTables, bounds: SequenceBounds, shape: BlockShape, keep: Keep
    ) -> tuple[Tensor, SavedActivations]:
        """Returns the block's output and the saved activations."""
        ...

    def backward(
        self,
        dout: Tensor,
        stack: list[SavedActivations],
        block: Block,
        rope_tables: RopeTables,
        bounds: SequenceBounds,
        shape: BlockShape,
        targets: Targets,
    ) -> Tensor:
        """Returns the gradient of the block's input."""
        ...


def forward(
    h: Tensor, block: Block, rope_tables: RopeTables, bounds: SequenceBounds, shape: BlockShape, keep: Keep
) -> tuple[Tensor, SavedActivations]:
    """Returns the block's output for `h` (tokens x hidden) and the saved activations."""
    out, saved = _forward_all(h, block, rope_tables, bounds, shape, with_output=True)
    return not_none(out), _drop_recomputed(saved, keep)


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
    h, h2, gate_up_out, mixed, inner = (
        saved.h,
        not_none(saved.h2),
        not_none(saved.gate_up),
        not_none(saved.mixed),
        saved.inner,
    )
    eps, offset = shape.eps, shape.offset
    dout = dout if block.scalar is None else dout * block.scalar
    dpart = dout if block.after_2 is None else ops.rms_back(dout, not_none(saved.mlp_out), block.after_2, eps, offset)
    dactivated, dinner = lora_linear.input_gradient(dpart, block.down)
    dgate_up, activated = ops.gated_backward(dactivated, gate_up_out, shape.activation)
    lora_linear.accumulate_gradients(targets[3], dpart, activated, inner[3], dinner)
    normed, saved_norm = ops.rms_with_saved(h2, block.norm_2, eps, offset)
    dnormed = lora_linear.backward(dgate_up, normed, inner[2], block.gate_up, targets[2])
    dh2 = ops.rms_backward_from_saved(dnormed, saved_norm).add_(dout)
    dpart = dh2 if block.after_1 is None else ops.rms_back(dh2, not_none(saved.attn_out), block.after_1, eps, offset)
    dmixed = lora_linear.backward(dpart, mixed, inner[1], block.out, targets[1])
    dqkv = _attention_backward(dmixed, saved, block, rope_tables, bounds, shape)
    normed, saved_norm = ops.rms_with_saved(h, block.norm_1, eps, offset)
    dnormed = lora_linear.backward(dqkv, normed, inner[0], block.qkv, targets[0])
    return ops.rms_backward_from_saved(dnormed, saved_norm).add_(dh2)


def _forward_all(
    h: Tensor, block: Block, rope_tables: RopeTables, bounds: SequenceBounds, shape: BlockShape, *, with_output: bool
) -> tuple[Tensor | None, SavedActivations]:
    """Returns the output and everything that can be saved; without `with_output` it skips the last product."""
    normed = ops.rms(h, block.norm_1, shape.eps, shape.offset)
    qkv, inner_qkv = lora_linear.forward(normed, block.qkv)
    q, k, v = _rotated_qkv(qkv, block, rope_tables, shape)
    mixed, lse = attend(q, k, v, bounds, shape.rule)
    mixed = mixed.flatten(1)
    attn_out, inner_out = lora_linear.forward(mixed, block.out)
    h2 = h + (attn_out if block.after_1 is None else ops.rms(attn_out, block.after_1, shape.eps, shape.offset))
    gate_up_out, inner_gate = lora_linear.forward(ops.rms(h2, block.norm_2, shape.eps, shape.offset), block.gate_up)
    out, mlp_out, inner_down = None, None, None
    if with_output or block.after_2 is not None:
        mlp_out, inner_down = lora_linear.forward(ops.gated(gate_up_out, shape.activation), block.down)
        out = h2 + (mlp_out if block.after_2 is None else ops.rms(mlp_out, block.after_2, shape.eps, shape.offset))
        out = out if block.scalar is None else out.mul_(block.scalar)
    elif block.down.a is not None:
        inner_down = ops.gated(gate_up_out, shape.activation) @ block.down.a.T
    kept_attn_out, kept_mlp_out = (
        (attn_out if block.after_1 is not None else None),
        (mlp_out if block.after_2 is not None else None),
    )
    inner = (inner_qkv, inner_out, inner_gate, inner_down)
    return out, SavedActivations(h, qkv, mixed, lse, h2, gate_up_out, kept_attn_out, kept_mlp_out, inner)


def _drop_recomputed(saved: SavedActivations, keep: Keep) -> SavedActivations:
    if keep == "all":
        return saved
    return saved._replace(gate_up=None) if keep == "attention" else SavedActivations(saved.h)  # input, host


def _recompute(
    saved: SavedActivations, block: Block, rope_tables: RopeTables, bounds: SequenceBounds, shape: BlockShape
) -> SavedActivations:
    """Recomputes what was not saved."""
    if saved.h2 is None:
        return _forward_all(saved.h, block, rope_tables, bounds, shape, with_output=False)[1]
    if saved.gate_up is not None:
        return saved
    normed = ops.rms(saved.h2, block.norm_2, shape.eps, shape.offset)
    return saved._replace(gate_up=lora_linear.forward(normed, block.gate_up)[0])


def heads(x: Tensor, shape: BlockShape) -> Tensor:
    """Returns tokens x width as tokens x heads x head."""
    return x.view(len(x), -1, shape.head)


def split(qkv: Tensor, shape: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    """Returns views of queries, keys and values (tokens x heads x head); shared values are the keys."""
    q, k = qkv[:, : shape.queries], qkv[:, shape.queries : shape.queries + shape.keys]
    v = k if shape.shared_values else qkv[:, shape.queries + shape.keys :]
    return heads(q, shape), heads(k, shape), heads(v, shape)


def _rotated_qkv(
    qkv: Tensor, block: Block, rope_tables: RopeTables, shape: BlockShape
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns normalized and rotated queries, keys and values; without norms they are rotated in place in `qkv`."""
    cos, sin = rope_tables.cos_sin()
    if block.norm_q is None:
        ops.rotate_(_queries_and_keys(qkv, shape), cos, sin)
        return split(qkv, shape)
    q, k, v = normed_qkv(qkv, block, shape)
    return ops.rotate_(q, cos, sin), ops.rotate_(k, cos, sin), v


def normed_qkv(qkv: Tensor, block: Block, shape: BlockShape) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values, each in a new tensor after its norm if the block has one."""
    q, k, v = split(qkv, shape)
    if block.norm_q is None:
        return q, k, v
    q, k_normed = (ops.rms(x, w, shape.eps, shape.offset) for x, w in ((q, block.norm_q), (k, not_none(block.norm_k))))
    return q, k_normed, ops.rms(v, None, shape.eps, 0.0) if shape.norm_values else v


def _queries_and_keys(qkv: Tensor, shape: BlockShape) -> Tensor:
    """Returns the heads of queries and keys together."""
    return heads(qkv[:, : shape.queries + shape.keys], shape)


def _attention_backward(
    dmixed: Tensor,
    saved: SavedActivations,
    block: Block,
    rope_tables: RopeTables,
    bounds: SequenceBounds,
    shape: BlockShape,
) -> Tensor:
    """Returns the gradient of `qkv` from that of attention's output."""
    qkv, mixed, lse = not_none(saved.qkv), not_none(saved.mixed), not_none(saved.lse)
    raw_q, raw_k, raw_v = split(qkv, shape)
    q, k, v = (raw_q, raw_k, raw_v) if block.norm_q is None else _rotated_qkv(qkv, block, rope_tables, shape)
    dqkv = torch.empty_like(qkv)
    destinations = split(dqkv, shape)
    destinations = (*destinations[:2], torch.empty_like(v)) if shape.shared_values else destinations
    gradients = attend_back(heads(dmixed, shape), q, k, v, heads(mixed, shape), lse, bounds, shape.rule, destinations)
    for part, gradient in zip(destinations, gradients, strict=True):
        if part is not gradient:
            part.copy_(gradient)
    ops.rotate_backward_(_queries_and_keys(dqkv, shape), *rope_tables.cos_sin())
    if block.norm_q is not None and block.norm_k is not None:
        destinations[0].copy_(ops.rms_back(destinations[0], raw_q, block.norm_q, shape.eps, shape.offset))
        destinations[1].copy_(ops.rms_back(destinations[1], raw_k, block.norm_k, shape.eps, shape.offset))
    if shape.norm_values:
        destinations[2].copy_(ops.rms_back(destinations[2], raw_v, None, shape.eps, 0.0))
    if shape.shared_values:
        destinations[1].add_(destinations[2])
    return dqkv


def not_none(x: Tensor | None) -> Tensor:
    """Returns `x`. Raises AssertionError if it is None."""
    if x is None:
        raise AssertionError("a tensor that should have been saved is missing")
    return x
