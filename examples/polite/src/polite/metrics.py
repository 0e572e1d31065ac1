"""Metrics: functions of a View with options as keyword-only parameters."""

from __future__ import annotations

import re

from tunesmith.evaluation.score import Score, View

WORDS = ["please", "thank you", "thanks", "sorry", "glad"]


def politeness(view: View, *, words: list[str] | None = None) -> list[Score]:
    """1 if the reply contains a polite word, else 0. `words` replaces the list."""
    pattern = "|".join(re.escape(word) for word in words or WORDS)
    return [Score("politeness", float(bool(re.search(rf"\b({pattern})\b", view.reply.text, re.IGNORECASE))), "higher")]
