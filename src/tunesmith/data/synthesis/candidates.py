"""Cleans and judges the texts of a model: only a single, sound and new text becomes a row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

from tunesmith.data.conversation import normalize
from tunesmith.data.duplicates import leaks
from tunesmith.data.finding import Defect
from tunesmith.data.privacy import KINDS, find_personal, find_secrets
from tunesmith.data.run_checks import text_detectors

PERSONAL = tuple(kind for kind in KINDS if kind != "url")
WITHHELD = ("personal", "secret")  # texts rejected for these reasons are never stored
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FENCED = re.compile(r"\A```\w*\n(?P<inside>.*?)\n?```\Z", re.DOTALL)
_LEAD = re.compile(
    r"\A(?:sure|certainly|of course|okay|ok|absolutely|here)\b[^\n:]{0,120}:\s*(?=[\n\"“'«*])", re.IGNORECASE
)
_LABEL = re.compile(
    r"\A\**(?:message|prompt|user|customer|question|request|answer|reply|response)\**:\**\s+", re.IGNORECASE
)
_ITEM = re.compile(r"^[ \t]*(?:\(?\d{1,3}[.)]|[-*•])[ \t]+(?=\S)", re.MULTILINE)
_QUOTES = ('""', "''", "“”", "‘’", "«»", "„“", "``")
_OTHERWISE = "It must say it in other words than these:"
_MESSAGE_ALONE = "Reply with the message alone: no quotation marks, no number, no comment."
_ANSWER_ALONE = "Reply with the answer alone, without a word before or behind it."
_FIXED = (_OTHERWISE, _MESSAGE_ALONE, _ANSWER_ALONE)
_BOLD = re.compile(r"\A\*\*(?P<inside>[^*]+)\*\*\Z", re.DOTALL)


def plain_answer(text: str) -> str:
    """The reply without reasoning, code fence, lead-in ('Sure, here are the steps:'), label and trailing spaces."""
    text = _THOUGHT.sub("", text).strip()
    text = fenced["inside"] if (fenced := _FENCED.match(text)) else text
    text = _LABEL.sub("", _LEAD.sub("", text.strip()).strip())
    text = "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n"))
    return re.sub(r"\n{4,}", "\n\n\n", text).strip()


def plain_prompt(text: str) -> str:
    """The reply as `plain_answer` returns it, without a number, JSON, bold markup or quotes around one message.

    A list of several messages stays, so that `prompt_fault` finds it.
    """
    text = _from_json(plain_answer(text))
    if len(_ITEM.findall(text)) == 1:
        text = _ITEM.sub("", text, count=1) if _ITEM.match(text) else text
    text = bold["inside"] if (bold := _BOLD.match(text)) else text
    text = _LABEL.sub("", text).strip()
    if text[:1] == '"' and (quoted := re.match(r'"([^"]{8,})"\s*\n', text)):  # a comment follows the message
        return quoted[1].strip()
    for pair in _QUOTES:
        if len(text) > 2 and text[0] + text[-1] == pair and pair[1] not in text[1:-1]:
            return text[1:-1].strip()
    return text


def _from_json(text: str) -> str:
    """The only text in a JSON string, list or object; anything else unchanged."""
    try:
        value = json.loads(text) if text[:1] in ('"', "[", "{") else text
    except (ValueError, RecursionError):
        return text
    while isinstance(value, list | dict) and len(value) == 1:
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value.strip() if isinstance(value, str) else text


def fault(text: str, *, language: str | None = None) -> str:
    """Why `text` must not become a prompt or an answer: 'kind: detail', or '' if it is sound.

    Rejects empty texts, secrets, personal data (except URLs), and all defects but notes; other languages only if
    `language` is given.
    """
    if not text.strip():
        return "empty"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "broken letters: a lone surrogate"
    if secrets := find_secrets(text):
        return f"secret: {secrets[0].kind.replace('_', ' ')}"
    if personal := find_personal(text, kinds=PERSONAL):
        return f"personal: {personal[0].kind}"
    for kind, detect in _detectors(language):
        for defect in detect(text):
            if defect.severity != "note":
                return f"{kind.replace('_', ' ')}: {defect.why}"
    return ""


@cache
def _detectors(language: str | None) -> list[tuple[str, Callable[[str], Iterator[Defect]]]]:
    """The kinds of defects that are rejected, with their functions."""
    detectors = text_detectors()
    foreign = detectors.pop("wrong_language")
    if language is not None:
        detectors["wrong_language"] = partial(foreign, script="Latin", language=language)
    return list(detectors.items())


def prompt_fault(text: str, request: str, *, longest: int) -> str:
    """Why `text`, written for `request`, is not one message: too long, a list, or the request repeated; or ''."""
    if len(text) > longest:
        return f"too long: {len(text)} characters, limit {longest}"
    if len(_ITEM.findall(text)) > 1 or text[:1] + text[-1:] in ("[]", "{}"):
        return "several: a list instead of one message"
    return "echo: repeats the request" if repeats(text, request) else ""


def repeats(text: str, request: str) -> bool:
    """Whether the text repeats the request: four words of its fixed sentences, a whole line, or part of one.

    Examples in the request do not count: repeating one of them is a repeated prompt.
    """
    request_lines = [line for line in request.split("\n") if not line.startswith("- ")]
    request_lines += [
        line.partition(": ")[2] for line in request_lines if line.count(": ") > 1
    ]  # 'TOPIC: WHAT BELONGS TO IT'
    lines = list(map(normalize, request_lines))
    padded_text, words = f" {normalize(text)} ", [line.split() for line in map(normalize, _FIXED)]
    if any(f" {' '.join(fixed[n : n + 4])} " in padded_text for fixed in words for n in range(len(fixed) - 3)):
        return True
    inside_line = any(padded_text in f" {line} " for line in lines) and padded_text.count(" ") > 4
    return inside_line or any(f" {line} " in padded_text for line in lines if line.count(" ") >= 3)


class AcceptedPrompts:
    """The accepted prompts, to check whether another one is new."""

    def __init__(self) -> None:
        self._topics: dict[str, str] = {}  # normalized prompt -> topic
        self._texts: list[str] = []

    def add(self, prompt: str, topic: str) -> None:
        """Adds a prompt."""
        self._topics.setdefault(normalize(prompt), topic)
        self._texts.append(prompt)

    def repeated(self, prompt: str, topic: str, *, alike: float | None = None) -> str:
        """Why `prompt` is not new, or ''. With `alike`, prompts of at least that Jaccard similarity count as well."""
        earlier_topic = self._topics.get(normalize(prompt))
        if earlier_topic is not None:
            return (
                "repeated: the same prompt"
                if earlier_topic == topic
                else f"repeated: the same prompt as in '{earlier_topic}'"
            )
        similar_pairs = leaks([prompt], self._texts, threshold=alike) if alike is not None and self._texts else []
        best = max(similar_pairs, key=lambda pair: pair.similarity, default=None)
        return f"near repeat: {best.similarity:.0%} similar" if best else ""


def request_prompt(about: str, topic: Mapping[str, str], style: str, earlier: Sequence[str]) -> str:
    """The request to a model for one prompt; `earlier` are prompts that it must not repeat."""
    lines = [
        f"Write one message that could come from {about or 'a user'}.",
        f"What it asks about: {topic['name']}{': ' if topic['about'] else ''}{topic['about']}",
        f"How it is written: {style}",
    ]
    if earlier:
        lines += [_OTHERWISE, *(f"- {' '.join(text.split())}" for text in earlier)]
    return "\n".join([*lines, _MESSAGE_ALONE])


def request_answer(about: str, topic: Mapping[str, str], instruction: str) -> str:
    """The request to a model for a topic's canonical answer."""
    lines = [
        f"Write the answer for {about or 'a user'} who asks about this.",
        f"What is asked about: {topic['name']}{': ' if topic['about'] else ''}{topic['about']}",
    ]
    if instruction:
        lines.append(f"How the answer must look: {instruction}")
    return "\n".join([*lines, _ANSWER_ALONE])
