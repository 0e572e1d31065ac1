"""The checks, run: those that need a row alone over portions of the table, side by side; the others over all of it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tunesmith.config.recipe import CHECKS, Named
from tunesmith.config.registry import attribute, find
from tunesmith.data.conversation import Conversation
from tunesmith.data.defects import Language
from tunesmith.data.finding import Context, Finding
from tunesmith.data.table import Table

PORTION = 500  # rows that a process looks at before it reports
AHEAD = 4  # portions under way for each process: more would pile findings up
WORTH = 4000  # rows: below it starting the processes costs more than they save
VOTERS = 2000  # answers that vote on the data's language
# these need what only this process has: rows that are not in the table, the tokenizer
LOCAL = ("bad_answer", "broken", "too_long", "unlearnable")
Places = npt.NDArray[np.int64]


def look(
    rows: Table, checks: Sequence[Named], context: Context, *, scopes: Sequence[str], processes: int = 1
) -> Iterator[Finding]:
    """What those of `checks` find whose scope is in `scopes`: first in the single rows, then in the whole.

    With `processes` above 1 large tables are looked at by so many at once; the findings and their order are the same.
    """
    chosen = [check for check in checks if attribute(CHECKS, check.name, "SCOPE") in scopes]
    alone = [check for check in chosen if attribute(CHECKS, check.name, "SCOPE") == "row"]
    whole = [check for check in chosen if check not in alone]
    context = replace(context, language=language(rows)) if chosen else context
    if processes > 1 and len(rows) >= WORTH and "split" not in scopes:
        yield from _side_by_side(rows, alone, whole, context, processes)
        return
    for portion in _portions(rows) if alone else ():
        yield from _portion(alone, context, portion)
    for check in whole:
        yield from _run(check, rows, context)


def language(rows: Sequence[Conversation]) -> Language:
    """What most answers are written in, by at most 2,000 of them, taken at even steps."""
    step = max(1, len(rows) // VOTERS)
    return Language.of(rows[place].answer for place in range(0, len(rows), step))


def _side_by_side(
    rows: Table, alone: Sequence[Named], whole: Sequence[Named], context: Context, processes: int
) -> Iterator[Finding]:
    """The checks of the whole table each in a process of its own, beside them portions of rows."""
    import multiprocessing

    shared = replace(context, count_tokens=None, refusal=None, broken=(), left_out=(), parts={})
    method = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's threads as they happen to be
    with ProcessPoolExecutor(processes, mp_context=method, initializer=_ignore_ctrl_c) as pool, _ended(pool):
        waiting = [
            None if check.name in LOCAL else pool.submit(_whole_at, rows.path, check, shared, rows.places)
            for check in whole
        ]
        yield from _in_order(pool, rows, alone, shared, AHEAD * processes)
        for check, found in zip(whole, waiting, strict=True):  # a check may stand twice, with other options
            yield from _run(check, rows, context) if found is None else found.result()


def _ignore_ctrl_c() -> None:
    """In a process of the pool: the one that started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _ended(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Ends the pool's processes at once when the block is left by an error, Ctrl-C or a reader who wants no more."""
    try:
        yield
    except BaseException:
        members = list((pool._processes or {}).values())  # no public way to them before Python 3.14
        pool.shutdown(wait=False, cancel_futures=True)
        for process in members:
            process.terminate()
        raise


def _in_order(pool: Executor, rows: Table, alone: Sequence[Named], context: Context, ahead: int) -> Iterator[Finding]:
    """The findings of each row, in the rows' order, a few portions ahead of the one that is read."""
    job = functools.partial(_portion_at, rows.path, alone, context)
    left = _portions(rows) if alone else iter(())
    under_way: deque[Future[list[Finding]]] = deque()
    for portion in itertools.islice(left, ahead):
        under_way.append(pool.submit(job, portion.places))
    while under_way:
        found = under_way.popleft().result()
        under_way.extend(pool.submit(job, portion.places) for portion in itertools.islice(left, 1))
        yield from found


def _portions(rows: Table) -> Iterator[Table]:
    return (rows[start : start + PORTION] for start in range(0, len(rows), PORTION))


def _run(check: Named, rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    yield from find(CHECKS, check.name, function="look")(rows, context, **check.options)


def _portion(checks: Sequence[Named], context: Context, portion: Table) -> list[Finding]:
    members = list(portion)
    found = [finding for check in checks for finding in _run(check, members, context)]
    order = {row.id: place for place, row in enumerate(members)}
    return sorted(found, key=lambda finding: order.get(finding.row, -1))  # stable: within a row as the checks stand


def _portion_at(path: Path, checks: Sequence[Named], context: Context, places: Places) -> list[Finding]:
    """As `_portion`, in another process, which maps the rows' file itself."""
    return _portion(checks, context, Table(path, places))


def _whole_at(path: Path, check: Named, context: Context, places: Places) -> list[Finding]:
    """What a check of the whole table finds, in another process."""
    return list(_run(check, Table(path, places), context))
