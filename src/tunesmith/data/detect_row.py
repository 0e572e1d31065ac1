"""What a table's format is, told by one of its rows, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.messages import CHATS, ROLES, are_messages, message_list
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
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))  # TRL and others; OpenAI
ASKED = ("prompt", "question", "instruction", "query", "input")  # columns that such answers answer


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


def is_preference_pair(names: Iterable[Any]) -> bool:
    """Whether columns of these names hold a better and a worse answer."""
    known = {str(name).strip().casefold() for name in names}
    return any(known.issuperset(pair) for pair in PREFERENCES)


def preference_pair(values: Mapping[str, Any]) -> DataError:
    """The refusal of a row with a chosen and a rejected answer: which form of it, and how to learn the chosen one."""
    names = {str(name).strip().casefold(): str(name) for name in values}
    chosen, rejected = next((names[good], names[bad]) for good, bad in PREFERENCES if {good, bad} <= names.keys())
    prompt = next((names[name] for name in ASKED if name in names), "")
    both = f"{chosen} and {rejected} are"
    listed, asked = message_list(values[chosen]), message_list(values.get(prompt))
    if listed is None and not prompt:
        advice = (
            "Preferences cannot be learned here: write each chosen answer beside its prompt, and leave out the others"
        )
        return DataError(f"is a preference pair: {both} texts without a prompt column", next=advice)
    if listed is None and asked is None:
        form, format = f"answers to '{prompt}' (DPO)", f"{{columns: {{prompt: {prompt}, answer: {chosen}}}}}"
    elif asked is None or (listed and not _is_answer(listed[0])):
        form, format = "lists of messages", f"{{chat: {{messages: {chosen}{_message_keys(listed)}}}}}"
    else:
        form = f"answers to the messages in '{prompt}' (DPO)"
        format = f"{{chat: {{messages: {prompt}, completion: {chosen}{_message_keys(asked)}}}}}"
    return DataError(
        f"is a preference pair: {both} {form}",
        next=f"Preferences cannot be learned here. To learn the chosen answers alone, set data.format: {format}",
    )


def recognise(values: Mapping[str, Any]) -> Recognised:
    """The format of a row.

    Raises DataError when nothing fits, or when the row is of a kind that cannot be learnt.
    """
    names = {str(name).strip().casefold(): str(name) for name in values}
    if is_preference_pair(names):
        raise preference_pair(values)
    for column in CHATS:
        if (listed := message_list(values.get(names.get(column, "")))) is not None:
            return _chat(names[column], listed, values)
    if {"instruction", "output"} <= names.keys():
        options = {key: names[key] for key in ("instruction", "input", "output") if names.get(key, key) != key}
        return Recognised("alpaca", options, f"it has the columns {names['instruction']} and {names['output']}")
    for prompt, answer in PAIRS:
        if prompt in names and answer in names:
            return _pair(names[prompt], names[answer], values)
    for name, cell in values.items():
        if (listed := message_list(cell)) is not None and are_messages(listed):
            return _chat(str(name), listed, values)
    has = ", ".join(map(str, values)) or "nothing"
    raise DataError(
        f"its format is not known. It has: {has}", next="Write data.format: {columns: {prompt: …, answer: …}}"
    )


def _chat(column: str, listed: list[Any], values: Mapping[str, Any]) -> Recognised:
    text = " as JSON text" if isinstance(values[column], str) else ""
    first = listed[0] if listed and isinstance(listed[0], dict) else {}
    if {"from", "value"} <= first.keys():
        options = {} if column == "conversations" else {"conversations": column}
        return Recognised("sharegpt", options, f"{column} is a list of from and value{text}")
    options = {} if column == "messages" else {"messages": column}
    return Recognised("chat", options, f"{column} is a list of role and content{text}")


def _pair(prompt: str, answer: str, values: Mapping[str, Any]) -> Recognised:
    """A question and its answer: two texts, or messages in at least one of them."""
    lists = [(name, listed) for name in (prompt, answer) if (listed := message_list(values[name])) is not None]
    if not lists:
        return Recognised(
            "columns", {"prompt": prompt, "answer": answer}, f"the columns {prompt} and {answer} are a pair"
        )
    options = {"messages": prompt, "completion": answer}
    if _message_keys(lists[0][1]):
        options |= {"role": "from", "content": "value"}
    told = " and ".join(name for name, _ in lists)
    return Recognised("chat", options, f"{prompt} and {answer} are a pair, with messages in {told}")


def _is_answer(message: Any) -> bool:
    return isinstance(message, Mapping) and ROLES.get(str(message.get("role", message.get("from")))) == "assistant"


def _message_keys(listed: list[Any] | None) -> str:
    """The options that a list of ShareGPT's messages needs in the format chat; '' for OpenAI's."""
    return ", role: from, content: value" if listed and isinstance(listed[0], dict) and "from" in listed[0] else ""
