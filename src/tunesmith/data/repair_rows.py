"""Repairs rows cell by cell, on the texts as they are in the file; each change can be undone exactly.

Encoding, whitespace and entities are repaired in every text. Lists and placeholders are repaired only in answers: texts
that the format reads as an answer, after any leading reasoning. Reasoning is never repaired, because the layout of its
code and drafts has a meaning. A cell with messages as JSON text is repaired message by message, as one change. Personal
data is replaced by pseudonyms in every text, so that a name in a field and in the answer stays the same person.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.checks import collapsed_list, markup, mojibake, placeholder, whitespace
from tunesmith.data.conversation import Turn, split_reasoning
from tunesmith.data.finding import Defect, Detector
from tunesmith.data.messages import decoded_messages
from tunesmith.data.privacy import KINDS, PseudonymMap, find_names, find_personal, pseudonymize
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
    passes = (*map(_fixable, (mojibake.detect, whitespace.detect, markup.detect)),)
    if not base:
        passes += (placeholder.filler(fields), _fixable(collapsed_list.detect))
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


def _fixable(detect: Detector) -> Detector:
    return lambda text: (defect for defect in detect(text) if defect.fix is not None)


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


Path = tuple[str | int, ...]  # the keys and indices that lead to a text inside a row


@dataclass(frozen=True)
class Change:
    """The edits of one text of a row. Pseudonyms are not among them: only the pseudonym map can reverse those."""

    path: Path
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class RepairedRow:
    """A row's values after repair, the changes, and the number of pseudonyms that were inserted."""

    values: dict[str, Any]
    changes: tuple[Change, ...] = ()
    pseudonym_count: int = 0


@dataclass(frozen=True)
class RowRepair:
    """What to repair: damage, and personal data if `book` is a pseudonym map.

    `kinds` are the kinds of personal data, `names` the columns with names, and `ner` the spaCy pipeline that finds
    names of people, '' for none.
    """

    damage: bool = False
    book: PseudonymMap | None = None
    kinds: Sequence[str] = tuple(kind for kind in KINDS if kind != "url")
    names: Sequence[str] = ()
    ner: str = ""

    def __bool__(self) -> bool:
        return self.damage or self.book is not None

    def row(self, values: Mapping[str, Any], turns: Sequence[Turn]) -> RepairedRow:
        """Repairs `values`; `turns` is the conversation that was read from them."""
        answers = {turn.text for turn in turns if turn.role == "assistant"}
        thoughts = {turn.reasoning for turn in turns if turn.reasoning}
        row_names = [str(values[name]) for name in self.names if values.get(name)]
        changes: list[Change] = []
        pseudonym_count = 0

        def repair_cell(path: Path, text: str) -> str:
            nonlocal pseudonym_count
            if (messages := decoded_messages(text)) is not None:
                return repair_messages(path, text, messages)
            repaired = _repair_by_role(text, new_values, answers, thoughts) if self.damage else RepairedText(text)
            if repaired.edits:
                changes.append(Change(path, repaired.edits))
            if self.book is None:
                return repaired.text
            people = next(find_names([repaired.text], model=self.ner)) if self.ner else ()
            spans = find_personal(repaired.text, names=row_names, kinds=tuple(self.kinds), people=people)
            pseudonym_count += len(spans)
            return pseudonymize(repaired.text, spans, self.book) if spans else repaired.text

        def repair_messages(path: Path, text: str, messages: Any) -> str:
            first_change, count_before = len(changes), pseudonym_count
            repaired_messages = _map(messages, (), repair_cell)
            kinds_changed = sorted(set(edit_kinds(changes[first_change:])))
            del changes[first_change:]
            if not kinds_changed and pseudonym_count == count_before:
                return text
            new_text = json.dumps(repaired_messages, ensure_ascii=False)
            if kinds_changed:
                changes.append(Change(path, (Edit(0, len(text), text, new_text, "+".join(kinds_changed)),)))
            return new_text

        new_values = {str(name): value for name, value in values.items()}

        def comes_last(name: str) -> bool:
            return not isinstance(new_values[name], str) or _is_answer(new_values[name], answers)

        for name in sorted(new_values, key=comes_last):  # answers last: repaired fields fill their placeholders
            new_values[name] = _map(new_values[name], (name,), repair_cell)
        return RepairedRow(new_values, tuple(changes), pseudonym_count)


def _repair_by_role(text: str, fields: Mapping[str, Any], answers: set[str], thoughts: set[str]) -> RepairedText:
    """Repairs a text by its role: an answer, an answer after reasoning, reasoning, or any other text."""
    if text in answers:
        return repair(text, fields)
    if text.strip("\r\n") in thoughts:
        return RepairedText(text)
    if not _is_answer(text, answers):
        return repair(text, fields, base=True)
    answer = split_reasoning(text)[1]
    start = len(text) - len(answer)
    repaired = repair(answer, fields)
    edits = tuple(replace(edit, start=edit.start + start, end=edit.end + start) for edit in repaired.edits)
    return RepairedText(text[:start] + repaired.text, edits)


def _is_answer(text: str, answers: set[str]) -> bool:
    return text in answers or split_reasoning(text)[1] in answers


def undo_row(values: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """The values before `changes`. Raises DataError if a text is not the result of its change."""
    by_path = {change.path: change.edits for change in changes}
    return {
        str(name): _map(value, (str(name),), lambda path, text: undo(text, by_path.get(path, ())))
        for name, value in values.items()
    }


def changes_to_dicts(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """The changes as plain values for JSON lines."""
    return [
        {
            "path": list(change.path),
            "edits": [[edit.start, edit.end, edit.before, edit.after, edit.kind] for edit in change.edits],
        }
        for change in changes
    ]


def changes_from_plain(plain: Sequence[Mapping[str, Any]]) -> tuple[Change, ...]:
    """The inverse of `changes_to_dicts`."""
    return tuple(Change(tuple(entry["path"]), tuple(Edit(*edit) for edit in entry["edits"])) for entry in plain)


def edit_kinds(changes: Sequence[Change]) -> Iterator[str]:
    """The kind of each edit."""
    for change in changes:
        for edit in change.edits:
            yield from edit.kind.split("+")


def _map(value: Any, path: Path, change: Callable[[Path, str], str]) -> Any:
    """Applies `change` to every text in `value`, at any depth of lists and mappings."""
    if isinstance(value, str):
        return change(path, value)
    if isinstance(value, list):
        return [_map(item, (*path, index), change) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {name: _map(item, (*path, str(name)), change) for name, item in value.items()}
    return value
