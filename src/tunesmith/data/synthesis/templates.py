"""Templates filled with every combination of their fields, each once, in an order drawn by the plan's seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tunesmith.data.synthesis.plan import Record, RowPlan, Template, fill, names

SHUFFLED = 1_000_000  # combinations that are listed to be shuffled; of more, numbers are drawn
T = TypeVar("T")


@dataclass(frozen=True)
class Filled:
    """A template with its slots filled."""

    number: int  # the template's, from 1
    prompt: str
    answer: str
    topic: str
    style: str
    values: Record


def all_filled(plan: RowPlan) -> Iterator[Filled]:
    """Every combination once, by turns: of topics, of a topic's templates, of a template's phrasings."""
    records = plan.records()
    by_topic: dict[str, list[Iterator[Filled]]] = {}
    for number, template in enumerate(plan.templates, start=1):
        phrased = [_filled(plan, number, template, prompt, records) for prompt in template.prompts]
        by_topic.setdefault(template.topic or plan.name, []).append(_by_turns(phrased))
    return _by_turns([_by_turns(streams) for streams in by_topic.values()])


def _filled(plan: RowPlan, number: int, template: Template, prompt: str, records: Sequence[Record]) -> Iterator[Filled]:
    """A phrasing with each combination of the fields that it and its answer use, in an order drawn by the seed."""
    used = list(dict.fromkeys([*names(prompt), *names(template.answer)]))
    columns = [name for name in used if name not in plan.lists]
    axes = [[{name: value} for value in plan.lists[name]] for name in used if name in plan.lists]
    if columns:
        distinct = dict.fromkeys(tuple(record.get(name, "") for name in columns) for record in records)
        axes.append([dict(zip(columns, cells, strict=True)) for cells in distinct])
    count = 1
    for axis in axes:
        count *= len(axis)
    for place in _order(count, f"{plan.seed}/{number}/{prompt}"):
        values: dict[str, str] = {}
        for axis in axes:
            place, index = divmod(place, len(axis))
            values |= axis[index]
        asked, answered = fill(prompt, values), fill(template.answer, values)
        yield Filled(number, asked, answered, template.topic or plan.name, template.style, values)


def _order(count: int, seed: str) -> Iterator[int]:
    """0 … count - 1, each once, as drawn. Of more than a million numbers only those asked for are held."""
    draw = random.Random(seed)  # noqa: S311  (a draw, not secrecy)
    if count <= SHUFFLED:
        order = list(range(count))
        draw.shuffle(order)
        yield from order
        return
    seen: set[int] = set()
    while len(seen) < count:
        place = draw.randrange(count)
        if place not in seen:
            seen.add(place)
            yield place


def _by_turns(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """One of each in turn; those that end drop out."""
    left = list(streams)
    while left:
        for stream in list(left):
            try:
                yield next(stream)
            except StopIteration:
                left.remove(stream)
