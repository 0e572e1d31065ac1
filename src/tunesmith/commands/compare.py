"""Compares finished runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.commands.shared import Reporter, find_run, silent
from tunesmith.errors import RunError
from tunesmith.reporting.runs_page import RunComparison, compare_run_folders, page_name, runs_page
from tunesmith.runs.run import write_atomic


def compare_runs(names: Sequence[str], runs: Path, log: Reporter = silent, *, out: Path | None = None) -> RunComparison:
    """Compares finished runs (folders, or names in `runs`) with the first one, on the rows that all were evaluated on.

    Writes compare-<names>.html into `out` (`runs` by default). Raises RunError for fewer than two runs, a run that is
    damaged or not evaluated, and runs without common rows.
    """
    folders = [find_run(name, runs) for name in names]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise RunError("a comparison needs two or more different runs", where=" ".join(names), next="Give two runs")
    comparison = compare_run_folders(folders)
    path = (out or runs) / page_name(comparison.labels)
    write_atomic(path, runs_page(comparison))
    for line in comparison.lines():
        log(f"compare: {line}")
    log(f"compare: see {path}")
    return replace(comparison, page=path)
