"""All errors for users. An error says what is wrong, where, and what to do next.

The package raises no other exception for something that a user did or can fix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_COMMAND = re.compile(r": (?:tunesmith|pip) [^\n]*\Z")  # no period after a command, so that it can be pasted


class TunesmithError(Exception):
    """An error that a user can fix. `exit_code` is the exit status of the command line."""

    exit_code = 1

    def __init__(self, problem: str, *, where: str = "", next: str = "") -> None:
        """Stores what is wrong, where (file, line, key), and what to do next."""
        self.what, self.where, self.next = problem.rstrip("."), where, next.rstrip(".")
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}." if self.where else f"{self.what}."
        if not self.next:
            return text
        return f"{text} {self.next}" if _COMMAND.search(self.next) else f"{text} {self.next}."


class MultipleErrors(TunesmithError):
    """Several errors, reported together."""

    def __init__(self, errors: list[TunesmithError]) -> None:
        """`errors` holds at least one; the first one determines the exit code."""
        self.errors = errors
        self.exit_code = errors[0].exit_code
        super().__init__("\n".join(str(error) for error in errors))

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def raise_all(errors: Sequence[TunesmithError]) -> None:
    """Raises the error if there is one, or MultipleErrors if there are more."""
    if errors:
        raise errors[0] if len(errors) == 1 else MultipleErrors(list(errors))


class ExportFailed(MultipleErrors):
    """Some targets of an export failed; the files of the others were written."""

    def __init__(self, failures: Mapping[str, TunesmithError]) -> None:
        """`failures` maps targets to errors; at least one."""
        self.failures = dict(failures)
        super().__init__(list(failures.values()))

    def __str__(self) -> str:
        return "\n".join(f"{target}: {error}" for target, error in self.failures.items())


class RecipeError(TunesmithError):
    """The recipe asks for something that does not exist or is impossible."""

    exit_code = 2


class DataError(TunesmithError):
    """A row or a file cannot be read in the way that the recipe says."""

    exit_code = 3


class ModelError(TunesmithError):
    """The base model is missing, unsafe to load or not supported."""

    exit_code = 4


class RunError(TunesmithError):
    """The run is locked, damaged, or has other inputs."""

    exit_code = 5


class ResourceError(TunesmithError):
    """Memory, disk or device are insufficient. Finished work is kept."""

    exit_code = 6


class MissingExtra(TunesmithError):
    """A package of an optional extra is not installed."""

    exit_code = 7


class ExtensionError(TunesmithError):
    """A metric, check, format, target or optimizer of another package failed."""

    exit_code = 10


class TrainingDiverged(TunesmithError):
    """The loss or the gradient is not finite."""

    exit_code = 8


class VerificationFailed(TunesmithError):
    """An exported file did not pass verification. It is kept and marked."""

    exit_code = 9


class Paused(TunesmithError):
    """The user stopped the run. The same command resumes it."""

    exit_code = 130


class InternalError(TunesmithError):
    """A bug in tunesmith: a measurement contradicts its own computation."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h

    def __init__(self, problem: str, *, where: str = "", next: str = "") -> None:
        """`problem` should contain both values; the advice to report the bug is added."""
        advice = "This is a bug in tunesmith, not in your files: please report it with this message"
        super().__init__(problem, where=where, next=next or advice)
