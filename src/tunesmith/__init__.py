"""Turns a table of examples into a measured, deployable writing model.

Names are imported on first use: importing this package loads no torch and makes no network request.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.commands.audit import audit
    from tunesmith.commands.card import card
    from tunesmith.commands.chat import chat, chat_file
    from tunesmith.commands.check import check
    from tunesmith.commands.compare import compare_runs
    from tunesmith.commands.curve import curve
    from tunesmith.commands.doctor import doctor
    from tunesmith.commands.evaluate import evaluate
    from tunesmith.commands.export import export
    from tunesmith.commands.new import new
    from tunesmith.commands.pack import pack
    from tunesmith.commands.plan import plan
    from tunesmith.commands.prepare import prepare
    from tunesmith.commands.push import push
    from tunesmith.commands.report import report
    from tunesmith.commands.review import review
    from tunesmith.commands.shared import open_run
    from tunesmith.commands.synthesize import synthesize
    from tunesmith.commands.train import train
    from tunesmith.commands.undo import undo
    from tunesmith.commands.unpack import unpack
    from tunesmith.config.recipe import Recipe, read_recipe
    from tunesmith.data.conversation import Conversation
    from tunesmith.errors import TunesmithError
    from tunesmith.generation.text_model import Reply, TextModel
    from tunesmith.planning.autograd import Plan
    from tunesmith.runs.run import Run

_MODULES = {
    "commands.audit": ("audit",),
    "commands.card": ("card",),
    "commands.chat": ("chat", "chat_file"),
    "commands.check": ("check",),
    "commands.compare": ("compare_runs",),
    "commands.curve": ("curve",),
    "commands.doctor": ("doctor",),
    "commands.evaluate": ("evaluate",),
    "commands.export": ("export",),
    "commands.new": ("new",),
    "commands.pack": ("pack",),
    "commands.plan": ("plan",),
    "commands.prepare": ("prepare",),
    "commands.push": ("push",),
    "commands.report": ("report",),
    "commands.review": ("review",),
    "commands.shared": ("open_run",),
    "commands.synthesize": ("synthesize",),
    "commands.train": ("train",),
    "commands.undo": ("undo",),
    "commands.unpack": ("unpack",),
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
    "doctor",
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
    from tunesmith.config.extras import missing_extras_named, names_missing_extras

    with missing_extras_named(name):
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return names_missing_extras(value) if inspect.isfunction(value) else value


def __dir__() -> list[str]:
    return sorted(__all__)
