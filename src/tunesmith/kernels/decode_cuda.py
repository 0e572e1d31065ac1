"""`decode.py`'s functions on a card with Triton: the same contract over `block_cuda`'s forward."""

from __future__ import annotations

from torch import Tensor

from tunesmith.kernels import block_cuda, triton_cache
from tunesmith.kernels.attention import AttentionRule, SequenceBounds, attend
from tunesmith.kernels.block import RopeTables
from tunesmith.kernels.block_cuda import Mix
from tunesmith.kernels.decode import Cache, Stack


def read(h: Tensor, stack: Stack, slot: int, bounds: SequenceBounds) -> Tensor:
    """See `decode.read`."""
    places = bounds.starts.new_tensor(range(len(h))).long()
    turns = [RopeTables(*table.text(len(h)), places) for table in stack.tables]
    for block, form, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        h = block_cuda.write(h, block, turns[form.table], form, _read(cache, slot, bounds, form.rule))
    return h


def write(h: Tensor, stack: Stack, places: Tensor) -> Tensor:
    """See `decode.write`. A slot's keys are read up to its place, whatever the cache's room."""
    turns = [RopeTables(table.cos, table.sin, table.next_rows(places)) for table in stack.tables]
    for block, form, cache in zip(stack.blocks, stack.forms, stack.caches, strict=True):
        h = block_cuda.write(h, block, turns[form.table], form, _write(cache, places, form.rule))
    return h


def _read(cache: Cache, slot: int, bounds: SequenceBounds, rule: AttentionRule) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        cache.keys[slot, :, : len(k)] = k.transpose(0, 1)
        cache.values[slot, :, : len(v)] = v.transpose(0, 1)
        return attend(q, k, v, bounds, rule)

    return mix


def _write(cache: Cache, places: Tensor, rule: AttentionRule) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        made = triton_cache.attend(q, k, v, cache.keys, cache.values, places, rule.scale, rule.window)
        return made, made

    return mix
