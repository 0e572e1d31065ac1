"""Rows mended cell by cell: every text of a row as it stands in its file, each change undone exactly.

Encoding, blanks and entities are mended in every text. Lists and slots are mended in answers alone: a text that the
format took as an answer as it stands, or behind the reasoning that it begins with. Reasoning is never mended: it holds
code and drafts whose layout means something. A cell that holds messages as JSON text is mended message by message, as
one change. Personal data gets its stand-in in every text, so that a name in a field and in the answer stays the same
person.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.conversation import Turn, split_reasoning
from tunesmith.data.messages import decoded_messages
from tunesmith.data.ner import find_names
from tunesmith.data.privacy import KINDS, Pseudonyms, find_personal, pseudonymise
from tunesmith.data.repair_text import Edit, Repaired, repair, undo

Path = tuple[str | int, ...]  # the keys and places that lead to a text inside a row


@dataclass(frozen=True)
class Change:
    """What became of one text of a row. Stand-ins are no edits: the book of stand-ins alone can turn them back."""

    path: Path
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Mended:
    """A row's values after mending, and the changes that led there."""

    values: dict[str, Any]
    changes: tuple[Change, ...] = ()
    stand_ins: int = 0


@dataclass(frozen=True)
class Mend:
    """What is to be mended: damage (`damage`), personal data (`book`, with the kinds and name columns to look for).

    `ner` is the spaCy pipeline that finds people's names; '' for none.
    """

    damage: bool = False
    book: Pseudonyms | None = None
    kinds: Sequence[str] = tuple(kind for kind in KINDS if kind != "url")
    names: Sequence[str] = ()
    ner: str = ""

    def __bool__(self) -> bool:
        return self.damage or self.book is not None

    def row(self, values: Mapping[str, Any], turns: Sequence[Turn]) -> Mended:
        """`values` mended; `turns` are the conversation that was read from them."""
        answers = {turn.text for turn in turns if turn.role == "assistant"}
        thoughts = {turn.reasoning for turn in turns if turn.reasoning}
        own = [str(values[name]) for name in self.names if values.get(name)]
        changes: list[Change] = []
        stand_ins = 0

        def mended(path: Path, text: str) -> str:
            nonlocal stand_ins
            if (messages := decoded_messages(text)) is not None:
                return in_cell(path, text, messages)
            done = _repaired(text, new, answers, thoughts) if self.damage else Repaired(text)
            if done.edits:
                changes.append(Change(path, done.edits))
            if self.book is None:
                return done.text
            people = next(find_names([done.text], model=self.ner)) if self.ner else ()
            spans = find_personal(done.text, names=own, kinds=tuple(self.kinds), people=people)
            stand_ins += len(spans)
            return pseudonymise(done.text, spans, self.book) if spans else done.text

        def in_cell(path: Path, text: str, messages: Any) -> str:
            first, before = len(changes), stand_ins
            inner = _map(messages, (), mended)
            edited = sorted(set(kinds(changes[first:])))
            del changes[first:]
            if not edited and stand_ins == before:
                return text
            after = json.dumps(inner, ensure_ascii=False)
            if edited:
                changes.append(Change(path, (Edit(0, len(text), text, after, "+".join(edited)),)))
            return after

        new = {str(name): value for name, value in values.items()}
        for name in sorted(new, key=lambda name: not isinstance(new[name], str) or _is_answer(new[name], answers)):
            new[name] = _map(new[name], (name,), mended)  # answers last: their slots are filled from mended fields
        return Mended(new, tuple(changes), stand_ins)


def _repaired(text: str, fields: Mapping[str, Any], answers: set[str], thoughts: set[str]) -> Repaired:
    """The text repaired as what it is: an answer, an answer behind its reasoning, reasoning, or another text."""
    if text in answers:
        return repair(text, fields)
    if text.strip("\r\n") in thoughts:
        return Repaired(text)
    if not _is_answer(text, answers):
        return repair(text, fields, base=True)
    answer = split_reasoning(text)[1]
    start = len(text) - len(answer)
    done = repair(answer, fields)
    edits = tuple(replace(edit, start=edit.start + start, end=edit.end + start) for edit in done.edits)
    return Repaired(text[:start] + done.text, edits)


def _is_answer(text: str, answers: set[str]) -> bool:
    return text in answers or split_reasoning(text)[1] in answers


def undo_row(values: Mapping[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """The values before `changes`.

    Raises DataError if a text is not what its change led to.
    """
    by_path = {change.path: change.edits for change in changes}
    return {
        str(name): _map(value, (str(name),), lambda path, text: undo(text, by_path.get(path, ())))
        for name, value in values.items()
    }


def to_plain(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Plain values, for JSON lines."""
    return [
        {
            "path": list(change.path),
            "edits": [[edit.start, edit.end, edit.before, edit.after, edit.kind] for edit in change.edits],
        }
        for change in changes
    ]


def from_plain(plain: Sequence[Mapping[str, Any]]) -> tuple[Change, ...]:
    """The inverse of `to_plain`."""
    return tuple(Change(tuple(each["path"]), tuple(Edit(*edit) for edit in each["edits"])) for each in plain)


def kinds(changes: Sequence[Change]) -> Iterator[str]:
    """The kind of each edit."""
    for change in changes:
        for edit in change.edits:
            yield from edit.kind.split("+")


def _map(value: Any, path: Path, change: Callable[[Path, str], str]) -> Any:
    """`value` with each text in it changed, however deep it stands in lists and mappings."""
    if isinstance(value, str):
        return change(path, value)
    if isinstance(value, list):
        return [_map(item, (*path, place), change) for place, item in enumerate(value)]
    if isinstance(value, dict):
        return {name: _map(item, (*path, str(name)), change) for name, item in value.items()}
    return value
