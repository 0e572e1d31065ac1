"""Turns the defects of each message into findings; shared by the checks that look inside one text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.defects import Defect
from tunesmith.data.finding import Finding, Proposal, span_finding

Detector = Callable[[str], Iterator[Defect]]


def defect_findings(
    check: str,
    rows: Sequence[Conversation],
    detect: Detector,
    do: Proposal | None,
    otherwise: Proposal = "quarantine",
    *,
    prompts: bool = False,
    once: bool = False,
) -> Iterator[Finding]:
    """Yields the defects in each answer (in every turn with `prompts`), except notes.

    The proposal is `do`; if it is not set, repair for a defect with a fix and `otherwise` for one without. With `once`,
    equal defects in one turn become a single finding at the first of them, with their count.
    """
    for row in rows:
        for turn_index, turn in enumerate(row.turns):
            if turn.role == "assistant" or prompts:
                defects = [defect for defect in detect(turn.text) if defect.severity != "note"]
                for defect, count in _group_equal(defects) if once else ((defect, 1) for defect in defects):
                    proposal = do or ("repair" if defect.fix is not None else otherwise)
                    message = f"{defect.why}, {count} times" if count > 1 else defect.why
                    yield span_finding(check, row, turn_index, (defect.start, defect.end), message, proposal)


def _group_equal(defects: Sequence[Defect]) -> Iterator[tuple[Defect, int]]:
    """The first of each group of equal defects, and the group's size."""
    by_sort: dict[tuple[str, bool], list[Defect]] = {}
    for defect in defects:
        by_sort.setdefault((defect.why, defect.fix is not None), []).append(defect)
    return ((group[0], len(group)) for group in by_sort.values())
