"""Repairs of one text that can be taken back: what a defect's place alone makes certain, and nothing else.

A repair is made only where `defects` found something, so that a text without defects stays as it is, byte for byte.
Rounds go on until nothing changes, so that a second repair finds nothing to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.defects import Defect, broken_whitespace, collapsed_list, markup, mojibake, placeholders
from tunesmith.errors import DataError

_ROUNDS = 8  # 11,667 real texts settle in one; one that does not in eight is left as it was, which is settled too


@dataclass(frozen=True)
class Edit:
    """`before` stood at start:end of the original text (characters from 0); `after` stands there now.

    `kind` names the defects mended, joined by '+' where several lay on one another.
    """

    start: int
    end: int
    before: str
    after: str
    kind: str


@dataclass(frozen=True)
class Repaired:
    """A repaired text and its edits, in the original's order and places, none touching another."""

    text: str
    edits: tuple[Edit, ...] = ()


def repair(text: str, fields: Mapping[str, Any] | None = None, *, base: bool = False) -> Repaired:
    """Mends encoding, blanks, entities, lists run together, and slots that a value of `fields` certainly fills.

    With `base` only the first three. `repair(repair(x).text)` changes nothing, and `undo` gives x back.
    """
    done = Repaired(text)
    passes = (*map(_fixes, (mojibake, broken_whitespace, markup)),)
    if not base:
        passes += (_filler(fields), _fixes(collapsed_list))
    for _ in range(_ROUNDS):
        before = done.text
        for found in passes:
            if edits := _apart(found(done.text)):
                done = _compose(text, done, edits)
        if done.text == before:
            return done
    return Repaired(text)


def undo(text: str, edits: Sequence[Edit]) -> str:
    """The text before `edits`.

    Raises DataError if `text` is not what the edits led to.
    """
    parts, here, shift = [], 0, 0
    for edit in edits:
        start = edit.start + shift
        end = start + len(edit.after)
        if text[start:end] != edit.after or start < here:
            raise DataError(
                f"cannot undo '{edit.kind}' at character {start}: the text is not the repaired one",
                next="Give undo the text and the edits of one and the same repair",
            )
        parts += [text[here:start], edit.before]
        here, shift = end, shift + len(edit.after) - len(edit.before)
    return "".join([*parts, text[here:]])


# --- what to put in a defect's place -------------------------------------------------------------------------

_Finder = Callable[[str], Iterator[Defect]]


def _fixes(kind: _Finder) -> _Finder:
    return lambda text: (defect for defect in kind(text) if defect.fix is not None)


# One line a thing: what a slot may call it, and the names of the fields that hold it. Words are compared without case,
# signs and 'your'. A field called as the slot is always its own.
_SAME = (
    ({"my name", "your full name", "full name", "applicant name", "applicants name", "candidate name"},
     {"applicant name", "candidate name", "applicant", "full name"}),
    ({"company", "company name", "name company", "hiring company", "employer", "employer name", "companys name"},
     {"hiring company", "company", "company name", "employer"}),
    ({"position", "job title", "position title", "job position", "position name", "title position"},
     {"job title", "position", "position title"}),
)  # fmt: skip
_FILLER_WORDS = frozenset({"your", "the", "insert", "enter", "here", "of", "add"})
_UNFIT = re.compile(r"[\[\]{}<>\n\r`]|&#?\w+;|(?i:\bn/?a\b|\bnone\b|\bnan\b|\bnull\b)")  # no value, or a slot itself
_LONGEST = 80  # characters of a value: a longer one is no name
_GREETING = re.compile(r"(?i)\b(?:dear|hi|hello|hey|mr|mrs|ms|to)[.,]?\s*$")


def _filler(fields: Mapping[str, Any] | None) -> _Finder:
    """Slots with the one value of `fields` that belongs there as their fix; without such a value a slot stays."""
    given = (fields or {}).items()
    values = [(_words(name), str(value).strip()) for name, value in given if type(value) in (str, int)]

    def fill(text: str) -> Iterator[Defect]:
        for slot in placeholders(text) if values else ():
            if slot.text[0] not in "[{<" or _GREETING.search(text[max(0, slot.start - 8) : slot.start]):
                continue  # '[Name]' in a greeting is the reader's
            if value := _value(slot.text.strip("[]{}<> "), values):
                yield replace(slot, fix=value)

    return fill


def _value(slot: str, values: Sequence[tuple[str, str]]) -> str:
    """The one value that the slot's words certainly name; '' if there is none or more than one."""
    words = _words(slot)
    if words == "name" and slot.lower().split()[:1] == ["your"]:
        words = "my name"  # the writer's: '[Your Name]'; a bare '[Name]' may be anybody's
    names = {words}.union(*(names for slots, names in _SAME if words in slots)) - {""}
    fit = {value for name, value in values if name in names and 0 < len(value) <= _LONGEST and not _UNFIT.search(value)}
    return fit.pop() if len(fit) == 1 else ""


def _words(name: str) -> str:
    spaced = re.sub(r"[\s_-]+", " ", re.sub(r"['’]", "", name)).lower()
    return " ".join(word for word in spaced.split() if word not in _FILLER_WORDS)


# --- edits ---------------------------------------------------------------------------------------------------


def _apart(defects: Iterator[Defect]) -> list[Edit]:
    """The defects' fixes in order; of two that overlap, the first."""
    edits: list[Edit] = []
    for defect in sorted(defects, key=lambda defect: (defect.start, defect.end)):
        if (not edits or defect.start >= edits[-1].end) and defect.fix not in (None, defect.text):
            edits.append(Edit(defect.start, defect.end, defect.text, str(defect.fix), defect.kind))
    return edits


def _compose(original: str, done: Repaired, then: Sequence[Edit]) -> Repaired:
    """`then`, whose places are in `done.text`, on top of `done`: edits whose places are in `original`.

    Edits that meet become one. A place outside every edit differs between two texts by the lengths won so far.
    """
    text = _apply(done.text, then)
    old = [(edit.start, edit.end, edit.kind, gain) for edit, gain in _in_the_new(done.edits)]
    new = [(edit.start, edit.end, edit.kind, len(edit.after) - len(edit.before)) for edit in then]
    edits: list[Edit] = []
    was, becomes = 0, 0  # what to take from a place in done.text for one in `original`, to add for one in `text`
    for group in _meeting(sorted([(*span, True) for span in old] + [(*span, False) for span in new])):
        start, end = group[0][0], max(span[1] for span in group)
        first, first_new = start - was, start + becomes
        was += sum(span[3] for span in group if span[4])
        becomes += sum(span[3] for span in group if not span[4])
        before, after = original[first : end - was], text[first_new : end + becomes]
        kinds = "+".join(sorted({kind for span in group for kind in span[2].split("+")}))
        if before != after:
            edits.append(Edit(first, end - was, before, after, kinds))
    return Repaired(text, tuple(edits))


def _apply(text: str, edits: Sequence[Edit]) -> str:
    parts, here = [], 0
    for edit in edits:
        parts += [text[here : edit.start], edit.after]
        here = edit.end
    return "".join([*parts, text[here:]])


def _in_the_new(edits: Sequence[Edit]) -> Iterator[tuple[Edit, int]]:
    """The edits with their places in the text they lead to, and the characters each adds."""
    shift = 0
    for edit in edits:
        start, gain = edit.start + shift, len(edit.after) - len(edit.before)
        yield replace(edit, start=start, end=start + len(edit.after)), gain
        shift += gain


_Span = tuple[int, int, str, int, bool]  # start and end in the text between, kind, characters added, an earlier edit's


def _meeting(spans: Sequence[_Span]) -> Iterator[list[_Span]]:
    """The sorted spans in groups that overlap or touch."""
    group: list[_Span] = []
    end = 0
    for span in spans:
        if group and span[0] > end:
            yield group
            group = []
        end = max(end, span[1]) if group else span[1]
        group.append(span)
    if group:
        yield group
