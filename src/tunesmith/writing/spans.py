"""Places in a text that a statement stands in: its sentence, its line, the words that belong to it."""

from __future__ import annotations

import re

_END = re.compile(
    r"(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\bInc)(?<!\bLtd)(?<!\be\.g)(?<!\bi\.e)"
    r"(?<!\n\d)(?<!\n\d\d)[.!?][\"'”’)]*(?=\s|\Z)|\n"
)
_BULLET = re.compile(r"[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+")
DETERMINER = (
    r"(?:(?:an?|the|my|our|your|his|her|their|some|about|around|over|under|nearly|almost|roughly|approximately|exactly|"
    r"only|at least|at most|more than|less than|up to|full|strong|proven|solid|deep|good|great|extensive|recent|"
    r"professional|practical|hands-on|advanced|basic|fluent|excellent|certified|qualified)\s+)"
)


def sentence(text: str, start: int, end: int) -> tuple[int, int]:
    """The sentence (or line) around characters start to end, its mark included, blanks around it and a bullet not."""
    begin = max((found.end() for found in _END.finditer(text, 0, start) if found.end() <= start), default=0)
    found = _END.search(text, end)
    stop = found.end() if found else len(text)
    if found and found[0] == "\n":
        stop = found.start()
    begin += len(text[begin:start]) - len(text[begin:start].lstrip())
    if bullet := _BULLET.match(text, begin, start):
        begin = bullet.end()
    return begin, stop


def bulleted(text: str, begin: int) -> int | None:
    """Where the line of a list begins whose words begin at `begin`; None where that is no list."""
    line = text.rfind("\n", 0, begin) + 1
    found = _BULLET.match(text, line)
    return line if found and found.end() == begin else None


def widened(text: str, start: int, end: int, floor: int) -> int:
    """Where the articles and adjectives in front of a statement begin, not before `floor`."""
    found = re.search(rf"{DETERMINER}+$", text[floor:start], re.IGNORECASE)
    return floor + found.start() if found else start


def article(text: str) -> str:
    """`text` with 'a' or 'an' by how the next word sounds, where one of the two stands in front."""
    found = re.match(r"(an?)(\s+[\"“'‘]?)(\w+)", text, re.IGNORECASE)
    if not found:
        return text
    right = "an" if _vowel(found[3]) else "a"
    right = right.capitalize() if found[1][0].isupper() else right
    return right + text[found.end(1) :]


def _vowel(word: str) -> bool:
    """Whether a word begins with the sound of a vowel: hour, MBA, 8, 11; not university, one, UX."""
    if word[0].isdigit():
        return word[0] == "8" or re.fullmatch(r"1[18](?:\d{3})*", word) is not None
    if word.isupper() and 1 < len(word) <= 4:  # spelled out
        return word[0] in "AEFHILMNORSX"
    small = word.casefold()
    if re.match(r"hour|honou?r|honest|heir", small) or re.match(r"M(?:Sc|Eng|Phil)|LL|N[VH]", word):
        return True
    return small[0] in "aeiou" and not re.match(r"uni|use|usu|eu|one|ut[io]", small)
