"""Whether training rows and held-out rows overlap: counted when all is done, for the report and for `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.conversation import Conversation, normalise
from tunesmith.data.finding import prompt_key, spoken


def overlap(parts: Mapping[str, Sequence[Conversation]], *, together: float | None) -> dict[str, Any]:
    """How many training rows share something with a held-out row, by what they share.

    `prompts` and `pairs` are equal after folding case, spaces and marks; `near_prompts` are at least `together` alike
    (absent without it); `answers` are equal answers to whatever prompt. `example` is one prompt that leaks.
    """
    from tunesmith.data.duplicates import leaks

    train = parts["train"]
    held = [row for part, rows in parts.items() if part != "train" for row in rows]
    prompts = {prompt_key(row) for row in held}
    pairs = {(prompt_key(row), normalise(row.answer)) for row in held}
    answers = {normalise(row.answer) for row in held}
    found: dict[str, Any] = {
        "held": len(held),
        "prompts": sum(prompt_key(row) in prompts for row in train),
        "answers": sum(normalise(row.answer) in answers for row in train),
        "pairs": sum((prompt_key(row), normalise(row.answer)) in pairs for row in train),
    }
    if together is not None:
        texts = [spoken(row.prompt) for row in train], [spoken(row.prompt) for row in held]
        near = leaks(*texts, threshold=together) if held else []
        found |= {"near_prompts": len({pair.first for pair in near}), "threshold": together}
        if near:
            one, other = train[near[0].first], held[near[0].second]
            found["example"] = f"{one.origin} and {other.origin}"
    return found
