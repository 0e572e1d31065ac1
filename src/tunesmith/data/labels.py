"""Rows marked as good or bad answers, as preference data of KTO's form has them: which rows are marked bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("label", "kto_tag")  # TRL, Axolotl and ms-swift; LLaMA-Factory
_FALSE, _TRUE = frozenset(("false", "0", "0.0")), frozenset(("true", "1", "1.0"))
_ASKING = frozenset(("auto", "columns", "alpaca", "chat", "sharegpt"))  # formats in which an answer follows a question


def label_column(names: Mapping[str, Any]) -> str:
    """The column that may mark answers as good or bad; '' where there is none."""
    return next((str(name) for name in names if str(name).strip().casefold() in COLUMNS), "")


def are_marks(cells: list[Any], format: str) -> bool:
    """Whether the cells of such a column are marks: true and false, as words, values or, beside a question, 1 and 0."""
    marks = {_plain(cell) for cell in cells if cell not in (None, "")}
    return bool(marks) and marks <= _FALSE | _TRUE and (format in _ASKING or bool(marks & {"true", "false"}))


class AnswerLabels:
    """Collects each row's label and says, once all are seen, which rows are marked as bad answers.

    Whether 0 is a mark or the number of a class shows only in the whole column: of 0 and 1 alone it is a mark.
    """

    def __init__(self, format: str, options: Mapping[str, Any]) -> None:
        """`format` and `options` say what the column may be used for instead."""
        self._format = format
        self._group = options.get("group")
        named = [value for option, value in options.items() if option != "group"]
        self._used = [str(name) for value in named for name in (value if isinstance(value, list) else [value])]
        self._false: dict[int, bool] = {}  # place of the row -> whether a word or value says so, not a number
        self._numbers = True
        self.column = ""

    def enter(self, place: int, values: Mapping[str, Any]) -> None:
        """Takes the row at `place`."""
        column = label_column(values)
        cell = values[column] if column else None
        if not column or cell in (None, "") or any(column == name or f"{{{column}}}" in name for name in self._used):
            return
        self.column, mark = column, _plain(cell)
        if mark in _FALSE:
            self._false[place] = mark == "false"
        numbers = self._format in _ASKING and column != self._group
        self._numbers = self._numbers and numbers and mark in _FALSE | _TRUE

    def bad(self) -> list[int]:
        """The places of the rows that are marked as bad answers, in order."""
        return [place for place, certain in self._false.items() if certain or self._numbers]


def _plain(cell: Any) -> str:
    return str(cell).strip().casefold()
