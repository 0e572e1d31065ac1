"""What the rows look like, in numbers: lengths, groups, frequent phrases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.data.conversation import Conversation

_NUMBER = re.compile(r"^\s*\d+[.)]\s*")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def profile(
    rows: Sequence[Conversation], count_tokens: Callable[[Conversation], int], *, top: int = 15
) -> dict[str, Any]:
    """Plain values: rows, lengths in words and tokens (one number a row), rows by group, frequent n-grams."""
    prompts = [len(_WORD.findall(row.question)) for row in rows]
    answers = [len(_WORD.findall(row.answer)) for row in rows]
    return {
        "rows": len(rows),
        "prompt_words": prompts,
        "answer_words": answers,
        "tokens": [count_tokens(row) for row in rows],
        "groups": dict(sorted(Counter(row.group for row in rows).items())),
        "prompt_ngrams": frequent([row.question for row in rows], 3, top),
        "answer_ngrams": frequent([row.answer for row in rows], 3, top),
    }


def frequent(texts: Sequence[str], size: int, top: int) -> list[tuple[str, int]]:
    """The `top` most frequent runs of `size` words, counted once a text and not across lines: (words, texts)."""
    counts: Counter[str] = Counter()
    for text in texts:
        lines = [_WORD.findall(_NUMBER.sub("", line).casefold()) for line in text.splitlines()]
        counts.update({" ".join(words[i : i + size]) for words in lines for i in range(len(words) - size + 1)})
    return [item for item in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if item[1] > 1][:top]
