"""The verbs: each takes a recipe, writes its product into the run's folder and returns it.

A verb that finds its product fresh says so and returns. This is the only place where rooms meet.
"""

from tunesmith.verbs.auditing import Audited, audit, to_audit, undo
from tunesmith.verbs.comparing import asked, chat, evaluate, report
from tunesmith.verbs.planning import plan
from tunesmith.verbs.reading import processes
from tunesmith.verbs.rows import Checked, check, prepare
from tunesmith.verbs.shared import PARTS, Say, open_run
from tunesmith.verbs.tuning import train
from tunesmith.verbs.writing import new, synthesize

__all__ = [
    "PARTS",
    "Audited",
    "Checked",
    "Say",
    "asked",
    "audit",
    "chat",
    "check",
    "evaluate",
    "new",
    "open_run",
    "plan",
    "prepare",
    "processes",
    "report",
    "synthesize",
    "to_audit",
    "train",
    "undo",
]
