"""Runs the checks: those on single rows over batches in parallel, the others over the whole table."""

from __future__ import annotations

import contextlib
import functools
import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tunesmith.config.recipe import CHECKS, NamedSetting
from tunesmith.config.registry import entries, entry_constant, entry_module, is_foreign, resolve
from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding
from tunesmith.data.language import Language
from tunesmith.data.table import Table
from tunesmith.errors import ExtensionError

BATCH_ROWS = 500  # rows in a batch that one process checks
BATCHES_AHEAD = 4  # batches submitted per process: more would accumulate findings in memory
MIN_ROWS = 4000  # rows: with fewer, starting the processes costs more than they save
LANGUAGE_SAMPLE = 2000  # answers that decide the language of the data
# these need what only this process has: rows that are not in the table, or the tokenizer
MAIN_PROCESS_CHECKS = ("bad_answer", "broken", "too_long", "unlearnable")
Indices = npt.NDArray[np.int64]


def run_checks(
    rows: Table, checks: Sequence[NamedSetting], context: CheckContext, *, scopes: Sequence[str], processes: int = 1
) -> Iterator[Finding]:
    """Yields the findings of the checks whose scope is in `scopes`: first those on single rows, then the others.

    With `processes` above 1, large tables are checked in parallel; the findings and their order stay the same.
    """
    selected = [check for check in checks if entry_constant(CHECKS, check.name, "SCOPE") in scopes]
    row_checks = [check for check in selected if entry_constant(CHECKS, check.name, "SCOPE") == "row"]
    table_checks = [check for check in selected if check not in row_checks]
    context = replace(context, language=majority_language(rows)) if selected else context
    if processes > 1 and len(rows) >= MIN_ROWS and "split" not in scopes:
        yield from _run_parallel(rows, row_checks, table_checks, context, processes)
        return
    for batch in _batches(rows) if row_checks else ():
        yield from _check_batch(row_checks, context, batch)
    for check in table_checks:
        yield from _run(check, rows, context)


def majority_language(rows: Sequence[Conversation]) -> Language:
    """The language of most answers, judged by at most 2,000 of them at even steps."""
    step = max(1, len(rows) // LANGUAGE_SAMPLE)
    return Language.of(rows[index].answer for index in range(0, len(rows), step))


def _run_parallel(
    rows: Table,
    row_checks: Sequence[NamedSetting],
    table_checks: Sequence[NamedSetting],
    context: CheckContext,
    processes: int,
) -> Iterator[Finding]:
    """Runs each check of the whole table in its own process, and the other checks on batches of rows."""
    import multiprocessing

    shared = replace(context, count_tokens=None, refusal=None, broken=(), left_out=(), parts={})
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's threads in an undefined state
    with (
        ProcessPoolExecutor(processes, mp_context=spawn, initializer=_ignore_ctrl_c) as pool,
        _terminated_on_error(pool),
    ):
        futures = [
            None if check.name in MAIN_PROCESS_CHECKS else pool.submit(_run_at, rows.path, check, shared, rows.indices)
            for check in table_checks
        ]
        yield from _check_batches(pool, rows, row_checks, shared, BATCHES_AHEAD * processes)
        for check, future in zip(table_checks, futures, strict=True):  # a check may occur twice, with other options
            yield from _run(check, rows, context) if future is None else future.result()


def _ignore_ctrl_c() -> None:
    """Leaves Ctrl-C to the main process, which terminates the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _terminated_on_error(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Terminates the pool's processes if the block ends with an error, Ctrl-C or a closed generator."""
    try:
        yield
    except BaseException:
        processes = list((pool._processes or {}).values())  # not public before Python 3.14
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise


def _check_batches(
    pool: Executor, rows: Table, row_checks: Sequence[NamedSetting], context: CheckContext, ahead: int
) -> Iterator[Finding]:
    """Yields the findings in the order of the rows, with up to `ahead` batches submitted in advance."""
    job = functools.partial(_check_batch_at, rows.path, row_checks, context)
    batches = _batches(rows) if row_checks else iter(())
    futures: deque[Future[list[Finding]]] = deque()
    for batch in itertools.islice(batches, ahead):
        futures.append(pool.submit(job, batch.indices))
    while futures:
        findings = futures.popleft().result()
        futures.extend(pool.submit(job, batch.indices) for batch in itertools.islice(batches, 1))
        yield from findings


def _batches(rows: Table) -> Iterator[Table]:
    return (rows[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS))


def _run(check: NamedSetting, rows: Sequence[Conversation], context: CheckContext) -> Iterator[Finding]:
    for finding in resolve(CHECKS, check.name, function="find_defects")(rows, context, **check.options):
        if not isinstance(finding, Finding):
            raise ExtensionError(f"'{check.name}' must yield Finding, not {type(finding).__name__}")
        yield finding


def _check_batch(checks: Sequence[NamedSetting], context: CheckContext, batch: Table) -> list[Finding]:
    rows = list(batch)
    findings = [finding for check in checks for finding in _run(check, rows, context)]
    order = {row.id: index for index, row in enumerate(rows)}
    return sorted(findings, key=lambda finding: order.get(finding.row, -1))  # stable: keeps the order of the checks


def _check_batch_at(
    path: Path, checks: Sequence[NamedSetting], context: CheckContext, indices: Indices
) -> list[Finding]:
    """Runs `_check_batch` in another process, which opens the rows' file itself."""
    return _check_batch(checks, context, Table(path, indices))


def _run_at(path: Path, check: NamedSetting, context: CheckContext, indices: Indices) -> list[Finding]:
    """Runs a check of the whole table in another process."""
    return list(_run(check, Table(path, indices), context))


def text_detectors() -> dict[str, Callable[..., Iterator[Defect]]]:
    """Returns `detect` of tunesmith's own checks that look for defects inside one text, by the check's name."""
    modules = {name: entry_module(CHECKS, name) for name in entries(CHECKS) if not is_foreign(CHECKS, name)}
    return {name: module.detect for name, module in modules.items() if hasattr(module, "detect")}
