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

from tunesmith.data.conversation import Turn, split_reasoning
from tunesmith.data.messages import decoded_messages
from tunesmith.data.ner import find_names
from tunesmith.data.privacy import KINDS, PseudonymMap, find_personal, pseudonymize
from tunesmith.data.repair_text import Edit, RepairedText, repair, undo

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
