"""What became of every row: findings counted and told, and each row's fate decided once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, get_args

from tunesmith.data.finding import Finding, Proposal, to_plain

ORDER: tuple[Proposal, ...] = get_args(Proposal)
OF_A_ROW = 2  # so that one bad row does not fill the page
EXAMPLES = 40  # of each check, for the page; all are in findings.jsonl


class Ledger:
    """Findings as they come: each handed on to `sink`, counted by check, some kept; and the rows they act upon."""

    def __init__(self, checks: Iterable[str], sink: Callable[[Finding], None] | None = None) -> None:
        """`checks` are told even when they find nothing."""
        self._sink = sink
        self._proposals: dict[str, Counter[str]] = {check: Counter() for check in checks}
        self._rows: dict[str, set[str]] = {check: set() for check in checks}
        self._examples: dict[str, list[Finding]] = {check: [] for check in checks}
        self._fates: dict[str, tuple[Proposal, str]] = {}  # row -> the strongest proposal, and whose it was first

    def enter(self, findings: Iterable[Finding]) -> None:
        """Takes findings, in any number of calls."""
        for finding in findings:
            self._proposals.setdefault(finding.check, Counter())[finding.proposal] += 1
            examples = self._examples.setdefault(finding.check, [])
            if len(examples) < EXAMPLES and sum(one.row == finding.row for one in examples[-OF_A_ROW:]) < OF_A_ROW:
                examples.append(finding)
            if finding.row or finding.line:
                self._rows.setdefault(finding.check, set()).add(finding.row)
                known = self._fates.get(finding.row)
                if known is None or ORDER.index(finding.proposal) > ORDER.index(known[0]):
                    self._fates[finding.row] = finding.proposal, finding.check
            if self._sink:
                self._sink(finding)

    def fate(self, row: str) -> Proposal:
        """What is proposed for a row: of several findings the strongest wins."""
        return self._fates.get(row, ("keep", ""))[0]

    def reason(self, row: str) -> str:
        """The check that decided a row's fate; '' where none found anything."""
        return self._fates.get(row, ("keep", ""))[1]

    def counts(self, proposal: Proposal) -> dict[str, int]:
        """How many rows each check is the reason for, of those with this fate; a row counts once."""
        return dict(Counter(check for fate, check in self._fates.values() if fate == proposal))

    def describe(self) -> dict[str, Any]:
        """Plain values by check: findings, rows, proposals, examples."""
        return {
            check: {
                "found": proposals.total(),
                "rows": len(self._rows.get(check, ())),
                "proposals": dict(proposals),
                "examples": [to_plain(finding) for finding in self._examples[check]],
            }
            for check, proposals in self._proposals.items()
        }
