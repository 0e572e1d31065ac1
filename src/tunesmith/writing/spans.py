"""Finds the sentence, the list line and the words that belong to a claim."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\bInc)(?<!\bLtd)(?<!\be\.g)(?<!\bi\.e)"
    r"(?<!\n\d)(?<!\n\d\d)[.!?][\"'”’)]*(?=\s|\Z)|\n"
)
_BULLET = re.compile(r"[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+")
DETERMINER = (
    r"(?:(?:an?|the|my|our|your|his|her|their|some|about|around|over|under|nearly|almost|roughly|approximately|exactly|"
    r"only|at least|at most|more than|less than|up to|full|strong|proven|solid|deep|good|great|extensive|recent|"
    r"professional|practical|hands-on|advanced|basic|fluent|excellent|certified|qualified)\s+)"
)


def sentence_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the sentence or line around a span with its final mark, without surrounding whitespace and bullet."""
    first = max((match.end() for match in _SENTENCE_END.finditer(text, 0, start) if match.end() <= start), default=0)
    match = _SENTENCE_END.search(text, end)
    stop = match.end() if match else len(text)
    if match and match[0] == "\n":
        stop = match.start()
    first += len(text[first:start]) - len(text[first:start].lstrip())
    if bullet := _BULLET.match(text, first, start):
        first = bullet.end()
    return first, stop


def list_line_start(text: str, start: int) -> int | None:
    """Return the start of the list line whose words begin at `start`; None if it is no list line."""
    line = text.rfind("\n", 0, start) + 1
    match = _BULLET.match(text, line)
    return line if match and match.end() == start else None


def widen_start(text: str, start: int, end: int, floor: int) -> int:
    """Return the start of the articles and adjectives before a claim, but not before `floor`."""
    match = re.search(rf"{DETERMINER}+$", text[floor:start], re.IGNORECASE)
    return floor + match.start() if match else start


def correct_article(text: str) -> str:
    """Correct 'a' or 'an' at the start of `text` to fit the sound of the next word."""
    match = re.match(r"(an?)(\s+[\"“'‘]?)(\w+)", text, re.IGNORECASE)
    if not match:
        return text
    correct = "an" if _starts_with_vowel_sound(match[3]) else "a"
    correct = correct.capitalize() if match[1][0].isupper() else correct
    return correct + text[match.end(1) :]


def _starts_with_vowel_sound(word: str) -> bool:
    """Return whether a word starts with a vowel sound: hour, MBA, 8, 11; not university, one, UX."""
    if word[0].isdigit():
        return word[0] == "8" or re.fullmatch(r"1[18](?:\d{3})*", word) is not None
    if word.isupper() and 1 < len(word) <= 4:  # spelled out
        return word[0] in "AEFHILMNORSX"
    lower = word.casefold()
    if re.match(r"hour|honou?r|honest|heir", lower) or re.match(r"M(?:Sc|Eng|Phil)|LL|N[VH]", word):
        return True
    return lower[0] in "aeiou" and not re.match(r"uni|use|usu|eu|one|ut[io]", lower)
