"""Examples in, batches out: which rows make a step, which rows make a micro-batch, and the padded arrays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import ModelError
from tunesmith.prompt.tokens import Example

Numbers: TypeAlias = NDArray[np.int64]
IGNORED = -100  # torch's cross_entropy skips this label


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch as lists, each rows x longest: token ids, 1 where a token is, labels (-100: not learnt)."""

    ids: list[list[int]]
    mask: list[list[int]]
    labels: list[list[int]]

    @property
    def learnt(self) -> int:
        """Tokens that the loss is taken on. The first token of a row has nothing before it to predict it."""
        return sum(label != IGNORED for row in self.labels for label in row[1:])

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(map(sum, self.mask))


def collate(examples: Sequence[Example], pad: int, *, multiple: int = 1) -> Batch:
    """Pads on the right; labels of padding are never learnt, whatever its token."""
    longest = -(-max(map(len, examples)) // multiple) * multiple
    ids, mask, labels = [], [], []
    for example in examples:
        gap = longest - len(example)
        ids.append([*example.ids, *[pad] * gap])
        mask.append([1] * len(example) + [0] * gap)
        known = [index if learnt else IGNORED for index, learnt in zip(example.ids, example.learnt, strict=True)]
        labels.append(known + [IGNORED] * gap)
    return Batch(ids, mask, labels)


@dataclass(frozen=True)
class Packed:
    """Examples one behind the other in one flat row, none of them seeing another; arrays of 64-bit integers.

    `places` count from 0 in each example; `starts` are where the examples begin, and the row's length; `chosen` are the
    tokens whose successor is learnt, `targets` those successors. Padding stands at the end as examples that learn
    nothing; a padded `chosen` has the target -100.
    """

    ids: Numbers
    places: Numbers
    starts: Numbers
    chosen: Numbers
    targets: Numbers
    tokens: int  # that are not padding

    @property
    def learnt(self) -> int:
        """Tokens that the loss is taken on."""
        return int((self.targets != IGNORED).sum())


def packed(examples: Sequence[Example], pad: int, *, size: Size | None = None) -> Packed:
    """`examples` in one flat row; with a `size`, padded to it."""
    ids = [np.array(example.ids, dtype=np.int64) for example in examples]
    lengths = [len(each) for each in ids]
    tokens = sum(lengths)
    chosen, targets, first = [], [], 0
    for example, each in zip(examples, ids, strict=True):
        wanted = np.flatnonzero(np.array(example.learnt[1:], dtype=bool))
        chosen.append(first + wanted)
        targets.append(each[wanted + 1])
        first += len(each)
    learnt = sum(map(len, chosen))
    if size is not None:
        gap = size.tokens - tokens
        ids.append(np.full(gap, pad, dtype=np.int64))
        lengths += [min(size.longest, gap - start) for start in range(0, gap, size.longest)]
        lengths += [0] * (size.examples - len(lengths))
        chosen.append(np.zeros(size.learnt - learnt, dtype=np.int64))
        targets.append(np.full(size.learnt - learnt, IGNORED, dtype=np.int64))
        if len(lengths) > size.examples:
            raise AssertionError("a micro-batch is larger than its size")
    places = np.concatenate([np.arange(length) for length in lengths])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Packed(np.concatenate(ids), places, starts, np.concatenate(chosen), np.concatenate(targets), tokens)


@dataclass(frozen=True)
class Size:
    """The constant shape of packed micro-batches: tokens, examples (padding's too), learnt tokens, longest example."""

    tokens: int
    examples: int
    learnt: int
    longest: int

    def holds(self, packed: Packed) -> bool:
        """Whether `packed`, made without padding, fits."""
        return self.fits(packed.tokens, len(packed.starts) - 1, len(packed.chosen))

    def fits(self, tokens: int, examples: int, learnt: int) -> bool:
        """Whether a micro-batch of so many of them fits."""
        gaps = -(-(self.tokens - tokens) // self.longest)
        return tokens <= self.tokens and examples + gaps <= self.examples and learnt <= self.learnt


def sizes(
    shapes: Sequence[tuple[int, int, int]], longest: int, many: int, *, step: int = 64, cost: float = 0.0
) -> list[Size]:
    """At most `many` sizes, ascending, that hold micro-batches of the given (tokens, examples, learnt tokens).

    They are chosen so that all micro-batches together have the fewest tokens, padding included, each size itself
    counted as `cost` micro-batches: of token counts in ascending order each size takes neighbours, so the division is
    found by dynamic programming over counts rounded up to `step`.
    """
    held: dict[int, list[tuple[int, int, int]]] = {}
    for shape in shapes:
        held.setdefault(-(-shape[0] // step) * step, []).append(shape)
    tops = sorted(held)
    weight = [len(held[top]) for top in tops]
    best = [[0.0] * (len(tops) + 1)] + [[float("inf")] * (len(tops) + 1) for _ in range(many)]
    best[0][1:] = [float("inf")] * len(tops)
    cut = [[0] * (len(tops) + 1) for _ in range(many + 1)]
    for count in range(1, many + 1):
        for end in range(1, len(tops) + 1):
            rows = 0
            for start in range(end - 1, -1, -1):
                rows += weight[start]
                total = best[count - 1][start] + (rows + cost) * tops[end - 1]
                if total < best[count][end]:
                    best[count][end], cut[count][end] = total, start
    count = min(range(1, many + 1), key=lambda each: (best[each][-1], each))
    made, end = [], len(tops)
    while end:
        start = cut[count][end]
        inside = [shape for top in tops[start:end] for shape in held[top]]
        tokens = tops[end - 1]
        gaps = -(-(tokens - min(shape[0] for shape in inside)) // longest)
        learnt = max(shape[2] for shape in inside)
        made.append(Size(tokens, max(shape[1] for shape in inside) + gaps, -(-learnt // step) * step, longest))
        end, count = start, count - 1
    return made[::-1]


def bins(rows: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """A step's rows in micro-batches of at most `room` tokens, best fit, longest first (at most 11/9 of the fewest + 1,
    Johnson 1973). A row longer than `room` stands alone. Rows keep their order within a micro-batch.
    """
    made: list[list[int]] = []
    left: list[int] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        fits = [index for index, gap in enumerate(left) if gap >= lengths[row]]
        if fits:
            place = min(fits, key=lambda index: (left[index], index))
            made[place].append(row)
            left[place] -= lengths[row]
        else:
            made.append([row])
            left.append(room - lengths[row])
    order = {row: place for place, row in enumerate(rows)}
    return [sorted(each, key=order.__getitem__) for each in made]


def check_batch(batch: Batch, stop: int) -> None:
    """Refuses a batch in which padding is learnt or an answer's stop token is not.

    Raises ModelError.
    """
    for ids, mask, labels in zip(batch.ids, batch.mask, batch.labels, strict=True):
        if any(label != IGNORED and not real for label, real in zip(labels, mask, strict=True)):
            raise ModelError("padding would be learnt", next="This setup cannot be trained; change prompt.template")
        if not any(label == stop and index == stop for label, index in zip(labels, ids, strict=True)):
            raise ModelError(
                "an answer's stop token would not be learnt, so the model would run on",
                next="End each answer with {{ eos_token }} in prompt.template",
            )


def steps(lengths: Sequence[int], batch: str, seed: int, epoch: int) -> list[list[int]]:
    """The rows of each optimizer step of one epoch, shuffled by seed and epoch.

    `batch` is 'N rows' or 'N tokens' (as many rows as fit, at least one).
    """
    size, unit = int(batch.split()[0]), batch.split()[1]
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311  (order, not secrecy)
    if unit == "rows":
        return [order[start : start + size] for start in range(0, len(order), size)]
    made: list[list[int]] = []
    room = 0
    for index in order:
        if not made or lengths[index] > room:
            made.append([])
            room = size
        made[-1].append(index)
        room -= lengths[index]
    return made


def micro_batches(rows: Sequence[int], lengths: Sequence[int], max_tokens: int, *, overhead: int) -> list[list[int]]:
    """Splits a step's rows into the micro-batches that cost least, each of at most `max_tokens` padded tokens.

    A micro-batch costs its padded tokens and `overhead`, what starting it costs in tokens. A row longer than the limit
    stands alone. Of rows in ascending length an optimal division has neighbours together, so it is found by dynamic
    programming over the places to cut: n^2 for n rows.
    """
    order = sorted(rows, key=lambda row: (lengths[row], row))
    best = [0.0] + [float("inf")] * len(order)  # the cost of the first n rows
    cut = [0] * (len(order) + 1)  # and where their last micro-batch begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        for start in range(end - 1, -1, -1):
            padded = (end - start) * longest
            if padded > max_tokens and start < end - 1:
                break
            if best[start] + padded + overhead < best[end]:
                best[end], cut[end] = best[start] + padded + overhead, start
    made: list[list[int]] = []
    end = len(order)
    while end:
        made.append(order[cut[end] : end])
        end = cut[end]
    return made[::-1]
