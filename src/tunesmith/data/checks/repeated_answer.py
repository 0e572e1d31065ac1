"""Answers that stand under several different prompts, word for word.

Why it hurts: an answer that fits two different inputs has taken no notice of at least one of them; in a set of letters
half the rows may say nothing about their own applicant.

Example: one letter under the fields of a nurse in Leeds and of a nurse in Bath.

What to do: where one canonical answer to many prompts is meant, leave it. Where every row should have its own, write
`repeated_answer: {do: drop}`; the first row stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, Origin, normalise
from tunesmith.data.finding import Context, Finding, Proposal, of_row, prompt_key

SCOPE = "table"


def look(rows: Sequence[Conversation], context: Context, *, words: int = 6, do: Proposal = "keep") -> Iterator[Finding]:
    """Every later row with the answer of an earlier one and another prompt; answers under `words` words are values."""
    seen: dict[bytes, tuple[Origin, int]] = {}
    for row in rows:
        text = normalise(row.answer)
        if len(text.split()) < words:
            continue
        mark = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        prompt = hash(prompt_key(row))
        first, asked = seen.setdefault(mark, (row.origin, prompt))
        if first is not row.origin and asked != prompt:
            yield of_row("repeated_answer", row, f"has the answer of {first}, to another prompt", do)
