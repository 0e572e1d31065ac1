"""The verbs: each takes a recipe, writes its product into the run's folder and returns it.

A verb that finds its product fresh says so and returns. This is the only place where rooms meet. A verb is loaded when
it is first asked for, so that one that needs no model loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.verbs.auditing import Audited, audit, to_audit, undo
    from tunesmith.verbs.comparing import asked, chat, chat_file, evaluate, report
    from tunesmith.verbs.curving import curve, to_shares
    from tunesmith.verbs.drafting import Drafting
    from tunesmith.verbs.exporting import check_export, export, push
    from tunesmith.verbs.listing import RunRow, card, compare_runs, runs
    from tunesmith.verbs.packing import pack, to_pack, unpack
    from tunesmith.verbs.planning import plan
    from tunesmith.verbs.reading import processes
    from tunesmith.verbs.reviewing import review
    from tunesmith.verbs.rows import Checked, check, prepare
    from tunesmith.verbs.serving import Wish, serve, serving, unpair
    from tunesmith.verbs.shared import PARTS, Say, model_file, open_run
    from tunesmith.verbs.tuning import train
    from tunesmith.verbs.writing import new, synthesize

_HOMES = {
    "auditing": ("Audited", "audit", "to_audit", "undo"),
    "comparing": ("asked", "chat", "chat_file", "evaluate", "report"),
    "curving": ("curve", "to_shares"),
    "drafting": ("Drafting",),
    "exporting": ("check_export", "export", "push"),
    "listing": ("RunRow", "card", "compare_runs", "runs"),
    "packing": ("pack", "to_pack", "unpack"),
    "planning": ("plan",),
    "reading": ("processes",),
    "reviewing": ("review",),
    "rows": ("Checked", "check", "prepare"),
    "serving": ("Wish", "serve", "serving", "unpair"),
    "shared": ("PARTS", "Say", "model_file", "open_run"),
    "tuning": ("train",),
    "writing": ("new", "synthesize"),
}

__all__ = [
    "PARTS",
    "Audited",
    "Checked",
    "Drafting",
    "RunRow",
    "Say",
    "Wish",
    "asked",
    "audit",
    "card",
    "chat",
    "chat_file",
    "check",
    "check_export",
    "compare_runs",
    "curve",
    "evaluate",
    "export",
    "model_file",
    "new",
    "open_run",
    "pack",
    "plan",
    "prepare",
    "processes",
    "push",
    "report",
    "review",
    "runs",
    "serve",
    "serving",
    "synthesize",
    "to_audit",
    "to_pack",
    "to_shares",
    "train",
    "undo",
    "unpack",
    "unpair",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"tunesmith.verbs.{home}"), name)
    raise AttributeError(f"module 'tunesmith.verbs' has no attribute '{name}'")
