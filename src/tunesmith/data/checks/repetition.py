"""Answers half of which repeats the same sentence or phrase three times or more.

Why it hurts: small models tend to repeat themselves anyway, and each such answer reinforces it.

Example: an answer that lists the same tip nine times with another number.

What to do: read them; songs and schedules repeat on purpose. They are kept unless the recipe says otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding, Proposal, Severity, defect_findings, make_defect
from tunesmith.data.language import mask

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_GRAM = 6
_TIMES = 3
_WARNING_SHARE = (
    0.5  # of the text: in real answers, songs, quizzes and plans repeat up to 0.48 of themselves on purpose
)


def detect(text: str) -> Iterator[Defect]:
    """Yields a sentence (of four or more words) or six words that occur three times or more, at the third occurrence.

    A warning if half of the text or more repeats, a note if less does (a chorus, a list).
    """
    masked = mask(text).lower()
    if len(masked) < 4 * _TIMES * 2:
        return
    if result := _third_sentence(masked) or _third_gram(masked):
        start, end, share, unit = result
        severity: Severity = "warning" if share >= _WARNING_SHARE else "note"
        yield make_defect(
            "repetition", text, start, end, f"{unit} three times, {share:.0%} of the text repeats", severity
        )


def _third_sentence(masked: str) -> tuple[int, int, float, str] | None:
    """The third occurrence of a sentence, and the share of sentences that occur three times."""
    sentences = [
        (" ".join(words), sentence) for sentence in _SENTENCE.finditer(masked) if (words := sentence[0].split())
    ]
    keys = [key for key, _ in sentences]
    if len(keys) - len(set(keys)) < _TIMES - 1:
        return None
    counts = Counter(key for key in keys if sum(word[-1:].isalpha() or word[:1].isalpha() for word in key.split()) >= 4)
    repeated = {key for key, count in counts.items() if count >= _TIMES}
    occurrences: Counter[str] = Counter()
    for key, sentence in sentences:
        occurrences[key] += 1
        if key in repeated and occurrences[key] == _TIMES:
            start = sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())
            return start, sentence.end(), sum(counts[key] for key in repeated) / len(keys), "the same sentence"
    return None


def _third_gram(masked: str) -> tuple[int, int, float, str] | None:
    """The third non-overlapping occurrence of six words, and the share of 6-grams that occur three times."""
    tokens = list(_TOKEN.finditer(masked))
    words = [token[0] for token in tokens]
    grams = list(zip(*(words[n:] for n in range(_GRAM)), strict=False))
    if len(grams) - len(set(grams)) < _TIMES - 1:
        return None
    counts = Counter(grams)
    last: dict[tuple[str, ...], tuple[int, int]] = {}
    for index, gram in enumerate(grams):
        count, last_index = last.get(gram, (0, -_GRAM))
        if counts[gram] < _TIMES or index < last_index + _GRAM:
            continue
        if count == _TIMES - 1:
            share = sum(count for count in counts.values() if count >= _TIMES) / len(grams)
            return tokens[index].start(), tokens[index + _GRAM - 1].end(), share, "the same six words"
        last[gram] = count + 1, index
    return None


SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields answers half of which is repeated three times or more."""
    yield from defect_findings("repetition", rows, detect, do, "keep")
