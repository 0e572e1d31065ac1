"""Collects findings and decides what happens to each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, get_args

from tunesmith.data.finding import Finding, Proposal, finding_to_dict

ORDER: tuple[Proposal, ...] = get_args(Proposal)
EXAMPLES_PER_ROW = 2  # examples per row, so that one bad row does not fill the page
EXAMPLES = 40  # per check, for the page; findings.jsonl has all


class RowDecisions:
    """Passes findings on to `sink`, counts them by check, keeps examples, and decides about the rows they concern."""

    def __init__(self, checks: Iterable[str], sink: Callable[[Finding], None] | None = None) -> None:
        """`checks` appear in the counts even if they find nothing."""
        self._sink = sink
        self._proposals: dict[str, Counter[str]] = {check: Counter() for check in checks}
        self._rows: dict[str, set[str]] = {check: set() for check in checks}
        self._examples: dict[str, list[Finding]] = {check: [] for check in checks}
        self._decisions: dict[str, tuple[Proposal, str]] = {}  # row id -> strongest proposal and its first check

    def add(self, findings: Iterable[Finding]) -> None:
        """Adds findings; may be called repeatedly."""
        for finding in findings:
            self._proposals.setdefault(finding.check, Counter())[finding.proposal] += 1
            examples = self._examples.setdefault(finding.check, [])
            same_row = sum(example.row == finding.row for example in examples[-EXAMPLES_PER_ROW:])
            if len(examples) < EXAMPLES and same_row < EXAMPLES_PER_ROW:
                examples.append(finding)
            if finding.row or finding.line:
                self._rows.setdefault(finding.check, set()).add(finding.row)
                current = self._decisions.get(finding.row)
                if current is None or ORDER.index(finding.proposal) > ORDER.index(current[0]):
                    self._decisions[finding.row] = finding.proposal, finding.check
            if self._sink:
                self._sink(finding)

    def decision(self, row: str) -> Proposal:
        """The decision about a row: the strongest proposal of its findings."""
        return self._decisions.get(row, ("keep", ""))[0]

    def reason(self, row: str) -> str:
        """The check that decided about a row; '' if no check found anything."""
        return self._decisions.get(row, ("keep", ""))[1]

    def counts(self, proposal: Proposal) -> dict[str, int]:
        """The number of rows with this decision by the check that decided; each row counts once."""
        return dict(Counter(check for decision, check in self._decisions.values() if decision == proposal))

    def describe(self) -> dict[str, Any]:
        """Findings, rows, proposals and examples of each check, as plain values."""
        return {
            check: {
                "found": proposals.total(),
                "rows": len(self._rows.get(check, ())),
                "proposals": dict(proposals),
                "examples": [finding_to_dict(finding) for finding in self._examples[check]],
            }
            for check, proposals in self._proposals.items()
        }
