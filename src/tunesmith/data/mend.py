"""Rows mended cell by cell: every text of a row as it stands in its file, each change undone exactly.

Encoding, blanks and entities are mended in every text. Lists and slots are mended in answers alone: a text that the
format took as an answer as it stands. Personal data gets its stand-in in every text, so that a name in a field and in
the answer stays the same person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.conversation import Turn
from tunesmith.data.ner import find_names
from tunesmith.data.privacy import KINDS, Pseudonyms, find_personal, pseudonymise
from tunesmith.data.repair import Edit, Repaired, repair, undo

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
        own = [str(values[name]) for name in self.names if values.get(name)]
        changes: list[Change] = []
        stand_ins = 0

        def mended(path: Path, text: str) -> str:
            nonlocal stand_ins
            done = repair(text, new, base=text not in answers) if self.damage else Repaired(text)
            if done.edits:
                changes.append(Change(path, done.edits))
            if self.book is None:
                return done.text
            people = next(find_names([done.text], model=self.ner)) if self.ner else ()
            spans = find_personal(done.text, names=own, kinds=tuple(self.kinds), people=people)
            stand_ins += len(spans)
            return pseudonymise(done.text, spans, self.book) if spans else done.text

        new = {str(name): value for name, value in values.items()}
        for name in sorted(new, key=lambda name: new[name] in answers if isinstance(new[name], str) else True):
            new[name] = _map(new[name], (name,), mended)  # answers last: their slots are filled from mended fields
        return Mended(new, tuple(changes), stand_ins)


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
