"""Identical answers to several different prompts.

Why it hurts: an answer to two different inputs ignores at least one of them; in a set of letters half the rows may say
nothing about their own applicant.

Example: one letter for the fields of a nurse in Leeds and of a nurse in Bath.

What to do: nothing, if one canonical answer to many prompts is intended. If every row should have its own, write
`repeated_answer: {do: drop}`; the first row stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, Origin, normalize
from tunesmith.data.finding import CheckContext, Finding, Proposal, prompt_key, row_finding

SCOPE = "table"


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, words: int = 6, do: Proposal = "keep"
) -> Iterator[Finding]:
    """Yields rows with an earlier row's answer and another prompt; answers of fewer than `words` words are values."""
    first_rows: dict[bytes, tuple[Origin, int]] = {}
    for row in rows:
        text = normalize(row.answer)
        if len(text.split()) < words:
            continue
        text_hash = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        prompt = hash(prompt_key(row))
        first_origin, first_prompt = first_rows.setdefault(text_hash, (row.origin, prompt))
        if first_origin is not row.origin and first_prompt != prompt:
            yield row_finding("repeated_answer", row, f"has the answer of {first_origin} with another prompt", do)
