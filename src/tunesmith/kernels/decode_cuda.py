"""The functions of `decode.py` on a GPU with Triton, with `block_cuda`'s forward."""

from __future__ import annotations

from torch import Tensor

from tunesmith.kernels import block_cuda, triton_cache
from tunesmith.kernels.attention import AttentionRule, SequenceBounds, attend
from tunesmith.kernels.block import RopeTables
from tunesmith.kernels.block_cuda import Attend
from tunesmith.kernels.decode import Cache, Stack


def read(h: Tensor, stack: Stack, slot: int, bounds: SequenceBounds) -> Tensor:
    """Prefills a slot; see `decode.read`."""
    positions = bounds.starts.new_tensor(range(len(h))).long()
    rope_tables = [RopeTables(*table.text(len(h)), positions) for table in stack.tables]
    for block, shape, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        h = block_cuda.forward_only(
            h, block, rope_tables[shape.table], shape, _prompt_attention(cache, slot, bounds, shape.rule)
        )
    return h


def write(h: Tensor, stack: Stack, positions: Tensor) -> Tensor:
    """Runs one new token per slot; see `decode.write`. Reads a slot's keys up to its position only."""
    rope_tables = [RopeTables(table.cos, table.sin, table.next_rows(positions)) for table in stack.tables]
    for block, shape, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        h = block_cuda.forward_only(
            h, block, rope_tables[shape.table], shape, _token_attention(cache, positions, shape.rule)
        )
    return h


def _prompt_attention(cache: Cache, slot: int, bounds: SequenceBounds, rule: AttentionRule) -> Attend:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        cache.keys[slot, :, : len(k)] = k.transpose(0, 1)
        cache.values[slot, :, : len(v)] = v.transpose(0, 1)
        return attend(q, k, v, bounds, rule)

    return mix


def _token_attention(cache: Cache, positions: Tensor, rule: AttentionRule) -> Attend:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out = triton_cache.attend(q, k, v, cache.keys, cache.values, positions, rule.scale, rule.window)
        return out, out

    return mix
