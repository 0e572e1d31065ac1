"""Finds numbers in digits and words: 3,000, 2.5k, twenty-five, a dozen, two and a half."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.claims.fold import split_words

UNITS_AND_TEENS = {
    name: value
    for value, name in enumerate(
        split_words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen"
        )
    )
}
TENS = {
    name: 10 * value
    for value, name in enumerate(split_words("twenty thirty forty fifty sixty seventy eighty ninety"), start=2)
}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000, "dozen": 12}
GROUPS = {"pair": 2, "couple": 2, "duo": 2, "trio": 3, "quartet": 4}
SUFFIXES = {"k": 1e3, "m": 1e6, "mn": 1e6, "mio": 1e6, "bn": 1e9, "b": 1e9}

_NAME = "|".join(sorted([*UNITS_AND_TEENS, *TENS, *SCALES], key=len, reverse=True))
_DIGITS = (
    r"(?<![\w.,])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?:(?P<suffix>k|mn|mio|bn|m|b)\b|\s(?P<scale>hundred|thousand|million|billion|dozen)s?\b)?(?![\d])"
)
_SPELLED = rf"\b(?:a\s+(?=hundred|thousand|million|dozen))?(?P<words>(?:{_NAME})(?:(?:\s+and\s+|[\s-])(?:{_NAME}))*)\b"
_GROUP = rf"\b(?:a\s+)?(?P<group>{'|'.join(GROUPS)})\s+of\b"
_HALF = r"(?P<half>\s+and\s+a\s+half)?"
_FIRST = (
    rf"(?=\d|a\s|{'|'.join(sorted({name[:3] for name in (*UNITS_AND_TEENS, *TENS, *SCALES, *GROUPS)}))})"  # fast reject
)
NUMBER = re.compile(rf"(?<!\w){_FIRST}(?:(?:{_DIGITS}|{_SPELLED}){_HALF}|{_GROUP})", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """A number's value and span. `spelled`: it is in words. `group`: it is in words such as 'a pair of'."""

    value: float
    start: int
    end: int
    spelled: bool
    group: bool = False


def is_group(phrase: str) -> bool:
    """Return whether a number is written as 'a pair of', 'a trio of'."""
    return any(word in GROUPS for word in phrase.lower().split())


def find_numbers(text: str) -> Iterator[Number]:
    """Yield every number of a text from left to right, except digits inside words (C3PO, mp3)."""
    for match in NUMBER.finditer(text):
        if match["group"]:
            yield Number(float(GROUPS[match["group"].lower()]), *match.span(), True, True)
            continue
        if match["digits"]:
            value = float(match["digits"].replace(",", ""))
            value *= SUFFIXES.get((match["suffix"] or "").lower(), 1) * SCALES.get((match["scale"] or "").lower(), 1)
            after = text[match.end() : match.end() + 1]
            if after.isalpha() or after in {"_", "@"}:
                continue
        else:
            value = parse_spelled(match["words"])
        yield Number(value + 0.5 * bool(match["half"]), match.start(), match.end(), not match["digits"])


def parse_spelled(phrase: str) -> float:
    """Return the value of a number in English words: 'three hundred and five' is 305."""
    total = part = 0
    for word in re.findall(r"[a-z]+", phrase.lower()):
        if word in UNITS_AND_TEENS or word in TENS:
            part += UNITS_AND_TEENS.get(word, 0) + TENS.get(word, 0)
        elif word in {"hundred", "dozen"}:
            part = max(part, 1) * SCALES[word]
        elif word in SCALES:
            total, part = total + max(part, 1) * SCALES[word], 0
    return float(total + part)
