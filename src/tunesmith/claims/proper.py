"""Extracts proper names: people, teams, places, days of the week."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.claims.claim import Claim
from tunesmith.claims.fold import split_words, words

_WORD = r"(?:[A-Z](?:\w|\.(?=\w))*(?:['’-][A-Z]?[a-z]\w+)*|\d+ers)"
_NAME = re.compile(rf"(?<![\w'’.-]){_WORD}(?:\s(?:&\s|of\s(?:the\s)?|\d+\s)?{_WORD})*")
_START = re.compile(r"(?:^|[.!?:\n]\s*|[.!?]\W\s*)$")
_PLAIN_WORDS = frozenset(
    split_words(
        "the a an it he she they we you i this that these those there here his her their its our my your in on at to "
        "of for with by from as and but or so if when while after before since during despite although though "
        "however meanwhile also both next up not no only what which who how where one two three four five six seven "
        "eight nine ten all each every other another some many most more out off over under against behind between"
    )
)


def find_proper_names(text: str) -> Iterator[Claim]:
    """Yield runs of capitalized words, except a single word that opens a sentence: it may be a plain word."""
    for match in _NAME.finditer(text):
        start, end = match.span()
        opens = bool(_START.search(text[max(0, start - 4) : start]))
        name = match[0]
        while (first := name.split(" ")[0]).lower() in _PLAIN_WORDS and " " in name:
            start += len(first) + 1
            name, opens = text[start:end], False
        if (opens and " " not in name) or name.lower() in _PLAIN_WORDS:
            continue
        name = re.sub(r"['’]s?$|\.$", "", name)
        yield Claim("name", start, start + len(name), name, words(name))
