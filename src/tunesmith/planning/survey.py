"""What a table's rows look like: its format, lengths, repetitions, and what the checks find in a few of them."""

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
from tunesmith.data.defects import Language
from tunesmith.data.detect_format import detect_format
from tunesmith.data.detect_row import DetectedFormat
from tunesmith.data.finding import CheckContext, prompt_key
from tunesmith.data.labels import AnswerLabels
from tunesmith.data.load import bad_answer_reason, count_reasons, no_good_answer_error, summarize_notes
from tunesmith.data.messages import ReadNotes
from tunesmith.errors import DataError

ROWS = 2000  # that are looked at: lengths and repetitions settle long before
FEW = 200  # of them judge the format and go through the checks
BYTES = 4  # a token: of English 4 letters; other scripts have more bytes a letter, and fewer letters a token
Drawn = Mapping[str, Any] | DataError  # a row's values, or why it cannot be read
T = TypeVar("T")
ABOUT_A_ROW = 24  # tokens that a chat template puts around a row


@dataclass(frozen=True)
class Findings:
    """What a check found in the rows looked at: how many it would take away, and how many it would mend."""

    taken: int
    mended: int


@dataclass(frozen=True)
class Survey:
    """A table in figures. Shares are of the rows looked at; lengths in tokens, estimated.

    `unfit` rows are no conversations, for the reasons in `refused`; `left_out` rows have a `label` that marks their
    answer as a bad one.
    """

    total: int
    looked: int
    unfit: int
    refused: Mapping[str, int]
    left_out: int
    label: str
    notes: ReadNotes
    format: DetectedFormat
    groups: int
    lengths: tuple[int, ...]  # sorted
    answers: tuple[int, ...]  # sorted
    distinct: float
    prompts: float  # different prompts among the rows
    usual_prompt: float  # share of the rows that have the commonest prompt
    own_answers: float  # different answers among the rows
    listed: float  # answers that are numbered lists
    checked: int
    found: Mapping[str, Findings]
    personal: int
    sound: float  # of the rows checked: those that no check takes away

    def remarks(self) -> list[str]:
        """What the conversations do not hold of the rows looked at, a line for each kind."""
        bad = {bad_answer_reason(self.label): self.left_out} if self.left_out else {}
        return summarize_notes(self.notes, bad, self.refused, self.looked)

    @property
    def shared_prompt(self) -> bool:
        """Whether so many rows have one prompt that it cannot be kept on one side of the split."""
        return self.usual_prompt > 0.2 or "ask" in self.format.options


def draw_sample(rows: Iterable[T], most: int = ROWS) -> tuple[list[T], int]:
    """At most `most` rows drawn evenly, in their order, and how many there are. Holds no more than it gives.

    Reservoir sampling, algorithm R (Vitter 1985), always with the same seed.
    """
    draw = random.Random(7)  # noqa: S311  (a draw, not secrecy)
    kept: list[tuple[int, T]] = []
    total = 0
    for total, row in enumerate(rows, start=1):
        if len(kept) < most:
            kept.append((total, row))
        elif (place := draw.randrange(total)) < most:
            kept[place] = (total, row)
    return [row for _, row in sorted(kept, key=lambda item: item[0])], total


def survey(rows: Sequence[Drawn], total: int) -> Survey:
    """The figures of `rows`, drawn from a table of `total`: the values of each, or why it cannot be read.

    Raises DataError when there is no row, no format fits, or no row fits its format.
    """
    readable = [row for row in rows if not isinstance(row, DataError)]
    if rows and not readable:
        raise next(row for row in rows if isinstance(row, DataError))
    format = detect_format(_few(readable))
    read, rest = _read(rows, format)
    prompts = Counter(prompt_key(row) for row in read)
    answers = Counter(normalize(row.answer) for row in read)
    few = _few(read)
    found, sound = _check(few, format)
    return Survey(
        total=total,
        looked=len(rows),
        **rest,
        format=format,
        groups=len({row.group for row in read if row.group}),
        lengths=tuple(sorted(ABOUT_A_ROW + sum(tokens(turn.full_text) for turn in row.turns) for row in read)),
        answers=tuple(sorted(tokens(row.turns[-1].full_text) for row in read)),
        distinct=len({(prompt_key(row), normalize(row.answer)) for row in read}) / len(read),
        prompts=len(prompts) / len(read),
        usual_prompt=max(prompts.values()) / len(read),
        own_answers=len(answers) / len(read),
        listed=sum(_is_list(row.answer) for row in few) / len(few),
        checked=len(few),
        found=found,
        personal=len({each.row for each in _look("personal")(few, CheckContext())}),
        sound=sound,
    )


def tokens(text: str) -> int:
    """About how many tokens a text has."""
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES)


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest of the sorted numbers that at least a `share` of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _few(rows: Sequence[Any]) -> list[Any]:
    step = max(1.0, len(rows) / FEW)
    return [rows[int(place * step)] for place in range(min(FEW, len(rows)))]


def _read(rows: Sequence[Drawn], format: DetectedFormat) -> tuple[list[Conversation], dict[str, Any]]:
    """The rows as conversations, and what is to be said of the others. Raises DataError when all are others."""
    parse = resolve("tunesmith.data.formats", format.name)
    labels, notes = AnswerLabels(format.name, format.options), ReadNotes()
    read: list[Conversation] = []
    wrong: list[DataError] = []
    for number, values in enumerate(rows, start=1):
        try:
            if isinstance(values, DataError):
                raise values
            turns, group = parsed = parse(values, **format.options)
        except DataError as error:
            wrong.append(error)
            continue
        notes.add(parsed.notes)
        labels.add(len(read), values)
        own = {str(key): value for key, value in values.items() if isinstance(value, str | int | float | bool)}
        read.append(Conversation(str(number), turns, Origin("", number, "row"), group, own))
    if not read:
        raise wrong[0]
    bad = frozenset(labels.bad())
    good = [row for place, row in enumerate(read) if place not in bad]
    if not good:
        raise no_good_answer_error(len(read), labels.column)
    if bad:
        del notes.unused[labels.column]
    refused = count_reasons(error.what for error in wrong)
    return good, {
        "unfit": len(wrong),
        "refused": refused,
        "left_out": len(bad),
        "label": labels.column,
        "notes": notes,
    }


LOOKED_FOR = (
    "broken_turns", "collapsed_list", "generic", "machine_tell", "markup", "mojibake", "placeholder", "repetition",
    "truncated", "ungrounded", "whitespace", "wrong_language",
)  # fmt: skip
ALWAYS = ("empty", "duplicate", "near_duplicate", "secrets")


def _check(rows: Sequence[Conversation], format: DetectedFormat) -> tuple[dict[str, Findings], float]:
    """What each check found, and the share of rows that is left when those checks act that a draft lets act."""
    context = CheckContext(language=Language.of(row.answer for row in rows))
    found: dict[str, Findings] = {}
    gone: set[str] = set()
    for name in (*LOOKED_FOR, *ALWAYS):
        if name == "ungrounded" and format.name != "fields":
            continue
        seen = list(_look(name)(rows, context))
        taken = {each.row for each in seen if each.proposal in ("quarantine", "drop")}
        mended = {each.row for each in seen if each.proposal == "repair"} - taken
        found[name] = Findings(len(taken), len(mended))
        if not too_many(found[name], len(rows)) and (name != "generic" or format.name == "fields"):
            gone |= taken
    return found, 1 - len(gone) / len(rows)


def too_many(found: Findings, rows: int) -> bool:
    """Whether a check takes so many rows that somebody should read them first."""
    return found.taken > 0.3 * rows


def _look(check: str) -> Callable[..., Any]:
    return resolve(CHECKS, check, function="look")


def _is_list(text: str) -> bool:
    """Whether each line is numbered, as the metric numbered_steps wants it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and all(line.startswith(f"{number}. ") for number, line in enumerate(lines, start=1))
