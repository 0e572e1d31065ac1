"""What a check finds: a defect in a text, its finding with row, span and proposal, and the decision for each row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

from tunesmith.data.conversation import Conversation, Turn, normalize
from tunesmith.data.language import Language
from tunesmith.data.privacy import KINDS, find_personal, find_secrets

Proposal = Literal["keep", "repair", "quarantine", "drop"]  # of several for one row the last in this order wins
ENGLISH = Language("Latin", "en")
PRIVATE = tuple(kind for kind in KINDS if kind != "url")
MIN_FIELDS = 3  # 'Name: value' lines that make a prompt a form
_VALUE = re.compile(r"(?m)^[^\W\d_][\w /-]{1,40}: (\S[^\n]*)")
AROUND = 30  # characters of context on each side of an excerpt


@dataclass(frozen=True)
class Finding:
    """A problem that a check found in a row, and its proposal.

    `turn` is the turn's index and `start` to `end` the characters of its text; all are -1 if the finding is about the
    whole row. `excerpt` is that span with a few words around it, '' if it must not be stored. A finding about the whole
    table has no row.
    """

    check: str
    row: str
    file: str
    line: int
    unit: str
    message: str
    proposal: Proposal
    turn: int = -1
    start: int = -1
    end: int = -1
    excerpt: str = ""


@dataclass(frozen=True)
class CheckContext:
    """The inputs of checks beside the rows.

    `count_tokens` is None without a tokenizer. `parts` maps a row's id to train, valid, test or unseen; it is empty
    before the split.
    """

    count_tokens: Callable[[Conversation], int] | None = None
    max_tokens: int = 1 << 30
    parts: Mapping[str, str] = field(default_factory=dict)
    broken: Sequence[Finding] = ()  # rows that could not be read as conversations
    left_out: Sequence[Finding] = ()  # rows whose label marks their answer as bad
    language: Language = ENGLISH
    specials: re.Pattern[str] | None = None  # matches the special tokens of the recipe's model
    refusal: Callable[[Conversation], str] | None = None  # why the template cannot render a row for training, or ''


def finding_to_dict(finding: Finding) -> dict[str, Any]:
    """The finding as a dict; `dataclasses.asdict`, which copies deeply, takes eight times as long."""
    return dict(vars(finding))


def row_finding(check: str, row: Conversation, message: str, proposal: Proposal) -> Finding:
    """A finding about a whole row."""
    source = row.origin
    return Finding(check, row.id, source.file, source.line, source.unit, message, proposal)


def span_finding(
    check: str,
    row: Conversation,
    turn: int,
    span: tuple[int, int],
    message: str,
    proposal: Proposal,
    *,
    show: bool = True,
) -> Finding:
    """A finding about characters `span` of turn `turn` (from 0); without `show` it has no excerpt.

    Personal data and secrets in the excerpt are replaced by dots, whichever check reports it.
    """
    source, text = row.origin, row.turns[turn].text
    excerpt_text = excerpt(redacted(text), *span) if show else ""
    return Finding(check, row.id, source.file, source.line, source.unit, message, proposal, turn, *span, excerpt_text)


def table_finding(check: str, message: str, proposal: Proposal = "keep") -> Finding:
    """A finding about the table as a whole."""
    return Finding(check, "", "", 0, "", message, proposal)


def excerpt(text: str, start: int, end: int) -> str:
    """The text from `start` to `end`, shortened to 120 characters, with a few characters of context on both sides."""
    words = text[start:end] if end - start <= 120 else f"{text[start : start + 80]} … {text[end - 35 : end]}"
    context_start, context_end = max(0, start - AROUND), min(len(text), end + AROUND)
    before, after = text[context_start:start], text[end:context_end]
    return f"{'…' if context_start else ''}{before}⟦{words}⟧{after}{'…' if context_end < len(text) else ''}"


@lru_cache(maxsize=8)  # the findings of one text follow one another
def redacted(text: str) -> str:
    """`text` with a dot for each character of personal data and secrets, so that positions stay the same."""
    for span in [*find_secrets(text), *find_personal(text, kinds=PRIVATE)]:
        text = text[: span.start] + "•" * (span.end - span.start) + text[span.end :]
    return text


def answer_turn(row: Conversation) -> int:
    """The index of the last answer among the turns."""
    return len(row.turns) - 1


def turns_key(turns: Sequence[Turn]) -> tuple[str, ...]:
    """The normalized text of each turn, equal for rows that are the same."""
    return tuple(normalize(turn.full_text) for turn in turns)


def prompt_key(row: Conversation) -> tuple[str, ...]:
    """The key of a row's prompt without the system message."""
    return turns_key([turn for turn in row.prompt if turn.role != "system"])


def form_values(question: str) -> list[str]:
    """The values of a form's 'Name: value' lines; empty if there are fewer than three."""
    values = _VALUE.findall(question)
    return values if len(values) >= MIN_FIELDS else []


def dialog_text(turns: Sequence[Turn]) -> str:
    """The texts of all turns but the system's, with their reasoning, joined by line breaks."""
    return "\n".join(turn.full_text for turn in turns if turn.role != "system")


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Defect:
    """A span of a text, what is wrong with it, and its replacement `fix`, None if the text alone does not determine it.

    An error spoils the row, a warning should be read, a note is only counted.
    """

    kind: str
    start: int
    end: int
    text: str
    why: str
    severity: Severity = "warning"
    fix: str | None = None


def make_defect(
    kind: str, text: str, start: int, end: int, why: str, severity: Severity = "warning", fix: str | None = None
) -> Defect:
    """The defect at `start` to `end` of `text`."""
    return Defect(kind, start, end, text[start:end], why, severity, fix)


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

    def keeps(self, row: str) -> bool:
        """Whether a row stays in the table, as it is or repaired."""
        return self.decision(row) in ("keep", "repair")

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
