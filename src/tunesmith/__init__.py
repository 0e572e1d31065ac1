"""Turns a table of examples into a measured, deployable writing model.

Names are imported on first use: importing this package loads no torch and makes no network request.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.data.conversation import Conversation
    from tunesmith.errors import TunesmithError
    from tunesmith.generation.text_model import Reply, TextModel
    from tunesmith.library import (
        audit,
        card,
        chat,
        chat_file,
        check,
        compare_runs,
        curve,
        doctor,
        evaluate,
        export,
        import_settings,
        list_runs,
        new,
        open_run,
        pack,
        plan,
        prepare,
        push,
        read_recipe,
        report,
        review,
        run,
        serve_models,
        synthesize,
        train,
        undo,
        unpack,
    )
    from tunesmith.planning.autograd import Plan
    from tunesmith.runs.run import Run

__version__ = "0.1.0"

_TYPES = {
    "Conversation": "data.conversation",
    "Plan": "planning.autograd",
    "Recipe": "config.recipe",
    "Reply": "generation.text_model",
    "Run": "runs.run",
    "TextModel": "generation.text_model",
    "TunesmithError": "errors",
}

__all__ = [
    "Conversation",
    "Plan",
    "Recipe",
    "Reply",
    "Run",
    "TextModel",
    "TunesmithError",
    "__version__",
    "audit",
    "card",
    "chat",
    "chat_file",
    "check",
    "compare_runs",
    "curve",
    "doctor",
    "evaluate",
    "export",
    "import_settings",
    "list_runs",
    "new",
    "open_run",
    "pack",
    "plan",
    "prepare",
    "push",
    "read_recipe",
    "report",
    "review",
    "run",
    "serve_models",
    "synthesize",
    "train",
    "undo",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tunesmith' has no attribute '{name}'")
    from tunesmith.config.extras import missing_extras_named, names_missing_extras

    with missing_extras_named(name):
        value = getattr(importlib.import_module(f"tunesmith.{_TYPES.get(name, 'library')}"), name)
    return names_missing_extras(value) if inspect.isfunction(value) else value


def __dir__() -> list[str]:
    return sorted(__all__)
