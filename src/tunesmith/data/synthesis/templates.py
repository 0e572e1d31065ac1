"""Fills templates with every combination of their fields, each once, in an order drawn from the plan's seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tunesmith.data.synthesis.plan import Record, RowPlan, Template, fill_template, slot_names

MAX_SHUFFLED = 1_000_000  # combinations that are listed and shuffled; above, indices are drawn one by one
T = TypeVar("T")


@dataclass(frozen=True)
class FilledTemplate:
    """A template filled with values."""

    number: int  # the template's, from 1
    prompt: str
    answer: str
    topic: str
    style: str
    values: Record


def all_filled(plan: RowPlan) -> Iterator[FilledTemplate]:
    """Yields every combination once, alternating topics, templates of a topic, and phrasings of a template."""
    records = plan.records()
    by_topic: dict[str, list[Iterator[FilledTemplate]]] = {}
    for number, template in enumerate(plan.templates, start=1):
        phrased = [_fill_all(plan, number, template, prompt, records) for prompt in template.prompts]
        by_topic.setdefault(template.topic or plan.name, []).append(_round_robin(phrased))
    return _round_robin([_round_robin(streams) for streams in by_topic.values()])


def _fill_all(
    plan: RowPlan, number: int, template: Template, prompt: str, records: Sequence[Record]
) -> Iterator[FilledTemplate]:
    """Yields a phrasing with each combination of the fields in it and its answer, in an order drawn from the seed."""
    fields_used = list(dict.fromkeys([*slot_names(prompt), *slot_names(template.answer)]))
    columns = [name for name in fields_used if name not in plan.lists]
    axes = [[{name: value} for value in plan.lists[name]] for name in fields_used if name in plan.lists]
    if columns:
        distinct = dict.fromkeys(tuple(record.get(name, "") for name in columns) for record in records)
        axes.append([dict(zip(columns, cells, strict=True)) for cells in distinct])
    count = 1
    for axis in axes:
        count *= len(axis)
    for combination in _order(count, f"{plan.seed}/{number}/{prompt}"):
        values: dict[str, str] = {}
        for axis in axes:
            combination, index = divmod(combination, len(axis))
            values |= axis[index]
        filled_prompt, filled_answer = fill_template(prompt, values), fill_template(template.answer, values)
        yield FilledTemplate(number, filled_prompt, filled_answer, template.topic or plan.name, template.style, values)


def _order(count: int, seed: str) -> Iterator[int]:
    """Yields 0 … count - 1 in random order; above a million, only the numbers drawn so far are in memory."""
    draw = random.Random(seed)  # noqa: S311  (not cryptography)
    if count <= MAX_SHUFFLED:
        order = list(range(count))
        draw.shuffle(order)
        yield from order
        return
    previous: set[int] = set()
    while len(previous) < count:
        number = draw.randrange(count)
        if number not in previous:
            previous.add(number)
            yield number


def _round_robin(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """Yields one item of each stream in turn until all have ended."""
    active = list(streams)
    while active:
        for stream in list(active):
            try:
                yield next(stream)
            except StopIteration:
                active.remove(stream)
