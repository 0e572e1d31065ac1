"""JSON lines, and JSON lists read row by row; what is broken costs its own row alone."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Origin
from tunesmith.data.rows import (
    DECODER,
    LONGEST,
    MEND,
    BadRow,
    Row,
    check_halves,
    load,
    mapping,
    not_text,
    too_long,
)
from tunesmith.data.stream import as_utf8, lines
from tunesmith.errors import DataError

WHOLE = 1 << 28  # bytes of a JSON object that holds a table; it is read as one
NO_LIST = "holds no list of rows"  # the error of an object that is no table
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{]+|[\]}]+|[",]', re.DOTALL)
_LONG_WORD = 16  # more than a number's or a word's last characters, which may be cut off at the window's end
_ROW, _STRAY, _EXTRA, _OPEN, _END = "row", "stray", "extra", "open", "end"  # what a list's reader comes to next


def jsonl(path: Path, shown: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """A row a line; empty lines are passed over."""
    for number, line in enumerate(lines(as_utf8(path, encoding)), start=1):
        origin = Origin(shown, number)
        try:
            text = _decode(line, str(origin), encoding).rstrip("\n")
            if text.strip():
                yield Row(mapping(load(text, str(origin)), str(origin)), origin)
        except DataError as error:
            yield BadRow(origin, error)


def _decode(line: bytes, where: str, encoding: str | None) -> str:
    if len(line) > LONGEST:
        raise too_long(where)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise not_text(encoding, where) from error


def json_rows(path: Path, shown: str, encoding: str | None = None) -> Iterator[Row | BadRow]:
    """The rows of a list, or of the one list in an object. A list is read row by row, an object as one."""
    window = _Window(as_utf8(path, encoding))
    if window.peek() == "[":
        return _List(window, shown, encoding).rows()
    return _object(as_utf8(path, encoding), shown, encoding)


def _object(chunks: Iterator[bytes], shown: str, encoding: str | None) -> Iterator[Row | BadRow]:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > WHOLE:
            raise DataError(
                f"is an object of more than {WHOLE >> 20} MiB", where=shown, next="Write it as a list, or as .jsonl"
            )
    try:
        value = load(data.decode(), shown)
    except DataError as error:
        if not error.what.endswith("Extra data"):
            raise
        raise DataError(error.what, where=error.where, next="Name it .jsonl if each line is an object") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_text(encoding, f"{shown} line {line}") from error
    if isinstance(value, dict):  # {"data": [...]}: the one list in it is the table
        found = [item for item in value.values() if isinstance(item, list)]
        value = found[0] if len(found) == 1 else value
    if not isinstance(value, list):
        raise DataError(NO_LIST, where=shown, next="Write it as a list of objects, or as .jsonl")
    for number, item in enumerate(value, start=1):
        origin = Origin(shown, number, "row")
        try:
            yield Row(mapping(item, str(origin)), origin)
        except DataError as error:
            yield BadRow(origin, error)


class _Window:
    """A text of which the part around `at` is in memory. What is no UTF-8 stands in it as surrogates."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.text, self.at = "", 0
        self.ended = False
        self.damaged = False  # whether the part in memory may hold such surrogates
        self._chunks = chunks
        self._line, self._counted = 1, 0  # the line of the last place that was asked for
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def more(self) -> bool:
        """Forgets what lies before `at` and doubles what lies behind it. False at the end of the text."""
        self.line(self.at)
        pieces = [self.text[self.at :]]
        wanted = size = len(pieces[0])
        while not self.ended and size < 2 * wanted + 1:
            chunk = next(self._chunks, None)
            self.ended = chunk is None
            pieces.append(self._decoder.decode(chunk or b"", final=self.ended))
            size += len(pieces[-1])
        self.text, self.at, self._counted = "".join(pieces), 0, 0
        self.damaged = not _whole(self.text)
        return size > wanted

    def line(self, place: int) -> int:
        """The line, from 1, of a place in `text`."""
        self._line += self.text.count("\n", self._counted, place) - self.text.count("\n", place, self._counted)
        self._counted = place
        return self._line

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _List:
    """The rows of a list whose bracket the window is at."""

    def __init__(self, window: _Window, shown: str, encoding: str | None) -> None:
        self.window, self.shown, self.encoding = window, shown, encoding
        self.number = 0
        self.next = _ROW
        self.layout: re.Pattern[str] | None = None  # how a row begins, when each begins on a line of its own

    def rows(self) -> Iterator[Row | BadRow]:
        self.window.at += 1
        self.next = _ROW if self.window.peek() != "]" else self._behind()
        self.layout = self._layout()
        while self.next != _END:
            self.number += 1
            yield self._row() if self.next == _ROW else self._stray()

    @property
    def origin(self) -> Origin:
        return Origin(self.shown, self.number, "row")

    def _layout(self) -> re.Pattern[str] | None:
        before = re.search(r"\n([ \t]*)$", self.window.text[: self.window.at])
        own_line = re.compile(r"\{[^\r\n]").match(self.window.text, self.window.at)
        if not before or not (own_line or (before[1] and self.window.peek() == "{")):
            return None  # with rows and their parts at the line's start, one cannot be told from the other
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
                    place = f"{self.shown} line {line}" if line > 1 else str(self.origin)
                    return self._broken(error.msg, place)
            except (RecursionError, ValueError) as error:
                return self._broken(str(error), "")
            else:
                cut = window.text[end - 1] not in '}]"' and end > len(window.text) - _LONG_WORD
                if not (cut and not window.ended):
                    return self._good(value, end)
            if len(window.text) - window.at > LONGEST:
                if self.layout is None or not self._skip_lines(self.layout):
                    self.next = _END
                return BadRow(self.origin, too_long(str(self.origin)))
            window.more()

    def _good(self, value: Any, end: int) -> Row | BadRow:
        window, origin = self.window, self.origin
        text = window.text[window.at : end]
        damage = re.search("[\udc80-\udcff]", text) if window.damaged else None
        line = window.line(window.at + damage.start()) if damage else 0
        window.at = end
        self.next = self._behind()
        if damage:
            return BadRow(origin, not_text(self.encoding, f"{self.shown} line {line}"))
        try:
            return Row(mapping(check_halves(value, text), str(origin)), origin)
        except DataError as error:
            return BadRow(origin, error)
        except (RecursionError, ValueError) as error:
            return BadRow(origin, DataError(f"is not JSON: {error}", where=str(origin), next=MEND))

    def _stray(self) -> BadRow:
        """What stands where a comma, the list's end or the text's end should."""
        line = self.window.line(self.window.at)
        what = {_OPEN: "the list is not closed", _EXTRA: "Extra data"}.get(self.next, "Expecting ',' delimiter")
        if self.next in (_OPEN, _EXTRA):
            self.next = _END
            return BadRow(self.origin, DataError(f"is not JSON: {what}", where=f"{self.shown} line {line}", next=MEND))
        return self._broken(what, f"{self.shown} line {line}")

    def _behind(self) -> str:
        """What comes behind a row."""
        mark = self.window.peek()
        if mark in (",", "]"):
            self.window.at += 1
        if mark == "]":
            return _EXTRA if self.window.peek() else _END
        return {",": _ROW, "": _OPEN}.get(mark, _STRAY)

    def _broken(self, what: str, where: str) -> BadRow:
        origin = self.origin
        closed = self._skip_lines(self.layout) if self.layout else self._skip_brackets()
        where = where or (str(origin) if closed else self.shown)
        advice = MEND if closed else f"{MEND}; what follows it cannot be told apart"
        return BadRow(origin, DataError(f"is not JSON: {what}", where=where, next=advice))

    def _skip_lines(self, layout: re.Pattern[str]) -> bool:
        """Goes on at the next line that begins as the first row did."""
        window = self.window
        window.at += 1
        while not (found := layout.search(window.text, window.at)):
            if window.ended:
                self.next = _END
                return True
            window.at = max(window.at, len(window.text) - len(layout.pattern))
            window.more()
        window.at, self.next = found.end() - 1, _ROW
        return True

    def _skip_brackets(self) -> bool:
        """Goes on at the comma or bracket behind the broken row; False if its brackets do not close."""
        window = self.window
        while True:
            depth = 0
            for token in _TOKEN.finditer(window.text, window.at):
                first, place = token[0][0], token.start()
                if first in "[{":
                    depth += len(token[0])
                elif first in "]}":
                    outer = place + depth
                    depth -= min(depth, len(token[0]))
                    if "]" in window.text[outer : token.end()]:
                        window.at = window.text.index("]", outer)
                        self.next = self._behind()
                        return True
                elif first == "," and not depth:
                    window.at, self.next = place + 1, _ROW
                    return True
                elif token[0] == '"' and not window.ended:
                    break
            if window.ended or len(window.text) - window.at > LONGEST // 4:
                self.next = _END
                return not depth
            window.more()
