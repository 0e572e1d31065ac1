"""What a table's format is, told by one of its rows, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import DataError

# Column names that mean a question and its answer, as public data sets use them; the first pair that fits is taken.
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("instruction", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("source", "target"),
)
TALKS = ("messages", "conversations", "conversation", "turns")


@dataclass(frozen=True)
class Recognised:
    """A format's name, its options, and the reason in words.

    `reasons` is option -> why, `left` column -> why it is not used, `near` what might have been meant instead.
    """

    name: str
    options: dict[str, Any]
    why: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    near: tuple[str, ...] = ()


def preference_pair() -> DataError:
    """The refusal of a row with a chosen and a rejected answer."""
    return DataError("is a preference pair", next="Preferences cannot be learnt here; give rows with one answer")


def recognise(values: Mapping[str, Any]) -> Recognised:
    """The format of a row.

    Raises DataError when nothing fits, or when the row is of a kind that cannot be learnt.
    """
    names = {str(name).strip().casefold(): str(name) for name in values}
    if {"chosen", "rejected"} <= names.keys():
        raise preference_pair()
    for column in TALKS:
        if isinstance(values.get(names.get(column, "")), list):
            return _talk(names[column], values[names[column]])
    if {"instruction", "output"} <= names.keys():
        options = {key: names[key] for key in ("instruction", "input", "output") if names.get(key, key) != key}
        return Recognised("alpaca", options, f"it has the columns {names['instruction']} and {names['output']}")
    for prompt, answer in PAIRS:
        if prompt in names and answer in names:
            options = {"prompt": names[prompt], "answer": names[answer]}
            left = [str(name) for name in values if str(name) not in options.values()]
            unused = f" (not used: {', '.join(left)})" if left else ""
            return Recognised("columns", options, f"the columns {names[prompt]} and {names[answer]} are a pair{unused}")
    has = ", ".join(map(str, values)) or "nothing"
    raise DataError(
        f"its format is not known. It has: {has}", next="Write data.format: {columns: {prompt: …, answer: …}}"
    )


def _talk(column: str, listed: list[Any]) -> Recognised:
    first = listed[0] if listed and isinstance(listed[0], dict) else {}
    if {"from", "value"} <= first.keys():
        options = {} if column == "conversations" else {"conversations": column}
        return Recognised("sharegpt", options, f"{column} is a list of from and value")
    options = {} if column == "messages" else {"messages": column}
    return Recognised("chat", options, f"{column} is a list of role and content")
