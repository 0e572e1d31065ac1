"""Numbers in digits and words: 3,000, 2.5k, twenty-five, a dozen, two and a half."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.claims.fold import listed

SMALL = {
    name: value
    for value, name in enumerate(
        listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen"
        )
    )
}
TENS = {
    name: 10 * value
    for value, name in enumerate(listed("twenty thirty forty fifty sixty seventy eighty ninety"), start=2)
}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000, "dozen": 12}
GROUPS = {"pair": 2, "couple": 2, "duo": 2, "trio": 3, "quartet": 4}
SUFFIXES = {"k": 1e3, "m": 1e6, "mn": 1e6, "mio": 1e6, "bn": 1e9, "b": 1e9}

_NAME = "|".join(sorted([*SMALL, *TENS, *SCALES], key=len, reverse=True))
_DIGITS = (
    r"(?<![\w.,])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?:(?P<suffix>k|mn|mio|bn|m|b)\b|\s(?P<scale>hundred|thousand|million|billion|dozen)s?\b)?(?![\d])"
)
_SPELLED = rf"\b(?:a\s+(?=hundred|thousand|million|dozen))?(?P<words>(?:{_NAME})(?:(?:\s+and\s+|[\s-])(?:{_NAME}))*)\b"
_GROUP = rf"\b(?:a\s+)?(?P<group>{'|'.join(GROUPS)})\s+of\b"
_HALF = r"(?P<half>\s+and\s+a\s+half)?"
_FIRST = rf"(?=\d|a\s|{'|'.join(sorted({name[:3] for name in (*SMALL, *TENS, *SCALES, *GROUPS)}))})"  # few words pass
NUMBER = re.compile(rf"(?<!\w){_FIRST}(?:(?:{_DIGITS}|{_SPELLED}){_HALF}|{_GROUP})", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """A number's value and its characters in the text; `spelled` when in words, which may be a `group`: 'a pair of'."""

    value: float
    start: int
    end: int
    spelled: bool
    group: bool = False


def is_group(phrase: str) -> bool:
    """Whether a number is said as 'a pair of', 'a trio of'."""
    return any(word in GROUPS for word in phrase.lower().split())


def numbers(text: str) -> Iterator[Number]:
    """Every number of a text, from left to right; figures inside words (C3PO, mp3) are none."""
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
            value = spelled(match["words"])
        yield Number(value + 0.5 * bool(match["half"]), match.start(), match.end(), not match["digits"])


def spelled(phrase: str) -> float:
    """The value of a number in English words: 'three hundred and five' is 305."""
    total = part = 0
    for word in re.findall(r"[a-z]+", phrase.lower()):
        if word in SMALL or word in TENS:
            part += SMALL.get(word, 0) + TENS.get(word, 0)
        elif word in {"hundred", "dozen"}:
            part = max(part, 1) * SCALES[word]
        elif word in SCALES:
            total, part = total + max(part, 1) * SCALES[word], 0
    return float(total + part)
