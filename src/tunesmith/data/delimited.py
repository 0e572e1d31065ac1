"""Reads comma- and tab-separated tables; the header may override the separator that the file suffix implies."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.conversation import Origin
from tunesmith.data.rows import MAX_ROW, BadRow, Reader, Row, as_utf8, not_text_error, split_lines, too_long_error
from tunesmith.errors import DataError

csv.field_size_limit(1 << 25)  # 32 Mi characters; the default of 128 KiB cuts long documents
HEAD = 20  # lines that another separator must fit
_ALTERNATIVES = {",": ";\t|", "\t": ",;|"}
_DECLARED = re.compile(r'"?sep=(.)"?\r?\n?')
_CLOSING_QUOTE = re.compile(r'(?:[^"]|"")*+"(?!")')


@dataclass(frozen=True)
class Separator:
    """The character between cells, `why` it is not the suffix's, and the number of lines before the header."""

    character: str
    why: str = ""
    before: int = 0


def delimited_reader(default: str) -> Reader:
    """Returns a reader of tables with this separator, unless the header shows another."""

    def read_separated(path: Path, name: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
        file_lines = split_lines(as_utf8(path, encoding), carriage=True)
        head = list(itertools.islice(file_lines, HEAD))
        separator = find_separator(head, default)
        source = _Source(itertools.chain(head, file_lines), name, encoding)
        return _table(source, separator)

    return read_separated


def detect_separator(path: Path, default: str, encoding: str | None = None) -> Separator:
    """The separator that the reader uses for this file."""
    return find_separator(list(itertools.islice(split_lines(as_utf8(path, encoding), carriage=True), HEAD)), default)


def find_separator(head: Sequence[bytes], default: str) -> Separator:
    """The separator, judged by the first lines of the file (at most HEAD).

    A first line `sep=;` decides. Otherwise another separator is used only if the usual one is not in the header, the
    other one splits it into distinct, nonempty names, and all rows of the head have the same number of cells.
    """
    texts = [line.decode("utf-8", "replace") for line in head]
    if texts and (declared := _DECLARED.fullmatch(texts[0])):
        return Separator(declared[1], f"the first line is '{texts[0].strip()}'", 1)
    if not texts or len(_parse(texts[:1], default)[0]) > 1:
        return Separator(default)
    candidates = [
        character for character in _ALTERNATIVES[default] if _fits(_parse(texts, character), whole=len(head) < HEAD)
    ]
    if len(candidates) != 1:
        return Separator(default)
    return Separator(
        candidates[0], f"the header and the rows below it are separated by {candidates[0]!r}, not by {default!r}"
    )


def _parse(texts: Sequence[str], character: str) -> list[list[str]]:
    try:
        return list(csv.reader(texts, delimiter=character))
    except csv.Error:
        return [[]]


def _fits(records: list[list[str]], *, whole: bool) -> bool:
    header = [cell.strip() for cell in records[0]]
    rows = [cells for cells in records[1:] if cells]
    rows = rows if whole else rows[:-1]  # the last row may continue after the head
    return (
        len(header) > 1
        and all(header)
        and len(set(header)) == len(header)
        and all(len(cells) == len(header) for cells in rows)
    )


class _Source:
    """Lines for csv.reader, with the line numbers and damage of the current row."""

    def __init__(self, file_lines: Iterator[bytes], name: str, encoding: str | None) -> None:
        self.name, self.encoding = name, encoding
        self.number = 0
        self.ended = False
        self.quoted: list[tuple[int, str]] = []  # the row's lines with a quote, and their numbers
        self._every = file_lines
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
                self.damage = self.damage or not_text_error(self.encoding, self.place(self.number))
            if len(line) > MAX_ROW:
                self.damage = too_long_error(self.place(self.number))
                text = text[:100]
            if '"' in text:
                self.quoted.append((self.number, text))
            yield text
        self.ended = True

    def place(self, number: int) -> str:
        return f"{self.name} line {number}"


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
            open_line = _open_quote_line(source.quoted, separator.character)
            unclosed = source.ended or (open_line and "field limit" in str(error))
            number = open_line if unclosed and open_line else source.start
            failure = source.damage or DataError(
                f"is not well formed: {error}", where=source.place(number), next="Correct the quotes"
            )
            if header is None:
                raise failure from error
            yield BadRow(Origin(source.name, source.start), failure)
            if unclosed:
                return
            continue
        if header is None:
            header = _header(cells, source)
        elif problem := source.damage or _cell_count_error(cells, header, source):
            yield BadRow(Origin(source.name, source.start), problem)
        elif not _is_blank(cells, header):
            yield Row(dict(zip(header, cells, strict=True)), Origin(source.name, source.start))


def _header(cells: list[str], source: _Source) -> list[str]:
    if source.damage:
        raise source.damage
    header = [cell.strip() for cell in cells]
    twice = {name for name in header if header.count(name) > 1}
    if twice or not any(header):
        message = f"names the column '{sorted(twice)[0]}' twice" if twice else "has no header"
        raise DataError(message, where=source.place(source.start), next="Name each column once in the first line")
    if any("\0" in name for name in header):
        raise DataError("has NUL bytes in its header", where=source.place(source.start), next="Save the file as UTF-8")
    return header


def _is_blank(cells: list[str], header: list[str]) -> bool:
    return not cells or (len(cells) == 1 < len(header) and not cells[0].strip())


def _cell_count_error(cells: list[str], header: list[str], source: _Source) -> DataError | None:
    if len(cells) == len(header) or _is_blank(cells, header):
        return None
    return DataError(
        f"has {len(cells)} cells where the header has {len(header)}",
        where=source.place(source.start),
        next="Put text that contains the separator into double quotes",
    )


def _open_quote_line(row: Sequence[tuple[int, str]], character: str) -> int:
    """The number of the line whose quote is still open at the end of the row, or 0.

    A quote opens only at the start of a cell.
    """
    opens = re.compile(f'(?:^|{re.escape(character)})"')
    open_line = 0
    for number, text in row:
        position = 0
        while position < len(text):
            if open_line:
                closing = _CLOSING_QUOTE.match(text, position)
                open_line, position = (0, closing.end()) if closing else (open_line, len(text))
            else:
                opening = opens.search(text, position)
                open_line, position = (number, opening.end()) if opening else (0, len(text))
    return open_line
