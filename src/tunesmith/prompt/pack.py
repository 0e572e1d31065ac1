"""Divides rows into optimizer steps and micro-batches, and pads or packs a micro-batch into arrays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import ModelError
from tunesmith.prompt.tokens import Example

IntArray: TypeAlias = NDArray[np.int64]
IGNORE_INDEX = -100  # torch's cross_entropy skips this label


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch as lists of rows x longest: token ids, attention mask, labels (-100: no loss)."""

    ids: list[list[int]]
    mask: list[list[int]]
    labels: list[list[int]]

    @property
    def loss_tokens(self) -> int:
        """The number of tokens with loss. A row's first token has none: nothing before it predicts it."""
        return sum(label != IGNORE_INDEX for row in self.labels for label in row[1:])

    @property
    def tokens(self) -> int:
        """The number of tokens without padding."""
        return sum(map(sum, self.mask))


def collate(examples: Sequence[Example], pad: int, *, multiple: int = 1) -> Batch:
    """Pads examples on the right to a multiple of `multiple`. Padding carries no loss, whatever its token."""
    longest = -(-max(map(len, examples)) // multiple) * multiple
    ids, mask, labels = [], [], []
    for example in examples:
        gap = longest - len(example)
        ids.append([*example.ids, *[pad] * gap])
        mask.append([1] * len(example) + [0] * gap)
        row_labels = [
            index if has_loss else IGNORE_INDEX for index, has_loss in zip(example.ids, example.loss_mask, strict=True)
        ]
        labels.append(row_labels + [IGNORE_INDEX] * gap)
    return Batch(ids, mask, labels)


@dataclass(frozen=True)
class PackedBatch:
    """Examples concatenated into one row, for attention that does not cross examples; 64-bit integer arrays.

    `places` are the position ids, from 0 in each example. `starts` are the cumulative lengths (cu_seqlens: 0, …, the
    row's length). `chosen` are the indices of tokens whose successor carries loss, `targets` those successors. Padding
    is added at the end as examples without loss; a padded `chosen` has the target -100.
    """

    ids: IntArray
    places: IntArray
    starts: IntArray
    chosen: IntArray
    targets: IntArray
    tokens: int  # without padding

    @property
    def loss_tokens(self) -> int:
        """The number of tokens with loss."""
        return int((self.targets != IGNORE_INDEX).sum())


def pack_examples(examples: Sequence[Example], pad: int, *, size: PackedShape | None = None) -> PackedBatch:
    """Packs `examples` into one row; with a `size`, padded to it."""
    ids = [np.array(example.ids, dtype=np.int64) for example in examples]
    lengths = [len(example_ids) for example_ids in ids]
    tokens = sum(lengths)
    loss_positions, targets, offset = [], [], 0
    for example, example_ids in zip(examples, ids, strict=True):
        positions = np.flatnonzero(np.array(example.loss_mask[1:], dtype=bool))
        loss_positions.append(offset + positions)
        targets.append(example_ids[positions + 1])
        offset += len(example_ids)
    loss_tokens = sum(map(len, loss_positions))
    if size is not None:
        padding = size.tokens - tokens
        ids.append(np.full(padding, pad, dtype=np.int64))
        lengths += [min(size.longest, padding - start) for start in range(0, padding, size.longest)]
        lengths += [0] * (size.examples - len(lengths))
        loss_positions.append(np.zeros(size.loss_tokens - loss_tokens, dtype=np.int64))
        targets.append(np.full(size.loss_tokens - loss_tokens, IGNORE_INDEX, dtype=np.int64))
        if len(lengths) > size.examples:
            raise AssertionError("a micro-batch is larger than its size")
    position_ids = np.concatenate([np.arange(length) for length in lengths])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    return PackedBatch(
        np.concatenate(ids), position_ids, cu_seqlens, np.concatenate(loss_positions), np.concatenate(targets), tokens
    )


@dataclass(frozen=True)
class PackedShape:
    """A fixed shape of packed micro-batches: tokens, examples with those of padding, tokens with loss, longest."""

    tokens: int
    examples: int
    loss_tokens: int
    longest: int

    def holds(self, packed: PackedBatch) -> bool:
        """Whether `pack_examples`, which has no padding, fits."""
        return self.fits(packed.tokens, len(packed.starts) - 1, len(packed.chosen))

    def fits(self, tokens: int, examples: int, loss_tokens: int) -> bool:
        """Whether a micro-batch with these counts fits."""
        gaps = -(-(self.tokens - tokens) // self.longest)
        return tokens <= self.tokens and examples + gaps <= self.examples and loss_tokens <= self.loss_tokens


def packed_shapes(
    shapes: Sequence[tuple[int, int, int]], longest: int, max_count: int, *, step: int = 64, cost: float = 0.0
) -> list[PackedShape]:
    """Returns at most `max_count` sizes, ascending, for micro-batches of (tokens, examples, tokens with loss).

    They minimize the tokens of all micro-batches, padding included, where each size costs as much as `cost`
    micro-batches of it. Each size covers a range of token counts, so dynamic programming over the counts, rounded up to
    `step`, finds the optimum.
    """
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for shape in shapes:
        groups.setdefault(-(-shape[0] // step) * step, []).append(shape)
    tops = sorted(groups)
    weight = [len(groups[top]) for top in tops]
    best = [[0.0] * (len(tops) + 1)] + [[float("inf")] * (len(tops) + 1) for _ in range(max_count)]
    best[0][1:] = [float("inf")] * len(tops)
    cut = [[0] * (len(tops) + 1) for _ in range(max_count + 1)]
    for count in range(1, max_count + 1):
        for end in range(1, len(tops) + 1):
            rows = 0
            for start in range(end - 1, -1, -1):
                rows += weight[start]
                total = best[count - 1][start] + (rows + cost) * tops[end - 1]
                if total < best[count][end]:
                    best[count][end], cut[count][end] = total, start
    count = min(range(1, max_count + 1), key=lambda index: (best[index][-1], index))
    result, end = [], len(tops)
    while end:
        start = cut[count][end]
        inside = [shape for top in tops[start:end] for shape in groups[top]]
        tokens = tops[end - 1]
        gaps = -(-(tokens - min(shape[0] for shape in inside)) // longest)
        loss_tokens = max(shape[2] for shape in inside)
        result.append(
            PackedShape(tokens, max(shape[1] for shape in inside) + gaps, -(-loss_tokens // step) * step, longest)
        )
        end, count = start, count - 1
    return result[::-1]


def best_fit_batches(rows: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Splits a step's rows into micro-batches of at most `max_tokens` tokens, by best-fit decreasing.

    That needs at most 11/9 of the fewest micro-batches, plus one (Johnson 1973). A row longer than `max_tokens` gets a
    micro-batch of its own. Rows keep their order within a micro-batch.
    """
    batches: list[list[int]] = []
    free: list[int] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        fits = [index for index, gap in enumerate(free) if gap >= lengths[row]]
        if fits:
            chosen_batch = min(fits, key=lambda index: (free[index], index))
            batches[chosen_batch].append(row)
            free[chosen_batch] -= lengths[row]
        else:
            batches.append([row])
            free.append(max_tokens - lengths[row])
    order = {row: chosen_batch for chosen_batch, row in enumerate(rows)}
    return [sorted(batch, key=order.__getitem__) for batch in batches]


def check_batch(batch: Batch, stop: int) -> None:
    """Raises ModelError if padding carries loss or an answer's stop token carries none."""
    for ids, mask, labels in zip(batch.ids, batch.mask, batch.labels, strict=True):
        if any(label != IGNORE_INDEX and not real for label, real in zip(labels, mask, strict=True)):
            raise ModelError("padding would carry loss", next="Use another prompt.template")
        if not any(label == stop and index == stop for label, index in zip(labels, ids, strict=True)):
            raise ModelError(
                "an answer's stop token would carry no loss, so the model would not learn to stop",
                next="End each answer with {{ eos_token }} in prompt.template",
            )


def epoch_steps(lengths: Sequence[int], batch: str, seed: int, epoch: int) -> list[list[int]]:
    """Returns the rows of each optimizer step of one epoch, shuffled by seed and epoch.

    `batch` is 'N rows' or 'N tokens' (as many rows as fit, at least one).
    """
    size, unit = int(batch.split()[0]), batch.split()[1]
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311  (order, not secrecy)
    if unit == "rows":
        return [order[start : start + size] for start in range(0, len(order), size)]
    batches: list[list[int]] = []
    free = 0
    for index in order:
        if not batches or lengths[index] > free:
            batches.append([])
            free = size
        batches[-1].append(index)
        free -= lengths[index]
    return batches


def micro_batches(rows: Sequence[int], lengths: Sequence[int], max_tokens: int, *, overhead: int) -> list[list[int]]:
    """Splits a step's rows into the cheapest micro-batches, each of at most `max_tokens` padded tokens.

    A micro-batch costs its padded tokens plus `overhead`, the cost of starting it in tokens. A row longer than the
    limit gets a micro-batch of its own. An optimal split keeps rows of neighboring lengths together, so dynamic
    programming over the cuts between sorted rows finds it in n² steps for n rows.
    """
    order = sorted(rows, key=lambda row: (lengths[row], row))
    best = [0.0] + [float("inf")] * len(order)  # cost of the first n rows
    cut = [0] * (len(order) + 1)  # index at which their last micro-batch begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        for start in range(end - 1, -1, -1):
            padded = (end - start) * longest
            if padded > max_tokens and start < end - 1:
                break
            if best[start] + padded + overhead < best[end]:
                best[end], cut[end] = best[start] + padded + overhead, start
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[cut[end] : end])
        end = cut[end]
    return batches[::-1]
