"""Writes the rows of a synthesis plan."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.commands.shared import Reporter, silent
from tunesmith.data.conversation import Turn
from tunesmith.generation.text_model import Reply

if TYPE_CHECKING:
    from tunesmith.data.synthesis.generate import SynthesisResult
    from tunesmith.generation.from_server import ServerModel


def synthesize(name: str, folder: Path, log: Reporter = silent, *, again: bool = False) -> SynthesisResult:
    """Writes the rows of the plan `name` into `folder`, through the plan's server or from its templates.

    An interrupted run is resumed; with `again` the old files are renamed and all rows are written anew. Raises
    MultipleErrors for an invalid plan, ResourceError if the server cannot be reached.
    """
    from tunesmith.data.synthesis.generate import generate_rows
    from tunesmith.data.synthesis.plan import find_plan, read_plan

    plan, version = read_plan(find_plan(name)), importlib.metadata.version("tunesmith")
    if plan.server is None:
        return generate_rows(plan, None, folder, log, again=again, version=version)
    from tunesmith.generation.from_server import ServerModel

    at = plan.server
    with ServerModel(
        at.url, at.model, key=at.key, timeout=at.timeout, retries=at.retries, plain_http=at.plain_http
    ) as model:
        complete = functools.partial(_complete, model, at.max_tokens, at.temperature)
        return generate_rows(plan, complete, folder, log, host=model.host, again=again, version=version)


def _complete(
    model: ServerModel, max_tokens: int, temperature: float | None, turns: Sequence[Turn], seed: int
) -> Reply:
    return model.complete(turns, max_new_tokens=max_tokens, temperature=temperature, seed=seed)
