"""Rows that repeat an earlier row's prompt and answer: they count twice and leak between splits.

Why it hurts: a row that occurs five times has five times the weight, and a copy on both sides of the split turns the
test into a test of memory. Case, spaces and punctuation are ignored in the comparison.

Example: the same question and answer scraped from two pages.

What to do: let the copies be dropped; the first one stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation, Origin
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding, turns_key

SCOPE = "table"


def find_defects(rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Yields every later copy, with the origin of the first."""
    first_origins: dict[bytes, Origin] = {}
    for row in rows:
        text = "\x1f".join(turns_key(row.turns)).encode("utf-8", "surrogatepass")
        text_hash = hashlib.blake2b(text, digest_size=16).digest()  # the texts themselves would need too much memory
        if text_hash in first_origins:
            yield row_finding("duplicate", row, f"repeats {first_origins[text_hash]}", do)
        else:
            first_origins[text_hash] = row.origin
