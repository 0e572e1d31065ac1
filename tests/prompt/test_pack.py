"""Optimizer steps, micro-batches, and padded and packed batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import ModelError
from tunesmith.prompt import pack
from tunesmith.prompt.pack import IGNORE_INDEX, Batch, check_batch, collate, epoch_steps, micro_batches
from tunesmith.prompt.tokens import Example

X, STOP, PAD = IGNORE_INDEX, 9, 0
SHORT = Example("a", (1, 2, STOP), (False, True, True), STOP)
LONG = Example("b", (3, 4, 5, 6, STOP, 7), (False, False, False, True, True, False), STOP)
ALL = Example("c", (1, 2, STOP), (True, True, True), STOP)
LENGTHS = st.lists(st.integers(1, 40), max_size=60)


def test_rows_are_padded_on_the_right_to_the_longest() -> None:
    batch = collate([SHORT, LONG], PAD)
    assert batch.ids == [[1, 2, STOP, PAD, PAD, PAD], [3, 4, 5, 6, STOP, 7]]
    assert batch.mask == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch.labels == [[X, 2, STOP, X, X, X], [X, X, X, 6, STOP, X]]
    assert (batch.loss_tokens, batch.tokens) == (4, 9)


@pytest.mark.parametrize(("multiple", "width"), [(1, 6), (4, 8), (6, 6), (7, 7), (16, 16)])
def test_the_width_is_the_next_multiple(multiple: int, width: int) -> None:
    batch = collate([SHORT, LONG], PAD, multiple=multiple)
    assert {len(row) for part in (batch.ids, batch.mask, batch.labels) for row in part} == {width}
    assert (batch.loss_tokens, batch.tokens) == (4, 9)


def test_a_rows_first_token_is_not_counted_as_a_token_with_loss() -> None:
    batch = collate([ALL], PAD)
    assert batch.labels == [[1, 2, STOP]]
    assert batch.loss_tokens == 2


def test_padding_with_a_token_that_carries_loss_elsewhere_carries_none() -> None:
    batch = collate([SHORT, LONG], STOP)
    assert batch.labels[0] == [X, 2, STOP, X, X, X]
    check_batch(batch, STOP)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch([[1, 2, STOP, PAD]], [[1, 1, 1, 0]], [[X, 2, STOP, PAD]]), "padding would carry loss"),
        (Batch([[1, 2, STOP, STOP]], [[1, 1, 1, 0]], [[X, 2, STOP, STOP]]), "padding would carry loss"),
        (Batch([[1, 2, STOP]], [[1, 1, 1]], [[X, 2, X]]), "stop token would carry no loss"),
        (Batch([[1, 2, 3]], [[1, 1, 1]], [[X, 2, STOP]]), "stop token would carry no loss"),
        (
            Batch([[1, 2, STOP], [1, 2, STOP]], [[1, 1, 1]] * 2, [[X, 2, STOP], [X, 2, X]]),
            "stop token would carry no loss",
        ),
    ],
    ids=["padding", "padding that is the stop", "stop left out", "another label", "second row"],
)
def test_a_batch_with_wrong_labels_is_refused(batch: Batch, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_batch(batch, STOP)


@pytest.mark.parametrize(
    ("batch", "sizes"), [("4 rows", [4, 4, 2]), ("1 rows", [1] * 10), ("10 rows", [10]), ("64 rows", [10])]
)
def test_rows_a_step(batch: str, sizes: list[int]) -> None:
    result = epoch_steps([5] * 10, batch, seed=1, epoch=0)
    assert [len(step) for step in result] == sizes
    assert sorted(row for step in result for row in step) == list(range(10))


def test_tokens_a_step() -> None:
    assert [len(step) for step in epoch_steps([5] * 10, "17 tokens", seed=1, epoch=0)] == [3, 3, 3, 1]
    assert [len(step) for step in epoch_steps([5] * 10, "4 tokens", seed=1, epoch=0)] == [1] * 10  # at least one
    assert epoch_steps([], "17 tokens", seed=1, epoch=0) == epoch_steps([], "3 rows", seed=1, epoch=0) == []


@pytest.mark.parametrize("batch", ["3 rows", "50 tokens"])
def test_the_order_follows_seed_and_epoch(batch: str) -> None:
    lengths = [10] * 40
    first = epoch_steps(lengths, batch, seed=7, epoch=0)
    assert first == epoch_steps(lengths, batch, seed=7, epoch=0)
    others = [epoch_steps(lengths, batch, seed=seed, epoch=epoch) for seed, epoch in [(7, 1), (8, 0), (1, 7), (71, 0)]]
    assert first not in others
    assert len({str(other) for other in others}) == 4


def test_the_order_does_not_change_between_versions() -> None:
    assert epoch_steps([1] * 8, "4 rows", seed=7, epoch=0) == [[6, 3, 2, 1], [7, 0, 4, 5]]


@given(LENGTHS, st.integers(1, 60), st.sampled_from(["rows", "tokens"]), st.integers(0, 9), st.integers(0, 9))
def test_every_row_stands_in_one_step_and_steps_are_full(
    lengths: list[int], size: int, unit: str, seed: int, epoch: int
) -> None:
    result = epoch_steps(lengths, f"{size} {unit}", seed, epoch)
    assert sorted(row for step in result for row in step) == list(range(len(lengths)))
    weights = lengths if unit == "tokens" else [1] * len(lengths)
    sums = [sum(weights[row] for row in step) for step in result]
    assert all(weight <= size or len(step) == 1 for weight, step in zip(sums, result, strict=True))
    for weight, after in zip(sums, result[1:], strict=False):
        assert weight + weights[after[0]] > size  # the next row would not have fit


def cost(parts: list[list[int]], lengths: list[int], overhead: int) -> int:
    return sum(len(part) * max(lengths[row] for row in part) + overhead for part in parts)


def divisions(rows: list[int]) -> list[list[list[int]]]:
    """Returns every partition of `rows`."""
    if not rows:
        return [[]]
    first, *rest = rows
    partitions = []
    for parts in divisions(rest):
        partitions.append([[first], *parts])
        partitions += [[*parts[:place], [first, *part], *parts[place + 1 :]] for place, part in enumerate(parts)]
    return partitions


@given(LENGTHS, st.integers(1, 200), st.integers(0, 50))
def test_micro_batches_hold_each_row_once_within_the_limit(lengths: list[int], limit: int, overhead: int) -> None:
    rows = list(range(len(lengths)))[::-1]
    batches = micro_batches(rows, lengths, limit, overhead=overhead)
    assert sorted(row for part in batches for row in part) == sorted(rows)
    for part in batches:
        assert part
        assert len(part) * max(lengths[row] for row in part) <= limit or len(part) == 1
    assert batches == micro_batches(rows[::-1], lengths, limit, overhead=overhead)  # the rows' order does not matter


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 120), st.integers(0, 50))
def test_no_other_division_costs_less(lengths: list[int], limit: int, overhead: int) -> None:
    batches = micro_batches(range(len(lengths)), lengths, limit, overhead=overhead)
    allowed = [
        parts
        for parts in divisions(list(range(len(lengths))))
        if all(len(part) == 1 or len(part) * max(lengths[row] for row in part) <= limit for part in parts)
    ]
    assert cost(batches, lengths, overhead) == min(cost(parts, lengths, overhead) for parts in allowed)


def test_micro_batches_join_like_lengths() -> None:
    lengths = [9, 2, 9, 3, 2, 100]
    assert micro_batches([0, 1, 3, 4, 2], lengths, 18, overhead=5) == [[1, 4, 3], [0, 2]]
    assert micro_batches([5, 1], lengths, 18, overhead=5) == [[1], [5]]  # a row longer than the limit stands alone
    assert micro_batches([], lengths, 18, overhead=5) == []
    assert micro_batches([0, 1, 3, 4, 2], lengths, 1000, overhead=1) == [[1, 4], [3], [0, 2]]  # no padding at all
    assert micro_batches([0, 1, 3, 4, 2], lengths, 1000, overhead=1000) == [[1, 4, 3, 0, 2]]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 600))
def test_bins_hold_each_row_once_and_at_most_max_tokens(lengths: list[int], room: int) -> None:
    batches = pack.best_fit_batches(range(len(lengths)), lengths, room)
    assert sorted(row for part in batches for row in part) == list(range(len(lengths)))
    for part in batches:
        assert part == sorted(part)
        assert len(part) == 1 or sum(lengths[row] for row in part) <= room
    fewest = -(-sum(lengths) // max(room, max(lengths)))
    assert len(batches) >= fewest
    if max(lengths) <= room:
        assert len(batches) <= 11 / 9 * max(fewest, 1) * 1.7 + 1  # best fit: at most 1.7 times the fewest, plus one


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 9), st.integers(0, 900)), min_size=1, max_size=60),
    st.integers(1, 6),
)
def test_sizes_hold_every_micro_batch(shapes: list[tuple[int, int, int]], max_count: int) -> None:
    result = pack.packed_shapes(shapes, 2048, max_count)
    assert 1 <= len(result) <= max_count
    assert [size.tokens for size in result] == sorted({size.tokens for size in result})
    for tokens, examples, learnt in shapes:
        size = next(size for size in result if size.tokens >= tokens)
        assert size.examples >= examples + (size.tokens > tokens)
        assert size.loss_tokens >= learnt


def test_more_sizes_pad_less_and_few_pad_least() -> None:
    shapes = [(tokens, 4, tokens // 2) for tokens in (100, 110, 500, 510, 520, 1900, 2000)]

    def padded(max_count: int) -> int:
        sizes = pack.packed_shapes(shapes, 512, max_count, step=10)
        return sum(next(size.tokens for size in sizes if size.tokens >= shape[0]) for shape in shapes)

    assert [padded(max_count) for max_count in (1, 2, 3, 4)] == [14000, 6600, 5780, 5680]


def test_a_size_that_costs_more_than_it_saves_is_not_used() -> None:
    shapes = [(tokens, 4, 0) for tokens in (1000, 2000)]
    assert [size.tokens for size in pack.packed_shapes(shapes, 512, 6, step=10, cost=1.5)] == [2000]
    assert [size.tokens for size in pack.packed_shapes(shapes * 3, 512, 6, step=10, cost=1.5)] == [1000, 2000]


def test_a_packed_row_by_hand() -> None:
    first = Example("a", (5, 6, 7, 8), (False, False, True, True), 8)
    second = Example("b", (9, 4), (False, True), 4)
    row = pack.pack_examples([first, second], 0, size=pack.PackedShape(10, 5, 4, 3))
    assert row.ids.tolist() == [5, 6, 7, 8, 9, 4, 0, 0, 0, 0]
    assert row.places.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 0]
    assert row.starts.tolist() == [0, 4, 6, 9, 10, 10]
    assert row.chosen.tolist() == [1, 2, 4, 0]
    assert row.targets.tolist() == [7, 8, 4, -100]
    assert (row.tokens, row.loss_tokens) == (6, 3)
    assert pack.PackedShape(10, 5, 4, 3).holds(pack.pack_examples([first, second], 0))
    assert not pack.PackedShape(5, 5, 4, 3).holds(pack.pack_examples([first, second], 0))
    with pytest.raises(AssertionError):
        pack.pack_examples([first, second], 0, size=pack.PackedShape(10, 2, 4, 3))
