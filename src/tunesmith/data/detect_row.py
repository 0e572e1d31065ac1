"""Detects the format of a single row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.messages import MESSAGE_KEYS, ROLES, are_messages, message_list
from tunesmith.errors import DataError

# Column names of questions and answers in public data sets; the first pair that fits is used.
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
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "input")  # prompt columns beside preference pairs


@dataclass(frozen=True)
class DetectedFormat:
    """A format's name, its options, and the reason in words.

    `reasons` maps an option to its reason, `left` an unused column to the reason; `near` notes alternatives.
    """

    name: str
    options: dict[str, Any]
    why: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    near: tuple[str, ...] = ()


def is_preference_pair(names: Iterable[Any]) -> bool:
    """Whether columns of these names are a chosen and a rejected answer."""
    folded = {str(name).strip().casefold() for name in names}
    return any(folded.issuperset(pair) for pair in PREFERENCES)


def preference_pair_error(values: Mapping[str, Any]) -> DataError:
    """The error for a row with a chosen and a rejected answer, which says how to train on the chosen one."""
    names = {str(name).strip().casefold(): str(name) for name in values}
    chosen_column, rejected_column = next(
        (names[good], names[bad]) for good, bad in PREFERENCES if {good, bad} <= names.keys()
    )
    prompt = next((names[name] for name in PROMPT_COLUMNS if name in names), "")
    subject = f"{chosen_column} and {rejected_column} are"
    chosen_messages, prompt_messages = message_list(values[chosen_column]), message_list(values.get(prompt))
    if chosen_messages is None and not prompt:
        advice = "Preference pairs are not supported here: write each chosen answer beside its prompt, omit the others"
        return DataError(f"is a preference pair: {subject} texts without a prompt column", next=advice)
    if chosen_messages is None and prompt_messages is None:
        form, format = f"answers to '{prompt}' (DPO)", f"{{columns: {{prompt: {prompt}, answer: {chosen_column}}}}}"
    elif prompt_messages is None or (chosen_messages and not _is_answer(chosen_messages[0])):
        form, format = "lists of messages", f"{{chat: {{messages: {chosen_column}{_message_keys(chosen_messages)}}}}}"
    else:
        form = f"answers to the messages in '{prompt}' (DPO)"
        format = f"{{chat: {{messages: {prompt}, completion: {chosen_column}{_message_keys(prompt_messages)}}}}}"
    return DataError(
        f"is a preference pair: {subject} {form}",
        next=f"Preference pairs are not supported here. To train on the chosen answers, set data.format: {format}",
    )


def detect_row_format(values: Mapping[str, Any]) -> DetectedFormat:
    """The format of a row. Raises DataError if no format fits or the row cannot be trained on."""
    names = {str(name).strip().casefold(): str(name) for name in values}
    if is_preference_pair(names):
        raise preference_pair_error(values)
    for column in MESSAGE_KEYS:
        if (messages := message_list(values.get(names.get(column, "")))) is not None:
            return _chat(names[column], messages, values)
    if {"instruction", "output"} <= names.keys():
        options = {key: names[key] for key in ("instruction", "input", "output") if names.get(key, key) != key}
        return DetectedFormat("alpaca", options, f"it has the columns {names['instruction']} and {names['output']}")
    for prompt, answer in PAIRS:
        if prompt in names and answer in names:
            return _pair(names[prompt], names[answer], values)
    for name, cell in values.items():
        if (messages := message_list(cell)) is not None and are_messages(messages):
            return _chat(str(name), messages, values)
    columns = ", ".join(map(str, values)) or "nothing"
    raise DataError(
        f"its format is unknown. It has: {columns}", next="Write data.format: {columns: {prompt: …, answer: …}}"
    )


def _chat(column: str, messages: list[Any], values: Mapping[str, Any]) -> DetectedFormat:
    text = " as JSON text" if isinstance(values[column], str) else ""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if {"from", "value"} <= first.keys():
        options = {} if column == "conversations" else {"conversations": column}
        return DetectedFormat("sharegpt", options, f"{column} is a list of from and value{text}")
    options = {} if column == "messages" else {"messages": column}
    return DetectedFormat("chat", options, f"{column} is a list of role and content{text}")


def _pair(prompt: str, answer: str, values: Mapping[str, Any]) -> DetectedFormat:
    """A question and its answer as two texts, or with messages in at least one of them."""
    message_columns = [
        (name, messages) for name in (prompt, answer) if (messages := message_list(values[name])) is not None
    ]
    if not message_columns:
        return DetectedFormat(
            "columns", {"prompt": prompt, "answer": answer}, f"the columns {prompt} and {answer} are a pair"
        )
    options = {"messages": prompt, "completion": answer}
    if _message_keys(message_columns[0][1]):
        options |= {"role": "from", "content": "value"}
    with_messages = " and ".join(name for name, _ in message_columns)
    return DetectedFormat("chat", options, f"{prompt} and {answer} are a pair, with messages in {with_messages}")


def _is_answer(message: Any) -> bool:
    return isinstance(message, Mapping) and ROLES.get(str(message.get("role", message.get("from")))) == "assistant"


def _message_keys(messages: list[Any] | None) -> str:
    """The options of the format chat for ShareGPT's message keys; '' for OpenAI's."""
    return (
        ", role: from, content: value" if messages and isinstance(messages[0], dict) and "from" in messages[0] else ""
    )
