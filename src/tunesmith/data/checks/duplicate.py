"""Rows that repeat an earlier row's prompt and answer: they count twice and leak between splits.

Why it hurts: a row that stands five times is learnt five times as hard, and a copy on both sides of the split makes
the test a test of memory. Case, spaces and sentence marks are folded before comparing.

Example: the same question and answer scraped from two pages.

What to do: let the copies be dropped; the first stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, Origin
from tunesmith.data.finding import Context, Finding, Proposal, key, of_row

SCOPE = "table"


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Every later copy, each with the place of the first."""
    seen: dict[bytes, Origin] = {}
    for row in rows:
        text = "\x1f".join(key(row.turns)).encode("utf-8", "surrogatepass")
        mark = hashlib.blake2b(text, digest_size=16).digest()  # the texts themselves would fill the memory
        if mark in seen:
            yield of_row("duplicate", row, f"repeats {seen[mark]}", do)
        else:
            seen[mark] = row.origin
