"""What the checks for damage inside a text share: the defects of each turn as findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.defects import Defect
from tunesmith.data.finding import Finding, Proposal, of_place

Look = Callable[[str], Iterator[Defect]]


def damage(
    check: str,
    rows: Sequence[Conversation],
    kind: Look,
    do: Proposal | None,
    otherwise: Proposal = "quarantine",
    *,
    prompts: bool = False,
    once: bool = False,
) -> Iterator[Finding]:
    """The defects of each answer (of each turn with `prompts`), notes apart.

    Proposed is `do`; without it repair where the text alone says what belongs there, and `otherwise` where it does not.
    With `once` a turn's defects of one sort are one finding, at the first, which tells how many there are.
    """
    for row in rows:
        for place, turn in enumerate(row.turns):
            if turn.role == "assistant" or prompts:
                found = [defect for defect in kind(turn.text) if defect.severity != "note"]
                for defect, times in _firsts(found) if once else ((defect, 1) for defect in found):
                    wish = do or ("repair" if defect.fix is not None else otherwise)
                    why = f"{defect.why}, {times} times" if times > 1 else defect.why
                    yield of_place(check, row, place, (defect.start, defect.end), why, wish)


def _firsts(found: Sequence[Defect]) -> Iterator[tuple[Defect, int]]:
    """The first defect of each sort, with their number."""
    by_sort: dict[tuple[str, bool], list[Defect]] = {}
    for defect in found:
        by_sort.setdefault((defect.why, defect.fix is not None), []).append(defect)
    return ((same[0], len(same)) for same in by_sort.values())
