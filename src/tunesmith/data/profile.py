"""Profiles rows in one pass: lengths, groups, fields, languages, copies, frequent phrases."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.defects import Language
from tunesmith.data.finding import prompt_key

BINS = 30
NGRAM_SAMPLE = 20_000  # rows for counting n-grams, at even steps: a row of 60 words has 58
LANGUAGE_SAMPLE = 5_000  # answers whose language is detected, at even steps
_NUMBER = re.compile(r"^\s*\d+[.)]\s*")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def profile(
    rows: Sequence[Conversation], count_tokens: Callable[[Conversation], int] | None = None, *, top: int = 15
) -> dict[str, Any]:
    """Returns the profile as plain values.

    `lengths`: of prompt and answer in characters and words, and of the row in tokens, each as `spread` returns it.
    `groups`: rows by group. `fields`: rows with each field, and with the field blank. `languages`: rows by script and
    language. `distinct`: numbers of distinct prompts, answers, pairs. `exchanges`: rows by number of answers.
    """
    lengths: dict[str, array[int]] = {}
    groups: Counter[str] = Counter()
    exchanges: Counter[int] = Counter()
    languages: Counter[str] = Counter()
    filled: Counter[str] = Counter()
    blank: Counter[str] = Counter()
    distinct: dict[str, set[int]] = {"prompts": set(), "answers": set(), "pairs": set()}
    sampled: tuple[list[str], list[str]] = [], []
    ngram_step, language_step = max(1, len(rows) // NGRAM_SAMPLE), max(1, len(rows) // LANGUAGE_SAMPLE)
    for index, row in enumerate(rows):
        _measure(lengths, row, count_tokens)
        groups[row.group] += 1
        exchanges[sum(turn.role == "assistant" for turn in row.turns)] += 1
        for name, value in row.fields.items():
            (filled if str(value).strip() else blank)[name] += 1
        prompt, answer = hash(prompt_key(row)), hash(normalize(row.answer))
        distinct["prompts"].add(prompt)
        distinct["answers"].add(answer)
        distinct["pairs"].add(hash((prompt, answer)))
        if index % ngram_step == 0:
            sampled[0].append(row.question)
            sampled[1].append(row.answer)
        if index % language_step == 0:
            languages[_language(row.answer)] += 1
    return {
        "rows": len(rows),
        "lengths": {name: distribution(values) for name, values in lengths.items()},
        "groups": dict(sorted(groups.items())),
        "exchanges": {str(number): count for number, count in sorted(exchanges.items())},
        "fields": {
            name: {"filled": filled[name], "blank": blank[name], "missing": len(rows) - filled[name] - blank[name]}
            for name in dict.fromkeys([*filled, *blank])
        },
        "languages": dict(languages.most_common()),
        "distinct": {name: len(members) for name, members in distinct.items()},
        "read": {"ngrams": len(sampled[0]), "languages": languages.total()},
        "prompt_ngrams": frequent_ngrams(sampled[0], 3, top),
        "answer_ngrams": frequent_ngrams(sampled[1], 3, top),
    }


def distribution(values: Iterable[int]) -> dict[str, Any]:
    """Minimum, 5 %, median, mean, 95 %, maximum, and a histogram of at most 30 bins (edges, counts)."""
    numbers = np.fromiter(values, dtype=np.int64)
    if not len(numbers):
        return {}
    low, middle, high = np.quantile(numbers, [0.05, 0.5, 0.95])
    bins = min(BINS, max(1, int(numbers.max() - numbers.min())))
    counts, edges = np.histogram(numbers, bins=bins)
    return {
        "min": int(numbers.min()),
        "p5": round(float(low), 1),
        "median": round(float(middle), 1),
        "mean": round(float(numbers.mean()), 1),
        "p95": round(float(high), 1),
        "max": int(numbers.max()),
        "edges": [round(float(edge), 2) for edge in edges],
        "counts": counts.tolist(),
    }


def frequent_ngrams(texts: Sequence[str], size: int, top: int) -> list[tuple[str, int]]:
    """The `top` most frequent word n-grams of `size`, counted once per text and not across lines: (words, texts)."""
    counts: Counter[str] = Counter()
    for text in texts:
        lines = [_WORD.findall(_NUMBER.sub("", line).casefold()) for line in text.splitlines()]
        counts.update({" ".join(words[i : i + size]) for words in lines for i in range(len(words) - size + 1)})
    return [item for item in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if item[1] > 1][:top]


def _measure(
    lengths: dict[str, array[int]], row: Conversation, count_tokens: Callable[[Conversation], int] | None
) -> None:
    for name, text in (("prompt", row.question), ("answer", row.answer)):
        lengths.setdefault(f"{name}_characters", array("q")).append(len(text))
        lengths.setdefault(f"{name}_words", array("q")).append(len(_WORD.findall(text)))
    if count_tokens:
        lengths.setdefault("tokens", array("q")).append(count_tokens(row))


def _language(text: str) -> str:
    language = Language.detect(text)
    if language is None:
        return "too short to tell"
    return language.code or ("Latin script, language not clear" if language.script == "Latin" else language.script)
