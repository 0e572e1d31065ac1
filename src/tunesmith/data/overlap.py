"""Counts the overlap of training rows and held-out rows after all steps, for the report and for `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.conversation import Conversation, normalize
from tunesmith.data.finding import dialog_text, prompt_key


def overlap(parts: Mapping[str, Sequence[Conversation]], *, together: float | None) -> dict[str, Any]:
    """The number of training rows that share a prompt, an answer or both with a held-out row.

    `prompts`, `answers` and `pairs` are equal without case, spacing and punctuation; `near_prompts` have similarity
    `together` or more (absent without it). `example` is one near-duplicate pair.
    """
    from tunesmith.data.duplicates import leaks

    train = parts["train"]
    held_out = [row for part, rows in parts.items() if part != "train" for row in rows]
    prompts = {prompt_key(row) for row in held_out}
    pairs = {(prompt_key(row), normalize(row.answer)) for row in held_out}
    answers = {normalize(row.answer) for row in held_out}
    counts: dict[str, Any] = {
        "held": len(held_out),
        "prompts": sum(prompt_key(row) in prompts for row in train),
        "answers": sum(normalize(row.answer) in answers for row in train),
        "pairs": sum((prompt_key(row), normalize(row.answer)) in pairs for row in train),
    }
    if together is not None:
        texts = [dialog_text(row.prompt) for row in train], [dialog_text(row.prompt) for row in held_out]
        near_pairs = leaks(*texts, threshold=together) if held_out else []
        counts |= {"near_prompts": len({pair.first for pair in near_pairs}), "threshold": together}
        if near_pairs:
            train_row, held_out_row = train[near_pairs[0].first], held_out[near_pairs[0].second]
            counts["example"] = f"{train_row.origin} and {held_out_row.origin}"
    return counts
