"""Surveys a sample of a table's rows: format, lengths, repetitions, and findings of the checks."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tunesmith.config.recipe import CHECKS
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation, Origin, normalize
from tunesmith.data.detect_format import detect_format
from tunesmith.data.finding import CheckContext, prompt_key
from tunesmith.data.formats import DetectedFormat
from tunesmith.data.language import Language
from tunesmith.data.load import bad_answer_reason, count_reasons, no_good_answer_error, summarize_notes
from tunesmith.data.messages import AnswerLabels, ReadNotes
from tunesmith.errors import DataError

SAMPLE_ROWS = 2000  # lengths and repetitions are stable long before
CHECKED_ROWS = 200  # of the sample, for format detection and checks
BYTES_PER_TOKEN = 4  # 4 letters in English; other scripts have more bytes per letter and fewer letters per token
SampledRow = Mapping[str, Any] | DataError  # a row's values, or why it cannot be read
T = TypeVar("T")
TEMPLATE_TOKENS = 24  # that a chat template adds to a row


@dataclass(frozen=True)
class CheckCounts:
    """How many of the checked rows a check would remove, and how many it would repair."""

    removed: int
    repaired: int


@dataclass(frozen=True)
class Survey:
    """Statistics of a table. Shares are of the sampled rows; lengths are estimated tokens.

    `unfit` rows do not fit the format, for the reasons in `refused`; `left_out` rows have a `label` that marks their
    answer as bad.
    """

    total: int
    sampled: int
    unfit: int
    refused: Mapping[str, int]
    left_out: int
    label: str
    notes: ReadNotes
    format: DetectedFormat
    groups: int
    lengths: tuple[int, ...]  # sorted
    answers: tuple[int, ...]  # sorted
    distinct_rows: float
    distinct_prompts: float  # distinct prompts per row
    top_prompt_share: float  # share of rows with the most common prompt
    distinct_answers: float  # distinct answers per row
    numbered_lists: float  # share of answers that are numbered lists
    checked: int
    check_counts: Mapping[str, CheckCounts]
    personal: int
    kept_share: float  # share of the checked rows that no check removes

    def remarks(self) -> list[str]:
        """Returns a line for each kind of content in the sampled rows that the conversations do not contain."""
        bad = {bad_answer_reason(self.label): self.left_out} if self.left_out else {}
        return summarize_notes(self.notes, bad, self.refused, self.sampled)

    @property
    def shared_prompt(self) -> bool:
        """Returns whether too many rows share a prompt for it to stay on one side of the split."""
        return self.top_prompt_share > 0.2 or "ask" in self.format.options


def draw_sample(rows: Iterable[T], size: int = SAMPLE_ROWS) -> tuple[list[T], int]:
    """Returns a uniform sample of at most `size` rows, in their order, and the number of all rows.

    Reservoir sampling, algorithm R (Vitter 1985), in constant memory and with a fixed seed.
    """
    rng = random.Random(7)  # noqa: S311  (sampling, not cryptography)
    reservoir: list[tuple[int, T]] = []
    total = 0
    for total, row in enumerate(rows, start=1):
        if len(reservoir) < size:
            reservoir.append((total, row))
        elif (index := rng.randrange(total)) < size:
            reservoir[index] = (total, row)
    return [row for _, row in sorted(reservoir, key=lambda item: item[0])], total


def survey(rows: Sequence[SampledRow], total: int) -> Survey:
    """Returns the statistics of `rows`, a sample of a table of `total` rows.

    Raises DataError if there is no row, no format fits, or no row fits its format.
    """
    readable = [row for row in rows if not isinstance(row, DataError)]
    if rows and not readable:
        raise next(row for row in rows if isinstance(row, DataError))
    format = detect_format(_spread_rows(readable))
    conversations, parse_facts = _parse_rows(rows, format)
    prompts = Counter(prompt_key(row) for row in conversations)
    answers = Counter(normalize(row.answer) for row in conversations)
    checked_rows = _spread_rows(conversations)
    findings, kept_share = _run_checks(checked_rows, format)
    return Survey(
        total=total,
        sampled=len(rows),
        **parse_facts,
        format=format,
        groups=len({row.group for row in conversations if row.group}),
        lengths=tuple(
            sorted(TEMPLATE_TOKENS + sum(tokens(turn.full_text) for turn in row.turns) for row in conversations)
        ),
        answers=tuple(sorted(tokens(row.turns[-1].full_text) for row in conversations)),
        distinct_rows=len({(prompt_key(row), normalize(row.answer)) for row in conversations}) / len(conversations),
        distinct_prompts=len(prompts) / len(conversations),
        top_prompt_share=max(prompts.values()) / len(conversations),
        distinct_answers=len(answers) / len(conversations),
        numbered_lists=sum(_is_list(row.answer) for row in checked_rows) / len(checked_rows),
        checked=len(checked_rows),
        check_counts=findings,
        personal=len({finding.row for finding in _check_function("personal")(checked_rows, CheckContext())}),
        kept_share=kept_share,
    )


def tokens(text: str) -> int:
    """Returns an estimate of a text's tokens."""
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)


def percentile(ordered: Sequence[int], share: float) -> int:
    """Returns the smallest of the sorted numbers that at least a `share` of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _spread_rows(rows: Sequence[Any]) -> list[Any]:
    step = max(1.0, len(rows) / CHECKED_ROWS)
    return [rows[int(place * step)] for place in range(min(CHECKED_ROWS, len(rows)))]


def _parse_rows(rows: Sequence[SampledRow], format: DetectedFormat) -> tuple[list[Conversation], dict[str, Any]]:
    """Returns the rows as conversations, and statistics of the others. Raises DataError if no row is usable."""
    parse = resolve("tunesmith.data.formats", format.name)
    labels, notes = AnswerLabels(format.name, format.options), ReadNotes()
    conversations: list[Conversation] = []
    errors: list[DataError] = []
    for number, values in enumerate(rows, start=1):
        try:
            if isinstance(values, DataError):
                raise values
            turns, group = parsed = parse(values, **format.options)
        except DataError as error:
            errors.append(error)
            continue
        notes.add(parsed.notes)
        labels.add(len(conversations), values)
        fields = {str(key): value for key, value in values.items() if isinstance(value, str | int | float | bool)}
        conversations.append(Conversation(str(number), turns, Origin("", number, "row"), group, fields))
    if not conversations:
        raise errors[0]
    bad = frozenset(labels.bad())
    good = [row for place, row in enumerate(conversations) if place not in bad]
    if not good:
        raise no_good_answer_error(len(conversations), labels.column)
    if bad:
        del notes.unused[labels.column]
    refused = count_reasons(error.what for error in errors)
    return good, {
        "unfit": len(errors),
        "refused": refused,
        "left_out": len(bad),
        "label": labels.column,
        "notes": notes,
    }


DEFECT_CHECKS = (
    "broken_turns", "collapsed_list", "generic", "machine_tell", "markup", "mojibake", "placeholder", "repetition",
    "truncated", "ungrounded", "whitespace", "wrong_language",
)  # fmt: skip
BASIC_CHECKS = ("empty", "duplicate", "near_duplicate", "secrets")


def _run_checks(rows: Sequence[Conversation], format: DetectedFormat) -> tuple[dict[str, CheckCounts], float]:
    """Returns each check's counts, and the share of rows that the checks of a draft leave."""
    context = CheckContext(language=Language.of(row.answer for row in rows))
    findings: dict[str, CheckCounts] = {}
    removed_rows: set[str] = set()
    for name in (*DEFECT_CHECKS, *BASIC_CHECKS):
        if name == "ungrounded" and format.name != "fields":
            continue
        row_findings = list(_check_function(name)(rows, context))
        removed = {finding.row for finding in row_findings if finding.proposal in ("quarantine", "drop")}
        repaired = {finding.row for finding in row_findings if finding.proposal == "repair"} - removed
        findings[name] = CheckCounts(len(removed), len(repaired))
        if not is_too_common(findings[name], len(rows)) and (name != "generic" or format.name == "fields"):
            removed_rows |= removed
    return findings, 1 - len(removed_rows) / len(rows)


def is_too_common(findings: CheckCounts, rows: int) -> bool:
    """Returns whether a check removes so many rows that a person should read them first."""
    return findings.removed > 0.3 * rows


def _check_function(check: str) -> Callable[..., Any]:
    return resolve(CHECKS, check, function="find_defects")


def _is_list(text: str) -> bool:
    """Returns whether each line is numbered as the metric numbered_steps expects."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and all(line.startswith(f"{number}. ") for number, line in enumerate(lines, start=1))
