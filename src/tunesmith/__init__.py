"""Turns a table of examples into a measured, deployable writing model.

Every name is loaded when it is first used: importing this package loads no torch and touches no network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.commands.audit import audit, undo
    from tunesmith.commands.curve import curve
    from tunesmith.commands.evaluate import chat, chat_file, evaluate, report
    from tunesmith.commands.export import export, push
    from tunesmith.commands.new import new, synthesize
    from tunesmith.commands.pack import pack, unpack
    from tunesmith.commands.plan import plan
    from tunesmith.commands.prepare import check, prepare
    from tunesmith.commands.review import review
    from tunesmith.commands.runs import card, compare_runs
    from tunesmith.commands.shared import open_run
    from tunesmith.commands.train import train
    from tunesmith.config.recipe import Recipe, read_recipe
    from tunesmith.data.conversation import Conversation
    from tunesmith.errors import TunesmithError
    from tunesmith.generation.text_model import Reply, TextModel
    from tunesmith.planning.autograd import Plan
    from tunesmith.runs.run import Run

_MODULES = {
    "commands.audit": ("audit", "undo"),
    "commands.curve": ("curve",),
    "commands.evaluate": ("chat", "chat_file", "evaluate", "report"),
    "commands.export": ("export", "push"),
    "commands.new": ("new", "synthesize"),
    "commands.pack": ("pack", "unpack"),
    "commands.plan": ("plan",),
    "commands.prepare": ("check", "prepare"),
    "commands.review": ("review",),
    "commands.runs": ("card", "compare_runs"),
    "commands.shared": ("open_run",),
    "commands.train": ("train",),
    "config.recipe": ("Recipe", "read_recipe"),
    "data.conversation": ("Conversation",),
    "errors": ("TunesmithError",),
    "generation.text_model": ("Reply", "TextModel"),
    "planning.autograd": ("Plan",),
    "runs.run": ("Run",),
}
_MODULE_OF = {name: f"tunesmith.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [
    "Conversation",
    "Plan",
    "Recipe",
    "Reply",
    "Run",
    "TextModel",
    "TunesmithError",
    "audit",
    "card",
    "chat",
    "chat_file",
    "check",
    "compare_runs",
    "curve",
    "evaluate",
    "export",
    "new",
    "open_run",
    "pack",
    "plan",
    "prepare",
    "push",
    "read_recipe",
    "report",
    "review",
    "synthesize",
    "train",
    "undo",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tunesmith' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
