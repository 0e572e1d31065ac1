"""tunesmith: a table of examples becomes a measured, deployable writing model.

Nouns and verbs are loaded when first used: importing this package loads no torch and touches no network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.conversation import Conversation
    from tunesmith.errors import TunesmithError
    from tunesmith.generate.text import Reply, TextModel
    from tunesmith.memory import Plan
    from tunesmith.recipe import Recipe, read_recipe
    from tunesmith.run import Run
    from tunesmith.verbs import chat, check, evaluate, open_run, plan, prepare, report, train

_HOMES = {
    "Conversation": "tunesmith.data.conversation",
    "Plan": "tunesmith.memory",
    "Recipe": "tunesmith.recipe",
    "Reply": "tunesmith.generate.text",
    "Run": "tunesmith.run",
    "TextModel": "tunesmith.generate.text",
    "TunesmithError": "tunesmith.errors",
    "chat": "tunesmith.verbs",
    "check": "tunesmith.verbs",
    "evaluate": "tunesmith.verbs",
    "open_run": "tunesmith.verbs",
    "plan": "tunesmith.verbs",
    "prepare": "tunesmith.verbs",
    "read_recipe": "tunesmith.recipe",
    "report": "tunesmith.verbs",
    "train": "tunesmith.verbs",
}

__all__ = [
    "Conversation",
    "Plan",
    "Recipe",
    "Reply",
    "Run",
    "TextModel",
    "TunesmithError",
    "chat",
    "check",
    "evaluate",
    "open_run",
    "plan",
    "prepare",
    "read_recipe",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tunesmith' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
