"""Every error a user can meet, as one tree.

An error has three parts: what is wrong, where, and what to do next. Nothing else in the package
raises a bare exception for something a user did or can mend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_COMMAND = re.compile(r": (?:tunesmith|pip) [^\n]*\Z")  # nothing may follow it, so that it can be pasted


class TunesmithError(Exception):
    """Something a user can mend. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", next: str = "") -> None:
        """`what` is wrong, `where` it is (file, line, key), what to do `next`."""
        self.what, self.where, self.next = what.rstrip("."), where, next.rstrip(".")
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}." if self.where else f"{self.what}."
        if not self.next:
            return text
        return f"{text} {self.next}" if _COMMAND.search(self.next) else f"{text} {self.next}."


class Several(TunesmithError):
    """Everything that is wrong, at once."""

    def __init__(self, errors: list[TunesmithError]) -> None:
        """`errors`: at least one; the first decides the exit code."""
        self.errors = errors
        self.exit_code = errors[0].exit_code
        super().__init__("\n".join(str(error) for error in errors))

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def raise_all(errors: Sequence[TunesmithError]) -> None:
    """Raises the only error, several as one, or nothing where there is none."""
    if errors:
        raise errors[0] if len(errors) == 1 else Several(list(errors))


class ExportFailed(Several):
    """Some targets of an export failed; the files of the others were written."""

    def __init__(self, failures: Mapping[str, TunesmithError]) -> None:
        """`failures`: at least one, by target."""
        self.failures = dict(failures)
        super().__init__(list(failures.values()))

    def __str__(self) -> str:
        return "\n".join(f"{target}: {error}" for target, error in self.failures.items())


class RecipeError(TunesmithError):
    """The recipe asks for something that does not exist or cannot be."""

    exit_code = 2


class DataError(TunesmithError):
    """A row or a file cannot be read as the recipe says."""

    exit_code = 3


class ModelError(TunesmithError):
    """The base model is missing, unsafe to load or of a kind that cannot be tuned."""

    exit_code = 4


class RunError(TunesmithError):
    """The run's folder is locked, damaged, or made from something else."""

    exit_code = 5


class ResourceError(TunesmithError):
    """Memory, disk or device do not suffice. What was done so far is kept."""

    exit_code = 6


class MissingExtra(TunesmithError):
    """A part that comes with an optional extra is not installed."""

    exit_code = 7


class TrainingDiverged(TunesmithError):
    """The loss or the gradient is no longer a number."""

    exit_code = 8


class Unverified(TunesmithError):
    """An exported file is not the model that was tested. It is kept and marked."""

    exit_code = 9


class Paused(TunesmithError):
    """The user stopped the run. The same command goes on."""

    exit_code = 130


class InternalError(TunesmithError):
    """tunesmith contradicts itself: what happened is not what it had computed. Only a new version can mend that."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h

    def __init__(self, what: str, *, where: str = "", next: str = "") -> None:
        """`what` holds both figures; the advice to report it is added."""
        advice = "This is a fault of tunesmith, not of your files: please report it with this message"
        super().__init__(what, where=where, next=next or advice)
