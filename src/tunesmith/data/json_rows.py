"""Reads JSON lines and JSON lists row by row; damage costs only the row that it is in."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Origin
from tunesmith.data.rows import (
    CORRECT,
    DECODER,
    MAX_ROW,
    BadRow,
    Row,
    as_utf8,
    check_surrogates,
    not_text_error,
    parse_json,
    require_object,
    split_lines,
    too_long_error,
)
from tunesmith.errors import DataError

MAX_OBJECT_BYTES = 1 << 28  # bytes of a JSON object with a table; it is read at once
NO_LIST = "has no list of rows"  # the error for an object that is not a table
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{]+|[\]}]+|[",]', re.DOTALL)
_LONG_WORD = 16  # more characters than a number or a word that the end of the window may cut off
_ROW, _STRAY, _EXTRA, _OPEN, _END = "row", "stray", "extra", "open", "end"  # what a list's reader meets next


def jsonl(path: Path, name: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """One row per line; empty lines are skipped."""
    for number, line in enumerate(split_lines(as_utf8(path, encoding)), start=1):
        origin = Origin(name, number)
        try:
            text = _decode(line, str(origin), encoding).rstrip("\n")
            if text.strip():
                yield Row(require_object(parse_json(text, str(origin)), str(origin)), origin)
        except DataError as error:
            yield BadRow(origin, error)


def _decode(line: bytes, where: str, encoding: str | None) -> str:
    if len(line) > MAX_ROW:
        raise too_long_error(where)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise not_text_error(encoding, where) from error


def json_rows(path: Path, name: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a list, or of the only list in an object. A list is read row by row, an object at once."""
    window = _Window(as_utf8(path, encoding))
    if window.peek() == "[":
        return _List(window, name, encoding).rows()
    return _object(as_utf8(path, encoding), name, encoding)


def _object(chunks: Iterator[bytes], name: str, encoding: str | None) -> Iterator[Row | BadRow]:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > MAX_OBJECT_BYTES:
            raise DataError(
                f"is an object of more than {MAX_OBJECT_BYTES >> 20} MiB",
                where=name,
                next="Write it as a list, or as .jsonl",
            )
    try:
        value = parse_json(data.decode(), name)
    except DataError as error:
        if not error.what.endswith("Extra data"):
            raise
        raise DataError(error.what, where=error.where, next="Name it .jsonl if each line is an object") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_text_error(encoding, f"{name} line {line}") from error
    if isinstance(value, dict):  # {"data": [...]}: its only list is the table
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(NO_LIST, where=name, next="Write it as a list of objects, or as .jsonl")
    for number, item in enumerate(value, start=1):
        origin = Origin(name, number, "row")
        try:
            yield Row(require_object(item, str(origin)), origin)
        except DataError as error:
            yield BadRow(origin, error)


class _Window:
    """A text of which only the part around `at` is in memory; bytes that are not UTF-8 become surrogates."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.text, self.at = "", 0
        self.ended = False
        self.damaged = False  # whether the part in memory may have such surrogates
        self._chunks = chunks
        self._line, self._counted = 1, 0  # the line of the last position that was asked for
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def more(self) -> bool:
        """Drops the text before `at` and doubles the text after it. False at the end of the text."""
        self.line(self.at)
        pieces = [self.text[self.at :]]
        previous_size = size = len(pieces[0])
        while not self.ended and size < 2 * previous_size + 1:
            chunk = next(self._chunks, None)
            self.ended = chunk is None
            pieces.append(self._decoder.decode(chunk or b"", final=self.ended))
            size += len(pieces[-1])
        self.text, self.at, self._counted = "".join(pieces), 0, 0
        self.damaged = not _is_utf8(self.text)
        return size > previous_size

    def line(self, position: int) -> int:
        """The line, from 1, of a position in `text`."""
        self._line += self.text.count("\n", self._counted, position) - self.text.count("\n", position, self._counted)
        self._counted = position
        return self._line

    def peek(self) -> str:
        """The next character that is not whitespace; '' at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _List:
    """Reads the rows of a list; the window is at its bracket."""

    def __init__(self, window: _Window, name: str, encoding: str | None) -> None:
        self.window, self.name, self.encoding = window, name, encoding
        self.number = 0
        self.next = _ROW
        self.layout: re.Pattern[str] | None = None  # how a row begins, if each begins on its own line

    def rows(self) -> Iterator[Row | BadRow]:
        self.window.at += 1
        self.next = _ROW if self.window.peek() != "]" else self._after_row()
        self.layout = self._row_layout()
        while self.next != _END:
            self.number += 1
            yield self._row() if self.next == _ROW else self._stray()

    @property
    def origin(self) -> Origin:
        return Origin(self.name, self.number, "row")

    def _row_layout(self) -> re.Pattern[str] | None:
        before = re.search(r"\n([ \t]*)$", self.window.text[: self.window.at])
        own_line = re.compile(r"\{[^\r\n]").match(self.window.text, self.window.at)
        if not before or not (own_line or (before[1] and self.window.peek() == "{")):
            return None  # rows and their parts both start a line, so they cannot be distinguished
        return re.compile(re.escape(before[0]) + r"\{")

    def _row(self) -> Row | BadRow:
        window = self.window
        window.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(window.text, window.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(window.text) - _LONG_WORD
                if not (cut and not window.ended):
                    line = window.line(error.pos)
                    where = f"{self.name} line {line}" if line > 1 else str(self.origin)
                    return self._bad_row(error.msg, where)
            except (RecursionError, ValueError) as error:
                return self._bad_row(str(error), "")
            else:
                cut = window.text[end - 1] not in '}]"' and end > len(window.text) - _LONG_WORD
                if not (cut and not window.ended):
                    return self._parsed_row(value, end)
            if len(window.text) - window.at > MAX_ROW:
                if self.layout is None or not self._skip_lines(self.layout):
                    self.next = _END
                return BadRow(self.origin, too_long_error(str(self.origin)))
            window.more()

    def _parsed_row(self, value: Any, end: int) -> Row | BadRow:
        window, origin = self.window, self.origin
        text = window.text[window.at : end]
        damage = re.search("[\udc80-\udcff]", text) if window.damaged else None
        line = window.line(window.at + damage.start()) if damage else 0
        window.at = end
        self.next = self._after_row()
        if damage:
            return BadRow(origin, not_text_error(self.encoding, f"{self.name} line {line}"))
        try:
            return Row(require_object(check_surrogates(value, text), str(origin)), origin)
        except DataError as error:
            return BadRow(origin, error)
        except (RecursionError, ValueError) as error:
            return BadRow(origin, DataError(f"is not JSON: {error}", where=str(origin), next=CORRECT))

    def _stray(self) -> BadRow:
        """The error for text where a comma, the end of the list or the end of the text should be."""
        line = self.window.line(self.window.at)
        message = {_OPEN: "the list is not closed", _EXTRA: "Extra data"}.get(self.next, "Expecting ',' delimiter")
        if self.next in (_OPEN, _EXTRA):
            self.next = _END
            return BadRow(
                self.origin, DataError(f"is not JSON: {message}", where=f"{self.name} line {line}", next=CORRECT)
            )
        return self._bad_row(message, f"{self.name} line {line}")

    def _after_row(self) -> str:
        """What follows a row."""
        character = self.window.peek()
        if character in (",", "]"):
            self.window.at += 1
        if character == "]":
            return _EXTRA if self.window.peek() else _END
        return {",": _ROW, "": _OPEN}.get(character, _STRAY)

    def _bad_row(self, message: str, where: str) -> BadRow:
        origin = self.origin
        closed = self._skip_lines(self.layout) if self.layout else self._skip_brackets()
        where = where or (str(origin) if closed else self.name)
        advice = CORRECT if closed else f"{CORRECT}; the rows after it cannot be separated"
        return BadRow(origin, DataError(f"is not JSON: {message}", where=where, next=advice))

    def _skip_lines(self, layout: re.Pattern[str]) -> bool:
        """Moves to the next line that begins like the first row."""
        window = self.window
        window.at += 1
        while not (match := layout.search(window.text, window.at)):
            if window.ended:
                self.next = _END
                return True
            window.at = max(window.at, len(window.text) - len(layout.pattern))
            window.more()
        window.at, self.next = match.end() - 1, _ROW
        return True

    def _skip_brackets(self) -> bool:
        """Moves to the comma or bracket after the broken row; False if its brackets do not close."""
        window = self.window
        while True:
            depth = 0
            for token in _TOKEN.finditer(window.text, window.at):
                first, position = token[0][0], token.start()
                if first in "[{":
                    depth += len(token[0])
                elif first in "]}":
                    outer = position + depth
                    depth -= min(depth, len(token[0]))
                    if "]" in window.text[outer : token.end()]:
                        window.at = window.text.index("]", outer)
                        self.next = self._after_row()
                        return True
                elif first == "," and not depth:
                    window.at, self.next = position + 1, _ROW
                    return True
                elif token[0] == '"' and not window.ended:
                    break
            if window.ended or len(window.text) - window.at > MAX_ROW // 4:
                self.next = _END
                return not depth
            window.more()
