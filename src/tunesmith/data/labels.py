"""Finds the rows whose label marks their answer as bad, as in preference data for KTO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("label", "kto_tag")  # TRL, Axolotl and ms-swift; LLaMA-Factory
_FALSE, _TRUE = frozenset(("false", "0", "0.0")), frozenset(("true", "1", "1.0"))
_QUESTION_FORMATS = frozenset(("auto", "columns", "alpaca", "chat", "sharegpt"))  # formats of a question and its answer


def label_column(names: Mapping[str, Any]) -> str:
    """The column that may mark answers as good or bad; '' if there is none."""
    return next((str(name) for name in names if str(name).strip().casefold() in COLUMNS), "")


def are_labels(cells: list[Any], format: str) -> bool:
    """Whether a column's cells are labels: true and false or, in formats with a question, 1 and 0."""
    values = {_plain(cell) for cell in cells if cell not in (None, "")}
    return (
        bool(values) and values <= _FALSE | _TRUE and (format in _QUESTION_FORMATS or bool(values & {"true", "false"}))
    )


class AnswerLabels:
    """Collects the label of each row and then returns the rows that are labeled bad.

    Only the whole column shows whether 0 means a bad answer or is a class number: it is a label if the column has no
    values but 0 and 1.
    """

    def __init__(self, format: str, options: Mapping[str, Any]) -> None:
        """Excludes the columns that `options` use for something else."""
        self._format = format
        self._group = options.get("group")
        option_values = [value for option, value in options.items() if option != "group"]
        self._used = [str(name) for value in option_values for name in (value if isinstance(value, list) else [value])]
        self._false: dict[int, bool] = {}  # row index -> whether it is the word or value false, not a number
        self._numbers = True
        self.column = ""

    def add(self, index: int, values: Mapping[str, Any]) -> None:
        """Adds the row at index `index`."""
        column = label_column(values)
        cell = values[column] if column else None
        if not column or cell in (None, "") or any(column == name or f"{{{column}}}" in name for name in self._used):
            return
        self.column, value = column, _plain(cell)
        if value in _FALSE:
            self._false[index] = value == "false"
        numbers = self._format in _QUESTION_FORMATS and column != self._group
        self._numbers = self._numbers and numbers and value in _FALSE | _TRUE

    def bad(self) -> list[int]:
        """The indices of the rows that are labeled bad, in order."""
        return [index for index, certain in self._false.items() if certain or self._numbers]


def _plain(cell: Any) -> str:
    return str(cell).strip().casefold()
