"""Opens a model to talk to: the tuned model, its base, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.commands.shared import (
    Reporter,
    load_models,
    silent,
)
from tunesmith.config.recipe import Recipe
from tunesmith.runs.run import Run


def chat(recipe: Recipe, run: Run, log: Reporter = silent, *, tuned: bool = True) -> Any:
    """Loads the run's tuned model, or its base model, to `stream` replies."""
    return next(text for which, text in load_models(recipe, run, log, only="tuned" if tuned else "base"))


def chat_file(path: Path) -> Any:
    """Loads a GGUF file to `stream` replies with the chat template in the file. The caller closes it.

    Raises ModelError if the file is not GGUF, is damaged or cannot be run.
    """
    from tunesmith.generation.from_gguf import GgufModel

    return GgufModel(path, slots=1)
