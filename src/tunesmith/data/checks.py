"""What can be wrong with rows. Each function looks at all rows and yields findings.

Keyword-only parameters are the options a recipe may give. A check proposes; `prepare` acts and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tunesmith.data.conversation import Conversation, Turn, normalise
from tunesmith.data.defects import Defect, Language
from tunesmith.data.privacy import KINDS, find_personal, find_secrets
from tunesmith.data.privacy_patterns import Span
from tunesmith.find import entries, find

Proposal = Literal["keep", "drop"]


@dataclass(frozen=True)
class Finding:
    """Something found in a row: by which check, why, and what is proposed."""

    check: str
    row: str
    file: str
    line: int
    unit: str
    message: str
    proposal: Proposal


@dataclass(frozen=True)
class Context:
    """What checks may ask for beside the rows."""

    count_tokens: Callable[[Conversation], int]
    max_tokens: int
    parts: Mapping[str, str]  # row id -> train, valid, test or unseen; empty before the split
    broken: Sequence[Finding] = ()  # rows that could not be read as conversations


def broken(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Rows that are no conversation: turns out of order, no answer, tool calls. Without this check they are errors."""
    yield from context.broken


def empty(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Rows in which the question or an answer says nothing: the model would learn to say nothing."""
    for row in rows:
        silent = [turn.role for turn in row.turns if turn.role != "system" and not turn.text.strip()]
        if silent:
            yield _finding("empty", row, f"the {silent[0]}'s text is empty")


def duplicate(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Rows that repeat an earlier row's prompt and answer: they count twice and leak between splits."""
    seen: dict[tuple[str, ...], Conversation] = {}
    for row in rows:
        key = _key(row.turns)
        first = seen.setdefault(key, row)
        if first is not row:
            yield _finding("duplicate", row, f"repeats {first.origin}")


def leak(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Training rows whose prompt is also a test or validation prompt: the score would be memory, not skill."""
    held: dict[tuple[str, ...], Conversation] = {}
    for row in rows:
        if context.parts.get(row.id, "train") != "train":
            held.setdefault(_prompt_key(row), row)
    for row in rows:
        if context.parts.get(row.id) == "train" and (other := held.get(_prompt_key(row))):
            message = f"its prompt is also in {context.parts[other.id]}: {other.origin}"
            yield _finding("leak", row, message)


def too_long(rows: Sequence[Conversation], context: Context, *, max_tokens: int | None = None) -> Iterator[Finding]:
    """Rows longer than prompt.max_tokens: cut rows would teach the model to break off."""
    limit = max_tokens or context.max_tokens
    for row in rows:
        if (count := context.count_tokens(row)) > limit:
            yield _finding("too_long", row, f"{count} tokens, limit {limit}")


def personal(
    rows: Sequence[Conversation],
    context: Context,
    *,
    kinds: list | None = None,  # type: ignore[type-arg]
    names: list | None = None,  # type: ignore[type-arg]
    drop: bool = False,
) -> Iterator[Finding]:
    """Personal data: e-mail, phone, card, iban, ssn, ip, url by pattern and checksum, names from the row's own columns.

    Found rows are named and kept, or dropped with `drop`. The value itself is never written down.
    """
    wanted = tuple(kinds or [kind for kind in KINDS if kind != "url"])
    for row in rows:
        own = [str(row.fields[name]) for name in names or () if row.fields.get(name)]
        for turn in row.turns:
            for span in find_personal(turn.text, names=own, kinds=wanted):
                yield _finding("personal", row, _place(span, turn), _wish(drop))


def secrets(rows: Sequence[Conversation], context: Context) -> Iterator[Finding]:
    """Keys, tokens and passwords: a model can repeat them to anybody, so such rows are dropped."""
    for row in rows:
        for turn in row.turns:
            for span in find_secrets(turn.text):
                yield _finding("secrets", row, _place(span, turn))


def near_duplicate(rows: Sequence[Conversation], context: Context, *, threshold: float = 0.8) -> Iterator[Finding]:
    """Rows whose prompt and answer nearly repeat an earlier row's: exact Jaccard of 3-word or 4-letter shingles."""
    from tunesmith.data.duplicates import clusters, near_pairs

    texts = [_spoken(row.turns) for row in rows]
    for group in clusters(len(rows), near_pairs(texts, threshold=threshold)):
        for place in group[1:]:
            yield _finding("near_duplicate", rows[place], f"nearly repeats {rows[group[0]].origin}")


def near_leak(rows: Sequence[Conversation], context: Context, *, threshold: float = 0.8) -> Iterator[Finding]:
    """Training rows whose prompt nearly repeats a test or validation prompt; 0.6 suits short questions."""
    from tunesmith.data.duplicates import leaks

    train = [row for row in rows if context.parts.get(row.id) == "train"]
    held = [row for row in rows if context.parts.get(row.id, "train") != "train"]
    found = leaks([_spoken(row.prompt) for row in train], [_spoken(row.prompt) for row in held], threshold=threshold)
    for pair in {pair.first: pair for pair in found}.values():  # a training row is told once
        other = held[pair.second]
        message = f"its prompt is {pair.similarity:.0%} that of {other.origin} in {context.parts[other.id]}"
        yield _finding("near_leak", train[pair.first], message)


def defects(
    rows: Sequence[Conversation],
    context: Context,
    *,
    kinds: list | None = None,  # type: ignore[type-arg]
    drop: bool = False,
) -> Iterator[Finding]:
    """Damage in answers: collapsed lists, placeholders, machine tells, mojibake, markup, cut or repeated text.

    Kinds are named as in tunesmith.data.defects; all but notes are told. Found rows are kept, or dropped with `drop`.
    """
    catalogue = "tunesmith.data.defects"
    wanted: dict[str, Callable[..., Iterator[Defect]]] = {
        kind: find(catalogue, kind, where="data.checks.defects") for kind in kinds or entries(catalogue)
    }
    if "wrong_language" in wanted:
        main = Language.of(row.answer for row in rows)
        wanted["wrong_language"] = partial(wanted["wrong_language"], script=main.script, language=main.code)
    for row in rows:
        for kind, look in wanted.items():
            for defect in look(row.answer):
                if defect.severity != "note":
                    message = f"{_words(kind)} at characters {defect.start} to {defect.end}: {defect.why}"
                    yield _finding("defects", row, message, _wish(drop))


def ungrounded(
    rows: Sequence[Conversation],
    context: Context,
    *,
    fields: list | None = None,  # type: ignore[type-arg]
    drop: bool = False,
) -> Iterator[Finding]:
    """Answers that state facts which the row's fields do not: wrong numbers, employers, degrees, added skills.

    A statement about the writer must come from the writer's fields, never from the advert. `fields` names the columns;
    none takes all but the answer's. Found rows are kept, or dropped with `drop`.
    """
    from tunesmith.claims.match import check

    for row in rows:
        own = {
            name: str(value)
            for name, value in row.fields.items()
            if str(value).strip() and str(value) != row.answer and (fields is None or name in fields)
        }
        for found in check(row.answer, own) if own else []:
            if found.verdict != "supported":
                message = f"{found.verdict} {found.claim.kind} '{found.claim.text}': {found.reason}"
                yield _finding("ungrounded", row, message, _wish(drop))


AFTER_SPLIT = ("leak", "near_leak")


def _key(turns: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(normalise(turn.text) for turn in turns)  # turn by turn: '1 2' then '3' is not '1' then '2 3'


def _prompt_key(row: Conversation) -> tuple[str, ...]:
    return _key([turn for turn in row.prompt if turn.role != "system"])


def _spoken(turns: Sequence[Turn]) -> str:
    return "\n".join(turn.text for turn in turns if turn.role != "system")


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _place(span: Span, turn: Turn) -> str:
    return f"{_words(span.kind)} in the {turn.role}'s text, characters {span.start} to {span.end}"


def _wish(drop: bool) -> Proposal:
    return "drop" if drop else "keep"


def _finding(check: str, row: Conversation, message: str, proposal: Proposal = "drop") -> Finding:
    return Finding(check, row.id, row.origin.file, row.origin.line, row.origin.unit, message, proposal)
