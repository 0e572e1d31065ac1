"""Rows that the model's chat template cannot render so that every answer is learned whole.

Why it hurts: a template may refuse a system message, leave an answer's text out, change it, or have no place for its
reasoning. Training would then learn something other than what the row says, or only a part of it.

Example: a row with reasoning, while the generation prompt ends with an empty thought (`enable_thinking: false`).

What to do: follow the reason that each finding gives: set `prompt.reasoning` to drop, change `prompt.template_options`
or `prompt.template`, or take the named mark out of the row. The rows found are left out. This check always runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_row

SCOPE = "table"  # the tokenizer lives in this process


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Rows that the template cannot teach, each with the reason; nothing without a template."""
    for row in rows if context.refusal else ():
        if context.refusal and (reason := context.refusal(row)):
            yield of_row("unlearnable", row, reason, do)
