"""The verbs that write: rows from a plan, a recipe from a table."""

from __future__ import annotations

import functools
import importlib.metadata
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.commands.shared import Say, silent
from tunesmith.data.conversation import Turn
from tunesmith.data.open_sources import open_sources
from tunesmith.data.rows import Row
from tunesmith.errors import RunError
from tunesmith.generation.text_model import Reply
from tunesmith.runs.run import write_atomic

if TYPE_CHECKING:
    from tunesmith.data.synthesis.generate import SynthesisResult
    from tunesmith.generation.from_server import FromServer


def synthesize(name: str, folder: Path, say: Say = silent, *, again: bool = False) -> SynthesisResult:
    """Writes the rows of the plan `name` into `folder`: through its server, or from its templates.

    Goes on where a stopped or killed run was; with `again` the old rows are put aside. Raises Several for a plan that
    is wrong, ResourceError for a server that cannot be reached.
    """
    from tunesmith.data.synthesis.generate import run
    from tunesmith.data.synthesis.plan import find_plan, read_plan

    plan, version = read_plan(find_plan(name)), importlib.metadata.version("tunesmith")
    if plan.server is None:
        return run(plan, None, folder, say, again=again, version=version)
    from tunesmith.generation.from_server import FromServer

    at = plan.server
    with FromServer(
        at.url, at.model, key=at.key, timeout=at.timeout, retries=at.retries, plain_http=at.plain_http
    ) as model:
        complete = functools.partial(_complete, model, at.max_tokens, at.temperature)
        return run(plan, complete, folder, say, host=model.host, again=again, version=version)


def new(name: str, source: str, path: Path, say: Say = silent) -> Path:
    """Writes a recipe called `name` for the rows of `source` to `path`, each line with its reason.

    Raises RunError when `path` exists, DataError for rows that cannot be learnt.
    """
    from tunesmith.config.recipe import read_recipe
    from tunesmith.hardware import look
    from tunesmith.planning.recipe_draft import draft, written_source
    from tunesmith.planning.survey import spread

    if path.exists():
        raise RunError(
            "there is a file already, and it is not overwritten", where=str(path), next="Choose another name"
        )
    opened = open_sources(source, Path.cwd())
    for each in opened:
        for note in each.notes:
            say(f"{each.name}: {note}")
    rows, total = spread(row.values if isinstance(row, Row) else row.error for each in opened for row in each.rows())
    text = draft(name, written_source(source, path.parent), rows, look(), total=total, remark=say)
    write_atomic(path, text)
    read_recipe(str(path))
    say(f"new: {path}, from {total} rows. Read it: each line says why. Then: tunesmith check {shlex.quote(str(path))}")
    return path


def _complete(model: FromServer, max_tokens: int, temperature: float | None, turns: Sequence[Turn], seed: int) -> Reply:
    return model.complete(turns, max_new_tokens=max_tokens, temperature=temperature, seed=seed)
