"""Examples in, batches out: which rows make a step, which rows make a micro-batch, and the padded arrays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.errors import ModelError
from tunesmith.prompt.tokens import Example

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
