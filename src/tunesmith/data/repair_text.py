"""Reversible repairs of one text, limited to defects with a certain fix.

Only the spans of defects are changed, so a text without defects stays the same, byte for byte. Passes repeat until
nothing changes, so a second repair does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.defects import Defect, broken_whitespace, collapsed_list, markup, mojibake, placeholders
from tunesmith.errors import DataError

_MAX_PASSES = 8  # 11,667 real texts need one; a text that still changes after eight is left unrepaired


@dataclass(frozen=True)
class Edit:
    """Replaces `before`, at start:end of the original text (characters from 0), with `after`.

    `kind` is the kind of defect that was repaired; overlapping kinds are joined by '+'.
    """

    start: int
    end: int
    before: str
    after: str
    kind: str


@dataclass(frozen=True)
class RepairedText:
    """A repaired text and its edits, in order, at positions in the original text; no two touch."""

    text: str
    edits: tuple[Edit, ...] = ()


def repair(text: str, fields: Mapping[str, Any] | None = None, *, base: bool = False) -> RepairedText:
    """Repairs encoding, whitespace, entities, collapsed lists, and placeholders that one value of `fields` fits.

    With `base`, only the first three. `repair(repair(x).text)` changes nothing, and `undo` restores x.
    """
    result = RepairedText(text)
    passes = (*map(_fixable, (mojibake, broken_whitespace, markup)),)
    if not base:
        passes += (_placeholder_filler(fields), _fixable(collapsed_list))
    for _ in range(_MAX_PASSES):
        before = result.text
        for detect in passes:
            if edits := _to_edits(detect(result.text)):
                result = _compose(text, result, edits)
        if result.text == before:
            return result
    return RepairedText(text)


def undo(text: str, edits: Sequence[Edit]) -> str:
    """The text before `edits`. Raises DataError if `text` is not the result of the edits."""
    parts, position, shift = [], 0, 0
    for edit in edits:
        start = edit.start + shift
        end = start + len(edit.after)
        if text[start:end] != edit.after or start < position:
            raise DataError(
                f"cannot undo '{edit.kind}' at character {start}: the text was changed after the repair",
                next="Pass the text and the edits of the same repair",
            )
        parts += [text[position:start], edit.before]
        position, shift = end, shift + len(edit.after) - len(edit.before)
    return "".join([*parts, text[position:]])


# --- fixes ---------------------------------------------------------------------------------------------------

_Detector = Callable[[str], Iterator[Defect]]


def _fixable(detect: _Detector) -> _Detector:
    return lambda text: (defect for defect in detect(text) if defect.fix is not None)


# For each value: what a placeholder may call it, and the names of the fields that contain it. Names are compared
# without case, punctuation and 'your'. A field with the placeholder's own name always matches.
_SYNONYMS = (
    ({"my name", "your full name", "full name", "applicant name", "applicants name", "candidate name"},
     {"applicant name", "candidate name", "applicant", "full name"}),
    ({"company", "company name", "name company", "hiring company", "employer", "employer name", "companys name"},
     {"hiring company", "company", "company name", "employer"}),
    ({"position", "job title", "position title", "job position", "position name", "title position"},
     {"job title", "position", "position title"}),
)  # fmt: skip
_FILLER_WORDS = frozenset({"your", "the", "insert", "enter", "here", "of", "add"})
# a missing value, or itself a placeholder
_NO_VALUE = re.compile(r"[\[\]{}<>\n\r`]|&#?\w+;|(?i:\bn/?a\b|\bnone\b|\bnan\b|\bnull\b)")
_MAX_CHARACTERS = 80  # characters of a value: a longer one is not a name
_GREETING = re.compile(r"(?i)\b(?:dear|hi|hello|hey|mr|mrs|ms|to)[.,]?\s*$")


def _placeholder_filler(fields: Mapping[str, Any] | None) -> _Detector:
    """A detector of placeholders that exactly one value of `fields` fits, with that value as the fix."""
    pairs = (fields or {}).items()
    values = [(_words(name), str(value).strip()) for name, value in pairs if type(value) in (str, int)]

    def fill(text: str) -> Iterator[Defect]:
        for slot in placeholders(text) if values else ():
            if slot.text[0] not in "[{<" or _GREETING.search(text[max(0, slot.start - 8) : slot.start]):
                continue  # '[Name]' in a greeting is the recipient
            if value := _value(slot.text.strip("[]{}<> "), values):
                yield replace(slot, fix=value)

    return fill


def _value(slot: str, values: Sequence[tuple[str, str]]) -> str:
    """The only value that fits the placeholder's words; '' if there is none or more than one."""
    words = _words(slot)
    if words == "name" and slot.lower().split()[:1] == ["your"]:
        words = "my name"  # '[Your Name]' is the writer; '[Name]' may be anyone
    names = {words}.union(*(names for slots, names in _SYNONYMS if words in slots)) - {""}
    fit = {
        value
        for name, value in values
        if name in names and 0 < len(value) <= _MAX_CHARACTERS and not _NO_VALUE.search(value)
    }
    return fit.pop() if len(fit) == 1 else ""


def _words(name: str) -> str:
    spaced = re.sub(r"[\s_-]+", " ", re.sub(r"['’]", "", name)).lower()
    return " ".join(word for word in spaced.split() if word not in _FILLER_WORDS)


# --- edits ---------------------------------------------------------------------------------------------------


def _to_edits(defects: Iterator[Defect]) -> list[Edit]:
    """The fixes of the defects as edits, in order; of two that overlap, the first."""
    edits: list[Edit] = []
    for defect in sorted(defects, key=lambda defect: (defect.start, defect.end)):
        if (not edits or defect.start >= edits[-1].end) and defect.fix not in (None, defect.text):
            edits.append(Edit(defect.start, defect.end, defect.text, str(defect.fix), defect.kind))
    return edits


def _compose(original: str, earlier: RepairedText, later: Sequence[Edit]) -> RepairedText:
    """Applies `later`, with positions in `earlier.text`, after `earlier`, whose edits have positions in `original`.

    Overlapping or touching edits are merged. A position outside all edits shifts by the lengths gained before it.
    """
    text = _apply(earlier.text, later)
    earlier_spans = [(edit.start, edit.end, edit.kind, gain) for edit, gain in _in_repaired(earlier.edits)]
    later_spans = [(edit.start, edit.end, edit.kind, len(edit.after) - len(edit.before)) for edit in later]
    edits: list[Edit] = []
    earlier_gain, later_gain = 0, 0  # subtracted from a position in earlier.text for `original`, added for `text`
    for group in _group_touching(
        sorted([(*span, True) for span in earlier_spans] + [(*span, False) for span in later_spans])
    ):
        start, end = group[0][0], max(span[1] for span in group)
        original_start, final_start = start - earlier_gain, start + later_gain
        earlier_gain += sum(span[3] for span in group if span[4])
        later_gain += sum(span[3] for span in group if not span[4])
        before, after = original[original_start : end - earlier_gain], text[final_start : end + later_gain]
        kinds = "+".join(sorted({kind for span in group for kind in span[2].split("+")}))
        if before != after:
            edits.append(Edit(original_start, end - earlier_gain, before, after, kinds))
    return RepairedText(text, tuple(edits))


def _apply(text: str, edits: Sequence[Edit]) -> str:
    parts, position = [], 0
    for edit in edits:
        parts += [text[position : edit.start], edit.after]
        position = edit.end
    return "".join([*parts, text[position:]])


def _in_repaired(edits: Sequence[Edit]) -> Iterator[tuple[Edit, int]]:
    """The edits with positions in the repaired text, and the number of characters each one adds."""
    shift = 0
    for edit in edits:
        start, gain = edit.start + shift, len(edit.after) - len(edit.before)
        yield replace(edit, start=start, end=start + len(edit.after)), gain
        shift += gain


_Span = tuple[int, int, str, int, bool]  # start, end, kind, characters added, whether from an earlier edit


def _group_touching(spans: Sequence[_Span]) -> Iterator[list[_Span]]:
    """Groups sorted spans that overlap or touch."""
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
