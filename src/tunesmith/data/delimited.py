"""Comma- and tab-separated tables. What the header shows goes before what the file's ending says."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.conversation import Origin
from tunesmith.data.rows import LONGEST, BadRow, Reader, Row, not_text, too_long
from tunesmith.data.stream import as_utf8, lines
from tunesmith.errors import DataError

csv.field_size_limit(1 << 25)  # 32 Mi characters; the library's 128 KiB cuts long documents
HEAD = 20  # lines in which another separator must hold
_OTHERS = {",": ";\t|", "\t": ",;|"}
_NAMED = re.compile(r'"?sep=(.)"?\r?\n?')
_CLOSES = re.compile(r'(?:[^"]|"")*+"(?!")')


@dataclass(frozen=True)
class Separator:
    """The character between cells; `why` it is not the ending's own; how many lines stand before the header."""

    character: str
    why: str = ""
    before: int = 0


def separated(usual: str) -> Reader:
    """A reader of tables with this character between cells, unless the header shows another."""

    def read_separated(path: Path, shown: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
        every = lines(as_utf8(path, encoding), carriage=True)
        head = list(itertools.islice(every, HEAD))
        separator = find_separator(head, usual)
        source = _Source(itertools.chain(head, every), shown, encoding)
        return _table(source, separator)

    return read_separated


def separator_of(path: Path, usual: str, encoding: str | None = None) -> Separator:
    """The separator that a reader of this file takes."""
    return find_separator(list(itertools.islice(lines(as_utf8(path, encoding), carriage=True), HEAD)), usual)


def find_separator(head: Sequence[bytes], usual: str) -> Separator:
    """The separator by the file's first lines (at most HEAD).

    A line `sep=;` says it. Otherwise another one is taken only if the usual one does not stand in the header, the other
    one cuts it into names that are all there and all different, and every row of the head has as many cells.
    """
    texts = [line.decode("utf-8", "replace") for line in head]
    if texts and (named := _NAMED.fullmatch(texts[0])):
        return Separator(named[1], f"the first line says '{texts[0].strip()}'", 1)
    if not texts or len(_cut(texts[:1], usual)[0]) > 1:
        return Separator(usual)
    fitting = [other for other in _OTHERS[usual] if _fits(_cut(texts, other), whole=len(head) < HEAD)]
    if len(fitting) != 1:
        return Separator(usual)
    return Separator(fitting[0], f"the header and the rows below it are cut by {fitting[0]!r}, not by {usual!r}")


def _cut(texts: Sequence[str], character: str) -> list[list[str]]:
    try:
        return list(csv.reader(texts, delimiter=character))
    except csv.Error:
        return [[]]


def _fits(records: list[list[str]], *, whole: bool) -> bool:
    header = [cell.strip() for cell in records[0]]
    rows = [cells for cells in records[1:] if cells]
    rows = rows if whole else rows[:-1]  # the last may go on below the head
    return (
        len(header) > 1
        and all(header)
        and len(set(header)) == len(header)
        and all(len(cells) == len(header) for cells in rows)
    )


class _Source:
    """Lines for csv.reader that remember what the row at hand is made of."""

    def __init__(self, every: Iterator[bytes], shown: str, encoding: str | None) -> None:
        self.shown, self.encoding = shown, encoding
        self.number = 0
        self.ended = False
        self.quoted: list[tuple[int, str]] = []  # the row's lines that hold a quote, with their numbers
        self._every = every
        self.begin()

    def begin(self) -> None:
        """Starts a new row at the next line."""
        self.start = self.number + 1
        self.quoted.clear()
        self.damage: DataError | None = None

    def lines(self) -> Iterator[str]:
        for line in self._every:
            self.number += 1
            try:
                text = line.decode()
            except UnicodeDecodeError:
                text = line.decode("utf-8", "surrogateescape")
                self.damage = self.damage or not_text(self.encoding, self.place(self.number))
            if len(line) > LONGEST:
                self.damage = too_long(self.place(self.number))
                text = text[:100]
            if '"' in text:
                self.quoted.append((self.number, text))
            yield text
        self.ended = True

    def place(self, number: int) -> str:
        return f"{self.shown} line {number}"


def _table(source: _Source, separator: Separator) -> Iterator[Row | BadRow]:
    texts = source.lines()
    for _ in range(separator.before):
        next(texts)
    reader = csv.reader(texts, delimiter=separator.character, strict=True)
    header: list[str] | None = None
    while True:
        source.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            opened = _opened(source.quoted, separator.character)
            endless = source.ended or (opened and "field limit" in str(error))
            number = opened if endless and opened else source.start
            told = source.damage or DataError(
                f"is not well formed: {error}", where=source.place(number), next="Mend the quotes"
            )
            if header is None:
                raise told from error
            yield BadRow(Origin(source.shown, source.start), told)
            if endless:
                return
            continue
        if header is None:
            header = _header(cells, source)
        elif wrong := source.damage or _wrong(cells, header, source):
            yield BadRow(Origin(source.shown, source.start), wrong)
        elif not _blank(cells, header):
            yield Row(dict(zip(header, cells, strict=True)), Origin(source.shown, source.start))


def _header(cells: list[str], source: _Source) -> list[str]:
    if source.damage:
        raise source.damage
    header = [cell.strip() for cell in cells]
    twice = {name for name in header if header.count(name) > 1}
    if twice or not any(header):
        what = f"names the column '{sorted(twice)[0]}' twice" if twice else "has no header"
        raise DataError(what, where=source.place(source.start), next="The first line must name each column once")
    if any("\0" in name for name in header):
        raise DataError("has zero bytes in its header", where=source.place(source.start), next="Save the file as UTF-8")
    return header


def _blank(cells: list[str], header: list[str]) -> bool:
    return not cells or (len(cells) == 1 < len(header) and not cells[0].strip())


def _wrong(cells: list[str], header: list[str], source: _Source) -> DataError | None:
    if len(cells) == len(header) or _blank(cells, header):
        return None
    return DataError(
        f"has {len(cells)} cells where the header has {len(header)}",
        where=source.place(source.start),
        next="Put text that contains the separator into double quotes",
    )


def _opened(row: Sequence[tuple[int, str]], character: str) -> int:
    """The number of the line whose quote is still open at the row's end, or 0. A quote opens at a cell's start only."""
    opens = re.compile(f'(?:^|{re.escape(character)})"')
    opened = 0
    for number, text in row:
        at = 0
        while at < len(text):
            if opened:
                closing = _CLOSES.match(text, at)
                opened, at = (0, closing.end()) if closing else (opened, len(text))
            else:
                opening = opens.search(text, at)
                opened, at = (number, opening.end()) if opening else (0, len(text))
    return opened
