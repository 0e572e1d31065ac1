"""Texts that run in circles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tunesmith.data.defects._code import mask
from tunesmith.data.defects._defect import Defect, Severity, at

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_GRAM = 6
_TIMES = 3
_CIRCLES = 0.5  # of the text: on real answers songs, quizzes and plans repeat up to 0.48 of themselves on purpose


def repetition(text: str) -> Iterator[Defect]:
    """The same sentence (of four words or more) or the same six words three times or more.

    The place is the third time. A note where the rest says something else (a chorus, a list); a warning where half the
    text repeats: it runs in circles.
    """
    masked = mask(text).lower()
    if len(masked) < 4 * _TIMES * 2:
        return
    if found := _third_sentence(masked) or _third_gram(masked):
        start, end, share, what = found
        severity: Severity = "warning" if share >= _CIRCLES else "note"
        yield at("repetition", text, start, end, f"{what} three times, {share:.0%} of the text repeats", severity)


def _third_sentence(masked: str) -> tuple[int, int, float, str] | None:
    """Where a sentence stands the third time, and the share of the sentences that do so."""
    found = [(" ".join(words), sentence) for sentence in _SENTENCE.finditer(masked) if (words := sentence[0].split())]
    keys = [key for key, _ in found]
    if len(keys) - len(set(keys)) < _TIMES - 1:
        return None
    counts = Counter(key for key in keys if sum(word[-1:].isalpha() or word[:1].isalpha() for word in key.split()) >= 4)
    often = {key for key, times in counts.items() if times >= _TIMES}
    seen: Counter[str] = Counter()
    for key, sentence in found:
        seen[key] += 1
        if key in often and seen[key] == _TIMES:
            start = sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())
            return start, sentence.end(), sum(counts[key] for key in often) / len(keys), "the same sentence"
    return None


def _third_gram(masked: str) -> tuple[int, int, float, str] | None:
    """Where six words stand the third time, without overlap, and the share of all sixes that stand three times."""
    tokens = list(_TOKEN.finditer(masked))
    words = [token[0] for token in tokens]
    grams = list(zip(*(words[n:] for n in range(_GRAM)), strict=False))
    if len(grams) - len(set(grams)) < _TIMES - 1:
        return None
    counts = Counter(grams)
    last: dict[tuple[str, ...], tuple[int, int]] = {}
    for place, gram in enumerate(grams):
        times, before = last.get(gram, (0, -_GRAM))
        if counts[gram] < _TIMES or place < before + _GRAM:
            continue
        if times == _TIMES - 1:
            share = sum(times for times in counts.values() if times >= _TIMES) / len(grams)
            return tokens[place].start(), tokens[place + _GRAM - 1].end(), share, "the same six words"
        last[gram] = times + 1, place
    return None
